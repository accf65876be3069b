"""The generative attribute predictor (SteerLM's step 1 model at work) as a Scorer.

Conversations go in; for each the label of its last spoken turn comes out: P(value | conversation, earlier labels,
values of the attributes before) over each attribute's scale, by constrained decoding of the label string that the
model learned to write after a turn (TEXT_TO_VALUE).
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from steersman.attributes import AttributeSchema
from steersman.errors import DataError
from steersman.generation.constrained import fill
from steersman.generation.window import Window
from steersman.records import Conversation, Judgement, Prompt
from steersman.seams import ContinuationScorer, Progress, Scorer
from steersman.text.template import Template


def posterior_median(probabilities: Sequence[float], low: int = 0) -> int:
    """The smallest value whose cumulative probability reaches one half; `low` is the scale's lowest value.

    It is the prediction with the least expected absolute error.
    """
    half = sum(probabilities) / 2
    return low + next(i for i, total in enumerate(accumulate(probabilities)) if total >= half)


def expected_value(probabilities: Sequence[float], low: int = 0) -> float:
    """The distribution's mean on its scale."""
    return sum(p * value for value, p in enumerate(probabilities, start=low)) / sum(probabilities)


def up_to_last_spoken(conversation: Conversation) -> Conversation:
    """The conversation cut after its last turn of an unmasked role, that turn's own label removed.

    Raises:
        DataError: no unmasked role speaks.
    """
    last = max(conversation.spoken_turns(), default=None)
    if last is None:
        raise DataError(f"no turn to judge: every role that speaks is masked (mask {conversation.mask!r})")
    turns = conversation.conversations[: last + 1]
    turns[-1] = turns[-1].model_copy(update={"label": None})
    return conversation.model_copy(update={"conversations": turns})


class Predictor(Scorer, Protocol):
    """A Scorer that has a window."""

    def fits(self, conversation: Conversation) -> bool:
        """Whether the window holds the conversation and what is read or written after it; True when it is unknown."""
        ...


class AttributePredictor:
    """A Scorer that reads labels off a model trained on TEXT_TO_VALUE conversations.

    Args:
        scorer: the model.
        template, schema: of the model's card.
        window: of the model, for `fits`.
    """

    def __init__(
        self,
        scorer: ContinuationScorer,
        template: Template,
        schema: AttributeSchema,
        window: Window | None = None,
    ) -> None:
        self._scorer = scorer
        self._template = template
        self._schema = schema
        self._window = window

    @property
    def schema(self) -> AttributeSchema:
        return self._schema

    @property
    def reads_labels(self) -> bool:
        return True

    def prompt(self, conversation: Conversation) -> Prompt:
        """What the model continues with the label of the last spoken turn."""
        asked = up_to_last_spoken(conversation).model_copy(update={"type": "TEXT_TO_VALUE"})
        return self._template.prompt_for_label(asked)

    def fits(self, conversation: Conversation) -> bool:
        """Whether the window holds the conversation and the label of its last spoken turn; True when it is unknown."""
        if self._window is None:
            return True
        longest = self.schema.encode({attribute.name: attribute.high for attribute in self.schema.attributes})
        room = len(self._window.encoder.encode(longest + self._template.label_end).ids)
        return self._window.holds(self.prompt(conversation), room)

    def judge(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> list[Judgement]:
        """One judgement a conversation, in order; equal conversations are judged once."""
        prompts = [self.prompt(conversation) for conversation in conversations]
        distinct = list(dict.fromkeys(prompts))
        filled = fill(self._scorer, [(prompt, self.schema) for prompt in distinct], self._template.label_end, progress)
        judgements = {
            prompt: Judgement(
                values=label.values,
                probabilities=label.probabilities,
                expected={
                    name: expected_value(probabilities, self.schema[name].low)
                    for name, probabilities in label.probabilities.items()
                },
            )
            for prompt, label in zip(distinct, filled, strict=True)
        }
        if progress:
            progress(len(prompts) - len(distinct))
        return [judgements[prompt] for prompt in prompts]
