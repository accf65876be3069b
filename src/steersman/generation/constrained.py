"""Label strings by constrained decoding: draft all values, verify them in one pass, keep what was right.

A prompt that ends right before a label string, and a schema, go in; for every attribute its distribution comes out,
given the prompt and the values decided before it:

    P(v_i | prompt, v_1 ... v_{i-1}),   v_i = argmax (the lowest of equals),

normalised over the scale. One scoring request reads the distributions of all attributes under a drafted label; they
hold up to the first whose draft is not its argmax. That one is corrected, everything before it joins the prompt, and
the rest is drafted anew with the argmaxes just seen, which are rarely wrong. Labels of one data set are alike, so a
few items go first and the others' drafts are the values most common among theirs. The result is that of filling slot by
slot, whatever was drafted; most labels take a single pass instead of one an attribute.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from steersman.attributes import Attribute, AttributeSchema
from steersman.records import Prompt, Span
from steersman.seams import ContinuationScorer, Progress, Scored, ScoreRequest

FIRST = 1 / 8
"""Share of the items that go first."""


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

    def __init__(self, prompt: Prompt, schema: AttributeSchema, common: Mapping[str, int]) -> None:
        self.label = FilledLabel()
        self._prompt, self._schema = prompt, schema
        self._draft = {attribute.name: _drafted(attribute, common) for attribute in schema.attributes}

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


def _drafted(attribute: Attribute, common: Mapping[str, int]) -> int:
    """The value common among the labels before, the attribute's default, or its lowest: the first of these it has."""
    value = common.get(attribute.name, attribute.default)
    return attribute.low if value is None or value not in attribute.values else value


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
    """The label of each item; some first, then all others together.

    Args:
        scorer: the model.
        items: a prompt that ends right before the label string, and the attributes to decide.
        end: what follows a label string.
        progress: called with the number of further labels.
    """
    labels: list[FilledLabel] = []
    num_first = math.ceil(len(items) * FIRST)
    for part in (items[:num_first], items[num_first:]):
        common = _most_common([label.values for label in labels])
        verifications = [_Verification(prompt, schema, common) for prompt, schema in part]
        while unfinished := [one for one in verifications if not one.is_complete]:
            for one, scored in zip(unfinished, scorer.score([one.request(end) for one in unfinished]), strict=True):
                one.take(scored)
            if progress:
                progress(sum(one.is_complete for one in unfinished))
        labels += [one.label for one in verifications]
    return labels


def _most_common(labels: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Each attribute's most common value."""
    counts: dict[str, Counter[int]] = {}
    for label in labels:
        for name, value in label.items():
            counts.setdefault(name, Counter())[value] += 1
    return {name: values.most_common(1)[0][0] for name, values in counts.items()}
