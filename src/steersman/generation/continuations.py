"""A request to score a continuation -> token ids, and where each candidate's tokens lie.

Text is always tokenised together with what comes before it. For a span with alternatives, the text is tokenised with
each candidate in its place. A candidate's tokens reach from the first token that touches the span, or in which the
candidates differ (whichever comes first), to the last such; one further while one candidate's tokens begin another's
("1" and "10"), which could not be compared otherwise. Then

    log P(candidate | before) = sum over its tokens of log P(token | everything before it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, takewhile

from steersman.errors import DataError
from steersman.generation.prefixes import common_prefix
from steersman.records import Span
from steersman.seams import ScoreRequest
from steersman.text.tokenize import Encoded, Encoder


@dataclass(frozen=True)
class Alternatives:
    """The candidates of one span.

    Attributes:
        start: index of their first token in the sequence, the same for all.
        token_ids: each candidate's tokens.
    """

    start: int
    token_ids: list[list[int]]


@dataclass(frozen=True)
class TokenisedContinuation:
    """What is to be scored.

    Attributes:
        ids: prompt and continuation.
        first: index of the continuation's first token.
        alternatives: span of the continuation -> its candidates.
        compare_only: only the logits of candidates, all of one token, are asked for.
        top: how many likeliest tokens in the place of each one of the continuation are asked for.
    """

    ids: list[int]
    first: int
    alternatives: dict[Span, Alternatives]
    compare_only: bool = False
    top: int = 0


def _one_begins_another(rows: Sequence[list[int]]) -> bool:
    ordered = sorted(rows)
    return any(len(a) < len(b) and a == b[: len(a)] for a, b in pairwise(ordered))


class ContinuationTokeniser:
    """Tokenises the scoring requests for one model.

    An added token (such as a control string) splits a text into parts that are tokenised independently, so candidates
    are tokenised from the last one before them on: a label string instead of a whole conversation. Label strings
    repeat, so what was found in them is kept.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._added_ids = frozenset(encoder.tokenizer.added_tokens_decoder)
        self._locate_again = lru_cache(maxsize=4096)(self._locate)

    def __call__(self, request: ScoreRequest) -> TokenisedContinuation:
        """
        Raises:
            DataError: nothing comes before the continuation, or a span's own text is not among its candidates.
        """
        text, literal = request.prompt.text + request.continuation, request.prompt.literal
        boundary = len(request.prompt.text)
        whole = self._encoder.encode(text, literal)
        first = next((i for i, (_, end) in enumerate(whole.offsets) if end > boundary), len(whole.ids))
        alternatives = {}
        if request.alternatives:
            earliest = boundary + min(start for start, _ in request.alternatives)
            cut, cut_char = self._cut(text, literal, whole, earliest)
            tail, tail_literal = text[cut_char:], _from(literal, cut_char)
        for (start, end), candidates in request.alternatives.items():
            if request.continuation[start:end] not in candidates:
                raise DataError(
                    f"alternatives for {request.continuation[start:end]!r} (characters {start} to {end} of the "
                    f"continuation) must include it: {list(candidates)}"
                )
            span = (boundary + start - cut_char, boundary + end - cut_char)
            found = self._locate_again(tail, tail_literal, span, tuple(candidates))
            alternatives[start, end] = Alternatives(cut + found.start, found.token_ids)
        starts = [first, *(found.start for found in alternatives.values())]
        if whole.ids and min(starts) == 0:
            raise DataError("nothing comes before the continuation, so it has no probability: give a prompt")
        single = all(len(tokens) == 1 for found in alternatives.values() for tokens in found.token_ids)
        return TokenisedContinuation(whole.ids, first, alternatives, request.compare_only and single)

    def _cut(self, text: str, literal: tuple[Span, ...], whole: Encoded, before: int) -> tuple[int, int]:
        """Token index and character, as late as possible, from which the text may be tokenised alone."""
        for index in range(len(whole.ids) - 1, -1, -1):
            start, end = whole.offsets[index]
            if whole.ids[index] in self._added_ids and start < end <= before:
                if self._words(text[start:], _from(literal, start)).ids == whole.ids[index:]:
                    return index, start
                break
        return len(whole.ids) - len(self._words(text, literal).ids), 0

    def _words(self, text: str, literal: tuple[Span, ...]) -> Encoded:
        """Tokens of the text itself, without a BOS that is put before it."""
        encoded = self._encoder.encode(text, literal)
        has_bos = encoded.offsets[:1] == [(0, 0)]
        return Encoded(encoded.ids[has_bos:], encoded.offsets[has_bos:])

    def _locate(self, text: str, literal: tuple[Span, ...], span: Span, candidates: tuple[str, ...]) -> Alternatives:
        """Tokenise the text with each candidate in the span, and find where they differ."""
        rows = [self._words(text[: span[0]] + candidate + text[span[1] :], literal).ids for candidate in candidates]
        offsets = self._words(text, literal).offsets
        untouched = sum(1 for _ in takewhile(lambda offset: offset[1] <= span[0], offsets))
        after = sum(1 for _ in takewhile(lambda offset: offset[0] >= span[1], reversed(offsets)))
        prefix = min(untouched, *(common_prefix(rows[0], row) for row in rows))
        suffix = min(after, *(common_prefix(rows[0][::-1], row[::-1]) for row in rows), min(map(len, rows)) - prefix)
        while suffix and _one_begins_another([row[prefix : len(row) - suffix] for row in rows]):
            suffix -= 1
        return Alternatives(prefix, [row[prefix : len(row) - suffix] for row in rows])


def _from(spans: tuple[Span, ...], start: int) -> tuple[Span, ...]:
    """The spans of a text, in what remains of it from a character on."""
    return tuple((max(s - start, 0), e - start) for s, e in spans if e > start)
