"""Draft and verify against filling label strings slot by slot."""

import math
import random
from collections.abc import Sequence

import pytest
import torch

from steersman.attributes import OASST, Attribute, AttributeSchema
from steersman.generation.constrained import FilledLabel, fill
from steersman.generation.engine import Engine
from steersman.records import Prompt
from steersman.seams import Progress, Scored, ScoreRequest

WIDE = AttributeSchema(
    attributes=(Attribute(name="a", high=11), Attribute(name="b", low=-1, high=1), Attribute(name="c"))
)


class FakeScorer:
    """A model with preferences of its own for each attribute; with probability `quirk` the text before changes them."""

    def __init__(self, quirk: float) -> None:
        self.quirk = quirk
        self.passes = 0
        self.num_requests = 0

    def logprobs(self, before: str, candidates: Sequence[str]) -> list[float]:
        name = before.rpartition(",")[2]
        surprising = random.Random(before).random() < self.quirk
        chance = random.Random(before if surprising else name)
        weights = [chance.random() for _ in candidates]
        return [math.log(weight / sum(weights) / 2) for weight in weights]

    def score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored]:
        self.passes += 1
        self.num_requests += len(requests)
        return [
            Scored(
                token_ids=[],
                logprobs=[],
                alternatives={
                    span: self.logprobs(request.prompt.text + request.continuation[: span[0]], candidates)
                    for span, candidates in request.alternatives.items()
                },
            )
            for request in requests
        ]


def slot_by_slot(scorer: FakeScorer | Engine, prompt: Prompt, schema: AttributeSchema, end: str) -> FilledLabel:
    """One request a slot, the seed protocol: the values so far stand in the prompt."""
    label = FilledLabel()
    for name in schema.names:
        before = schema.encode(label.values)
        before += f",{name}:" if before else f"{name}:"
        values = [str(value) for value in schema[name].values]
        after = "," if name != schema.names[-1] else end
        request = ScoreRequest(
            prompt=Prompt(text=prompt.text + before, literal=prompt.literal),
            continuation=values[0] + after,
            alternatives={(0, len(values[0])): values},
        )
        logprobs = torch.tensor(scorer.score([request])[0].alternatives[0, len(values[0])], dtype=torch.float64)
        label.probabilities[name] = logprobs.softmax(0).tolist()
        label.values[name] = int(values[int(logprobs.argmax())])
    return label


def assert_equal(filled: FilledLabel, expected: FilledLabel, tolerance: float) -> None:
    assert filled.values == expected.values
    assert list(filled.values) == list(expected.values)
    for name, probabilities in expected.probabilities.items():
        assert filled.probabilities[name] == pytest.approx(probabilities, abs=tolerance)
        assert sum(filled.probabilities[name]) == pytest.approx(1)


@pytest.mark.parametrize("schema", [OASST, WIDE, OASST.restrict({"humor"})])
@pytest.mark.parametrize("quirk", [0.0, 0.3, 1.0])
def test_equals_slot_by_slot(schema: AttributeSchema, quirk: float):
    prompts = [Prompt(text=f"answer {i},") for i in range(20)]
    scorer, counted = FakeScorer(quirk), []
    labels = fill(scorer, [(prompt, schema) for prompt in prompts], "\n", counted.append)
    for prompt, label in zip(prompts, labels, strict=True):
        assert_equal(label, slot_by_slot(FakeScorer(quirk), prompt, schema, "\n"), 1e-9)
    assert sum(counted) == 20
    assert scorer.passes <= 2 * len(schema.names)
    if quirk == 0.0:  # a model that looks at nothing but the attribute: the drafts of the first three are wrong once
        first_wrong = 3 if len(schema.names) > 1 else 0
        assert scorer.num_requests == 20 + first_wrong
        assert scorer.passes <= 3


def test_items_may_have_different_schemas_and_none():
    scorer = FakeScorer(0.3)
    labels = fill(
        scorer, [(Prompt(text="x"), OASST), (Prompt(text="y"), WIDE), (Prompt(text="z"), AttributeSchema.of())], "\n"
    )
    assert [tuple(label.values) for label in labels] == [OASST.names, WIDE.names, ()]
    assert fill(scorer, [], "\n") == []


def test_a_draft_that_is_right_needs_one_pass():
    right = fill(FakeScorer(1.0), [(Prompt(text="x"), OASST)], "\n")[0]
    drafted = AttributeSchema(
        attributes=tuple(a.model_copy(update={"default": right.values[a.name]}) for a in OASST.attributes)
    )
    scorer = FakeScorer(1.0)
    assert fill(scorer, [(Prompt(text="x"), drafted)], "\n")[0] == right
    assert scorer.num_requests == 1


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_equals_slot_by_slot_on_a_model(load, family):
    loaded = load(family)
    prompts = [
        Prompt(text=f"<extra_id_1>User\n{words}\n<extra_id_1>Assistant\nParis.\n<extra_id_2>")
        for words in ("What is the capital?", "Tell me a joke about the sea", "a")
    ]
    labels = fill(Engine(loaded), [(prompt, OASST) for prompt in prompts], "\n")
    naive = Engine(loaded, prefix_cache_tokens=0)
    for prompt, label in zip(prompts, labels, strict=True):
        assert_equal(label, slot_by_slot(naive, prompt, OASST, "\n"), 1e-4)
    assert len({tuple(label.values.values()) for label in labels}) > 1
