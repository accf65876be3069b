"""Attributes that a rule reads off the text, beside those that a scorer judges.

Conversations go in; out come the inner scorer's judgements with the derived attributes of the data's summary (such as
`verbosity`, the fifth of the training lengths in which an answer's length lies) appended, exactly as training labels
have them.
"""

from collections.abc import Sequence

from steersman.attributes import AttributeSchema
from steersman.records import Conversation, Judgement, Message
from steersman.seams import Progress, Scorer
from steersman.sources.summary import DataSummary, derived_attribute


class DerivedScorer:
    """A Scorer made of another one and a data summary's rules.

    Args:
        scorer: judges the other attributes; it never sees derived ones, in labels of earlier turns either.
        summary: of the data whose labels the derived attributes are to continue.
    """

    def __init__(self, scorer: Scorer, summary: DataSummary) -> None:
        self._scorer = scorer
        self._summary = summary
        self._schema = scorer.schema.extend(*map(derived_attribute, summary.thresholds))

    @property
    def schema(self) -> AttributeSchema:
        return self._schema

    @property
    def reads_labels(self) -> bool:
        return self._scorer.reads_labels

    def judge(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> list[Judgement]:
        """One judgement a conversation, in order."""
        judgements = self._scorer.judge([self._without_derived(one) for one in conversations], progress)
        return [self._extend(one, judgement) for one, judgement in zip(conversations, judgements, strict=True)]

    def _without_derived(self, conversation: Conversation) -> Conversation:
        turns = [self._strip(turn) for turn in conversation.conversations]
        return conversation.model_copy(update={"conversations": turns})

    def _strip(self, turn: Message) -> Message:
        if not turn.label:
            return turn
        values = self._schema.parse(turn.label)
        judged = {name: value for name, value in values.items() if name in self._scorer.schema}
        return turn.model_copy(update={"label": self._scorer.schema.encode(judged) or None})

    def _extend(self, conversation: Conversation, judgement: Judgement) -> Judgement:
        text = conversation.conversations[max(conversation.spoken_turns())].value
        derived = {name: self._summary.measure(name, text) for name in self._summary.thresholds}
        expected = {name: float(value) for name, value in derived.items()}
        return judgement.model_copy(
            update={"values": judgement.values | derived, "expected": judgement.expected | expected}
        )
