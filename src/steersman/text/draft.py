"""Text that grows piece by piece and keeps, beside it, which of it is trained and which is somebody's own words.

Spans are half-open character ranges, born as the text is appended and never searched for afterwards.
"""

from dataclasses import dataclass, field

from steersman.records import Conversation, Message, Span


@dataclass
class Draft:
    """A rendered conversation, or its beginning.

    Attributes:
        text: what was written so far.
        trained: spans that are targets.
        said: spans of the speakers' own words; everything else is the template's.
    """

    text: str = ""
    trained: list[Span] = field(default_factory=list)
    said: list[Span] = field(default_factory=list)

    def write(self, text: str, *, trained: bool = False, said: bool = False) -> None:
        """Append a piece."""
        span = (len(self.text), len(self.text) + len(text))
        self.text += text
        if trained:
            self.trained.append(span)
        if said:
            self.said.append(span)

    def cut(self, start: int, end: int) -> "Draft":
        """The part [start, end) as a draft of its own."""
        return Draft(self.text[start:end], *(_clip(spans, start, end) for spans in (self.trained, self.said)))


def _clip(spans: list[Span], start: int, end: int) -> list[Span]:
    return [(max(a, start) - start, min(b, end) - start) for a, b in spans if a < end and b > start]


@dataclass(frozen=True)
class Turn:
    """One turn and what the loss sees of it, whatever the template.

    Attributes:
        message: the turn.
        opening_label: label that the answer obeys, written before it (VALUE_TO_TEXT).
        closing_label: label that the answer earned, written after it (TEXT_TO_VALUE).
        trained: the turn has targets: its closing label when it has one, its answer otherwise.
    """

    message: Message
    opening_label: str | None
    closing_label: str | None
    trained: bool

    @property
    def answer_trained(self) -> bool:
        return self.trained and self.closing_label is None


def plan(conversation: Conversation) -> list[Turn]:
    """The turns of a conversation, with the rules of the loss mask that all templates share.

    Turns of masked roles and turns with `train` false are context. So is the first turn, unless labels are predicted:
    with nothing before it there is nothing to answer.
    """
    predicts = conversation.type == "TEXT_TO_VALUE"
    obeys = conversation.type == "VALUE_TO_TEXT"
    return [
        Turn(
            message=message,
            opening_label=message.label if obeys else None,
            closing_label=message.label if predicts else None,
            trained=message.train and not conversation.is_masked(message) and (index > 0 or predicts),
        )
        for index, message in enumerate(conversation.conversations)
    ]
