"""Conversations -> those worth training on: something is left to train after truncation, and the masked role speaks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from steersman.records import Conversation
from steersman.seams import Progress
from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder

UNIT = 1_000
"""Records that are looked at together."""


def clean(
    conversations: Iterable[Conversation], encoder: Encoder, seq_len: int, progress: Progress | None = None
) -> tuple[Iterator[Conversation], Counter[str]]:
    """(the records to keep, how many were dropped for each reason).

    The records stream, in order; the counts fill up while they are consumed.
    """
    return clean_rendered(((c, encoder.template.render(c)) for c in conversations), encoder, seq_len, progress)


def clean_rendered(
    records: Iterable[tuple[Conversation, Rendered]], encoder: Encoder, seq_len: int, progress: Progress | None = None
) -> tuple[Iterator[Conversation], Counter[str]]:
    """`clean` for records that were rendered while they were read (`text.read`)."""
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[Conversation]:
        stream = iter(records)
        while unit := list(islice(stream, UNIT)):
            for (conversation, _), reason in zip(unit, _reasons_to_drop(unit, encoder, seq_len), strict=True):
                if reason is None:
                    yield conversation
                else:
                    dropped[reason] += 1
            if progress:
                progress(len(unit))

    return kept(), dropped


def _reasons_to_drop(unit: Sequence[tuple[Conversation, Rendered]], encoder: Encoder, seq_len: int) -> list[str | None]:
    """Why each record is dropped, or None. Those of which the text's length says enough are not tokenised."""
    reasons = [_reason_without_tokens(conversation, rendered) for conversation, rendered in unit]
    undecided = [
        index
        for index, (_, rendered) in enumerate(unit)
        if reasons[index] is None and not encoder.surely_trains(rendered, seq_len)
    ]
    tokenized = encoder.encode_rendered([unit[index][1] for index in undecided], seq_len)
    for index, sequence in zip(undecided, tokenized, strict=True):
        if not sequence.num_trained:
            reasons[index] = f"nothing left to train within {seq_len} tokens"
    return reasons


def _reason_without_tokens(conversation: Conversation, rendered: Rendered) -> str | None:
    """Why a record is dropped whatever its tokens are, or None."""
    if not any(conversation.is_masked(message) for message in conversation.conversations):
        return "the masked role never speaks"
    return None if rendered.trained else "nothing to train"
