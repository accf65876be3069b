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
    """

    ids: list[int]
    first: int
    alternatives: dict[Span, Alternatives]


def _one_begins_another(rows: Sequence[list[int]]) -> bool:
    ordered = sorted(rows)
    return any(len(a) < len(b) and a == b[: len(a)] for a, b in pairwise(ordered))


class ContinuationTokeniser:
    """Tokenises the scoring requests for one model.

    An added token (such as a control string) splits a text into parts that are tokenised independently, so candidates
    are tokenised from the last one before their span on: a label string instead of a whole conversation. Label strings
    repeat, so their tokens are kept.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._added_ids = frozenset(encoder.tokenizer.added_tokens_decoder)
        self._encode_tail = lru_cache(maxsize=4096)(encoder.encode)

    def __call__(self, request: ScoreRequest) -> TokenisedContinuation:
        """
        Raises:
            DataError: nothing comes before the continuation, or a span's own text is not among its candidates.
        """
        text, boundary = request.prompt.text + request.continuation, len(request.prompt.text)
        whole = self._encoder.encode(text, request.prompt.literal)
        first = next((i for i, (_, end) in enumerate(whole.offsets) if end > boundary), len(whole.ids))
        if first == 0 and whole.ids:
            raise DataError(
                "nothing comes before the continuation, so its first token has no probability: give a prompt"
            )
        alternatives = {}
        for (start, end), candidates in request.alternatives.items():
            if request.continuation[start:end] not in candidates:
                raise DataError(
                    f"alternatives for {request.continuation[start:end]!r} (characters {start} to {end} of the "
                    f"continuation) must include it: {list(candidates)}"
                )
            span = (boundary + start, boundary + end)
            alternatives[start, end] = self._locate(text, request.prompt.literal, whole, span, candidates)
        return TokenisedContinuation(whole.ids, first, alternatives)

    def _locate(
        self, text: str, literal: tuple[Span, ...], whole: Encoded, span: Span, candidates: Sequence[str]
    ) -> Alternatives:
        """Tokenise the text with each candidate in the span, and find where they differ."""
        cut, cut_char = self._cut(text, literal, whole, span)
        tails = [
            self._tail(text[cut_char : span[0]] + candidate + text[span[1] :], literal, cut_char)
            for candidate in candidates
        ]
        offsets = whole.offsets[cut:]
        touching = sum(1 for _ in takewhile(lambda offset: offset[1] <= span[0], offsets))
        after = sum(1 for _ in takewhile(lambda offset: offset[0] >= span[1], reversed(offsets)))
        prefix = min(touching, *(common_prefix(tails[0], tail) for tail in tails))
        suffix = min(
            after, *(common_prefix(tails[0][::-1], tail[::-1]) for tail in tails), min(map(len, tails)) - prefix
        )
        while suffix and _one_begins_another([tail[prefix : len(tail) - suffix] for tail in tails]):
            suffix -= 1
        if cut + prefix == 0:
            raise DataError("nothing comes before the alternatives, so they have no probability: give a prompt")
        return Alternatives(cut + prefix, [tail[prefix : len(tail) - suffix] for tail in tails])

    def _cut(self, text: str, literal: tuple[Span, ...], whole: Encoded, span: Span) -> tuple[int, int]:
        """Token index and character from which the text may be tokenised alone: (0, 0) for the whole text."""
        for index in range(len(whole.ids) - 1, 0, -1):
            start, end = whole.offsets[index]
            if whole.ids[index] in self._added_ids and start < end <= span[0]:
                alone = self._tail(text[start:], literal, start)
                return (index, start) if alone == whole.ids[index:] else (0, 0)
        return 0, 0

    def _tail(self, tail: str, literal: tuple[Span, ...], cut_char: int) -> list[int]:
        """Tokens of a text from `cut_char` on; literal spans all lie before any candidate."""
        shifted = tuple((max(start - cut_char, 0), end - cut_char) for start, end in literal if end > cut_char)
        ids = self._encode_tail(tail, shifted).ids
        return ids[1:] if cut_char and self._encoder.spec.bos else ids
