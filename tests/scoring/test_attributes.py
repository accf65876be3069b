import math
from collections.abc import Sequence

import pytest

from steersman.attributes import Attribute, AttributeSchema
from steersman.card import TemplateSpec
from steersman.errors import DataError
from steersman.records import Conversation
from steersman.scoring.attributes import AttributePredictor, expected_value, posterior_median, up_to_last_spoken
from steersman.seams import Progress, Scored, ScoreRequest
from steersman.text.template import Template

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="humor", low=1, high=3)))


class TableScorer:
    """P(value) by the prompt's last turn and the attribute asked for; remembers what it was asked."""

    def __init__(self, table: dict[tuple[str, str], Sequence[float]]) -> None:
        self.table = table
        self.prompts: list[str] = []

    def score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored]:
        results = []
        for request in requests:
            self.prompts.append(request.prompt.text)
            word = request.prompt.text.rpartition("<extra_id_2>")[0].rstrip("\n").rpartition("\n")[2]
            alternatives = {}
            for start, end in request.alternatives:
                label = request.prompt.text.rpartition("<extra_id_2>")[2] + request.continuation[:start]
                name = label.rpartition(",")[2].removesuffix(":")
                alternatives[start, end] = [math.log(p) for p in self.table[word, name]]
            results.append(Scored(token_ids=[], logprobs=[], alternatives=alternatives))
        return results


def conversation(*turns: tuple[str, str, str | None], mask: str = "User") -> Conversation:
    made = [{"from": role, "value": value, "label": label} for role, value, label in turns]
    return Conversation.model_validate({"system": "S", "mask": mask, "conversations": made})


@pytest.fixture
def scorer() -> TableScorer:
    # not normalised: log-probabilities of candidates need not sum to one
    return TableScorer(
        {
            ("good", "quality"): [0.01, 0.04, 0.05, 0.1, 0.3],
            ("good", "humor"): [0.6, 0.3, 0.1],
            ("bad", "quality"): [0.5, 0.1, 0.2, 0.1, 0.1],
            ("bad", "humor"): [0.1, 0.1, 0.2],
        }
    )


@pytest.fixture
def predictor(scorer: TableScorer) -> AttributePredictor:
    return AttributePredictor(scorer, Template(TemplateSpec()), SCHEMA)


def test_judgement_holds_values_probabilities_and_means(predictor: AttributePredictor) -> None:
    (judgement,) = predictor.judge([conversation(("User", "q", None), ("Assistant", "good", None))])
    assert judgement.values == {"quality": 4, "humor": 1}
    assert judgement.probabilities["quality"] == pytest.approx([0.02, 0.08, 0.1, 0.2, 0.6])
    assert judgement.expected["quality"] == pytest.approx(0.08 + 0.2 + 0.6 + 2.4)
    assert judgement.expected["humor"] == pytest.approx(0.6 * 1 + 0.3 * 2 + 0.1 * 3)  # on its own scale


def test_the_last_unmasked_turn_is_judged_with_earlier_labels_and_without_its_own(
    predictor: AttributePredictor, scorer: TableScorer
) -> None:
    asked = conversation(
        ("User", "q", None),
        ("Assistant", "good", "quality:1"),
        ("User", "again", None),
        ("Assistant", "bad", "quality:4"),
        ("User", "thanks", None),
    )
    (judgement,) = predictor.judge([asked])
    assert judgement.values == {"quality": 0, "humor": 3}
    assert scorer.prompts[0] == (
        "<extra_id_0>System\nS\n<extra_id_1>User\nq\n<extra_id_1>Assistant\ngood\n<extra_id_2>quality:1\n"
        "<extra_id_1>User\nagain\n<extra_id_1>Assistant\nbad\n<extra_id_2>"
    )


def test_equal_conversations_are_judged_once_and_all_counted(
    predictor: AttributePredictor, scorer: TableScorer
) -> None:
    good = conversation(("User", "q", None), ("Assistant", "good", None))
    bad = conversation(("User", "q", None), ("Assistant", "bad", None))
    done: list[int] = []
    judgements = predictor.judge([good, bad, good, good], done.append)
    assert [judgement.values["quality"] for judgement in judgements] == [4, 0, 4, 4]
    assert len({*scorer.prompts}) == len(scorer.prompts)
    assert sum(done) == 4


def test_nobody_to_judge() -> None:
    with pytest.raises(DataError, match="no turn to judge"):
        up_to_last_spoken(conversation(("User", "q", None)))


@pytest.mark.parametrize(
    ("probabilities", "low", "median"),
    [
        ([0.1, 0.2, 0.3, 0.2, 0.2], 0, 2),
        ([0.5, 0.0, 0.0, 0.0, 0.5], 0, 0),  # the lower of two medians
        ([0.49, 0.0, 0.0, 0.0, 0.51], 0, 4),  # far from the mean, 2.04
        ([2.0, 3.0, 4.0], 1, 2),  # not normalised, scale from 1
    ],
)
def test_posterior_median(probabilities: list[float], low: int, median: int) -> None:
    assert posterior_median(probabilities, low) == median


def test_the_median_has_the_least_expected_absolute_error() -> None:
    probabilities = [0.05, 0.3, 0.2, 0.1, 0.35]
    errors = [sum(p * abs(v - guess) for v, p in enumerate(probabilities)) for guess in range(5)]
    assert posterior_median(probabilities) == errors.index(min(errors))


def test_expected_value_is_normalised() -> None:
    assert expected_value([1.0, 1.0, 2.0], low=1) == pytest.approx(2.25)
