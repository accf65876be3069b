"""Label strings by constrained decoding: draft all values, verify them in one pass, keep what was right.

A prompt that ends right before a label string, and a schema, go in; for every attribute its distribution comes out,
given the prompt and the values decided before it:

    P(v_i | prompt, v_1 ... v_{i-1}),   v_i = argmax (the lowest of equals),

normalised over the scale. One scoring request reads the distributions of all attributes under a drafted label; they
hold up to the first whose draft is not its argmax. That one is corrected, everything before it joins the prompt, and
the rest is drafted anew with the argmaxes just seen, which are rarely wrong. The result is that of filling slot by
slot; the number of passes is typically two instead of one an attribute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from steersman.attributes import AttributeSchema
from steersman.records import Prompt, Span
from steersman.seams import ContinuationScorer, Progress, Scored, ScoreRequest


@dataclass(frozen=True)
class FilledLabel:
    """A decoded label.

    Attributes:
        values: attribute -> its likeliest value, in schema order.
        probabilities: attribute -> probability of each value of its scale, ascending.
    """

    values: dict[str, int] = field(default_factory=dict)
    probabilities: dict[str, list[float]] = field(default_factory=dict)


class _Verification:
    """One label on its way: the attributes decided so far, and a draft of the others."""

    def __init__(self, prompt: Prompt, schema: AttributeSchema) -> None:
        self.label = FilledLabel()
        self._prompt, self._schema = prompt, schema
        self._draft = {a.name: a.low if a.default is None else a.default for a in schema.attributes}

    @property
    def is_complete(self) -> bool:
        return len(self.label.values) == len(self._schema.names)

    def _spans(self) -> dict[str, Span]:
        """Where the value of each open attribute stands in the continuation that verifies the draft."""
        spans, values = {}, dict(self.label.values)
        decided = len(self._schema.encode(values))
        for name in self._schema.names[len(values) :]:
            values[name] = self._draft[name]
            end = len(self._schema.encode(values)) - decided
            spans[name] = (end - len(str(values[name])), end)
        return spans

    def request(self, end: str) -> ScoreRequest:
        decided = self._schema.encode(self.label.values)
        drafted = self._schema.encode({**self._draft, **self.label.values})
        return ScoreRequest(
            prompt=self._prompt.model_copy(update={"text": self._prompt.text + decided}),
            continuation=drafted.removeprefix(decided) + end,
            alternatives={
                span: [str(value) for value in self._schema[name].values] for name, span in self._spans().items()
            },
            compare_only=True,
        )

    def take(self, scored: Scored) -> None:
        """Decide every attribute up to the first that the draft had wrong; the others' likeliest values are drafted."""
        draft_holds = True
        for name, span in self._spans().items():
            probabilities = _softmax(scored.alternatives[span])
            likeliest = self._schema[name].low + probabilities.index(max(probabilities))
            if draft_holds:
                self.label.values[name] = likeliest
                self.label.probabilities[name] = probabilities
                draft_holds = likeliest == self._draft[name]
            self._draft[name] = likeliest


def _softmax(logprobs: Sequence[float]) -> list[float]:
    highest = max(logprobs)
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]


def fill(
    scorer: ContinuationScorer,
    items: Sequence[tuple[Prompt, AttributeSchema]],
    end: str,
    progress: Progress | None = None,
) -> list[FilledLabel]:
    """The label of each item, all items verified together.

    Args:
        scorer: the model.
        items: a prompt that ends right before the label string, and the attributes to decide.
        end: what follows a label string.
        progress: called with the number of further labels.
    """
    labels = [_Verification(prompt, schema) for prompt, schema in items]
    while open_labels := [label for label in labels if not label.is_complete]:
        for label, scored in zip(open_labels, scorer.score([label.request(end) for label in open_labels]), strict=True):
            label.take(scored)
        if progress:
            progress(sum(label.is_complete for label in open_labels))
    return [label.label for label in labels]
