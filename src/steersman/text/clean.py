"""Conversations -> those worth training on: something is left to train after truncation, and the masked role speaks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from steersman.records import Conversation
from steersman.seams import Progress
from steersman.text.template import Rendered
from steersman.text.tokenize import Encoder

UNIT = 1_000
"""Records that are tokenised at once."""


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
    """Why each record is dropped, or None."""
    tokenized = encoder.encode_rendered([rendered for _, rendered in unit], seq_len)
    reasons: list[str | None] = []
    for (conversation, rendered), sequence in zip(unit, tokenized, strict=True):
        if not any(conversation.is_masked(message) for message in conversation.conversations):
            reasons.append("the masked role never speaks")
        elif sequence.num_trained:
            reasons.append(None)
        elif rendered.trained:
            reasons.append(f"nothing left to train within {seq_len} tokens")
        else:
            reasons.append("nothing to train")
    return reasons
