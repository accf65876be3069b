"""Predictor quality, worked by hand on a few turns and checked against constants on many."""

from collections.abc import Sequence

import numpy as np
import pytest

from steersman.attributes import AttributeSchema
from steersman.errors import DataError
from steersman.evaluation.predictor import PredictedTurn, measure, predicted_turns, reference_values
from steersman.records import Conversation, Judgement, Message

SCHEMA = AttributeSchema.of("quality", "humor", "violence")


def turn(
    index: int, human: dict[str, float], probabilities: dict[str, Sequence[float]], fold: int = 0
) -> PredictedTurn:
    return PredictedTurn(
        id=f"{fold}/{index}",
        tree=f"tree {fold}/{index // 2}",
        fold=fold,
        num_characters=100 + index,
        human=human,
        judgement=Judgement(
            values={name: int(np.argmax(p)) for name, p in probabilities.items()},
            expected={name: float(np.dot(p, range(5))) for name, p in probabilities.items()},
            probabilities={name: list(p) for name, p in probabilities.items()},
        ),
    )


def humans(turns: Sequence[PredictedTurn]) -> dict[str, list[float]]:
    return {name: [t.human[name] for t in turns if name in t.human] for t in turns for name in t.human}


def certain(value: int) -> list[float]:
    return [float(value == v) for v in range(5)]


def test_by_hand() -> None:
    # predicted 3 2 0 1 for human 4 2.4 1 0: ranks 4 3 1 2 against 4 3 2 1, d^2 = 2, rho = 1 - 6*2/(4*15) = 0.8
    human, predicted = [4.0, 2.4, 1.0, 0.0], [3, 2, 0, 1]
    turns = [
        turn(i, {"quality": h}, {"quality": certain(p)}) for i, (h, p) in enumerate(zip(human, predicted, strict=True))
    ]
    report = measure(turns, SCHEMA, [{"quality": [0.0, 1.0, 2.0, 3.0, 4.0]}])
    quality = report.attributes["quality"]
    assert quality.spearman.value == pytest.approx(0.8)
    assert quality.spearman_length == pytest.approx(-1.0), "later turns are longer and worse"
    assert quality.gain_over_length.value == pytest.approx(-0.2), "length alone, turned round, is perfect here"
    assert quality.mae.value == pytest.approx((1 + 0.4 + 1 + 1) / 4)
    assert quality.mae_constant == pytest.approx((2 + 0.4 + 1 + 2) / 4), "the constant is the training median, 2"
    assert quality.exact_match == 0.25
    assert (report.num_turns, report.num_trees, report.num_folds) == (4, 2, 1)


def test_each_fold_has_its_own_constant() -> None:
    turns = [turn(i, {"quality": 1.0}, {"quality": certain(1)}, fold=0) for i in range(2)]
    turns += [turn(i, {"quality": 3.0}, {"quality": certain(3)}, fold=1) for i in range(2)]
    report = measure(turns, SCHEMA, [{"quality": [1.0, 1.0]}, {"quality": [0.0, 0.0]}])
    assert report.attributes["quality"].mae_constant == pytest.approx((0 + 3) / 2)


def test_an_attribute_that_people_labelled_in_one_tree_is_left_out() -> None:
    turns = [turn(i, {"quality": float(i)}, {"quality": certain(i), "humor": certain(0)}) for i in range(4)]
    turns[0].human |= {"humor": 1.0, "violence": 0.0}
    turns[3].human["humor"] = 1.0
    report = measure(turns, SCHEMA, [humans(turns)])
    assert list(report.attributes) == ["quality", "humor"]
    assert report.attributes["humor"].num_turns == 2


def test_an_informed_predictor_beats_length_and_constant_and_an_ignorant_one_does_not() -> None:
    rng = np.random.default_rng(0)
    informed, ignorant = [], []
    for index in range(300):
        value = int(rng.integers(0, 5))
        human = {"quality": float(np.clip(value + rng.normal() * 0.3, 0, 4))}
        near = np.exp(-np.abs(np.arange(5) - value + rng.normal() * 0.5))
        informed.append(turn(index, human, {"quality": list(near / near.sum())}))
        ignorant.append(turn(index, human, {"quality": [0.2] * 5}))
    reference = [humans(informed)]
    good = measure(informed, SCHEMA, reference).attributes["quality"]
    assert good.gain_over_length.low > 0.5
    assert good.mae.high < good.mae_constant
    bad = measure(ignorant, SCHEMA, reference).attributes["quality"]
    assert bad.spearman.value == 0.0
    assert bad.mae.value == pytest.approx(bad.mae_constant, abs=0.15)


def test_an_exact_scorer_gives_no_probabilities() -> None:
    exact = Judgement(values={"quality": 3}, expected={"quality": 3.0})
    turns = [turn(i, {"quality": 3.0}, {"quality": certain(3)}) for i in range(4)]
    turns = [one.model_copy(update={"judgement": exact}) for one in turns]
    assert measure(turns, SCHEMA, [{}]).attributes["quality"].mae.value == 0.0


def test_figures_have_the_documented_keys() -> None:
    turns = [turn(i, {"quality": float(i)}, {"quality": certain(i)}) for i in range(4)]
    figures = measure(turns, SCHEMA, [humans(turns)]).figures()
    wanted = {"n", "exact_match.quality", "mae.quality", "mae_constant.quality", "spearman.quality"}
    wanted |= {"spearman_length.quality", "gain_over_length.quality.low", "gain_over_length.quality.high"}
    assert wanted == set(figures)


def test_a_turn_twice_or_no_label_at_all_is_an_error() -> None:
    one = turn(0, {"quality": 1.0}, {"quality": certain(1)})
    with pytest.raises(DataError, match="twice"):
        measure([one, one], SCHEMA, [{}])
    with pytest.raises(DataError, match="no attribute that the predictor gives"):
        measure([turn(0, {}, {"quality": certain(1)})], SCHEMA, [{}])


def annotated() -> Conversation:
    """Two labelled answers; the first stands in another record of the tree too. A third was too long to predict."""
    extra = {
        "gt_label": "quality:4,humor:1",
        "label_expected": {"quality": 3.1},
        "label_probs": {"quality": certain(3)},
    }
    answer = {"from": "Assistant", "value": "Four", "label": "quality:3", **extra}
    too_long = {"from": "Assistant", "value": "Long", "label": None, "gt_label": "quality:1", "label_error": "longer"}
    user = {"from": "User", "value": "Two and two?"}
    turns = [user, {**answer, "train": False}, user, answer, user, too_long]
    return Conversation.model_validate({"conversations": turns, "tree_id": "t1"})


def test_turns_of_annotated_conversations() -> None:
    turns, num_unpredicted = predicted_turns([annotated()], SCHEMA, fold=1)
    assert num_unpredicted == 1
    (one,) = turns
    assert (one.tree, one.fold, one.num_characters) == ("t1", 1, 4)
    assert one.human == {"quality": 4.0, "humor": 1.0}
    assert (one.judgement.values, one.judgement.expected) == ({"quality": 3}, {"quality": 3.1})


def test_unrounded_human_values_are_preferred() -> None:
    def human(tree: str, turn: Message) -> dict[str, float] | None:
        return {"quality": 3.6} if (tree, turn.value) == ("t1", "Four") else None

    assert predicted_turns([annotated()], SCHEMA, human_values=human)[0][0].human == {"quality": 3.6}
    labelled = Conversation.model_validate(
        {
            "tree_id": "t1",
            "conversations": [
                {"from": "User", "value": "Hi"},
                {"from": "Assistant", "value": "Four", "label": "quality:4"},
                {"from": "Assistant", "value": "Five", "label": "quality:1,humor:0"},
                {"from": "Assistant", "value": "Five", "label": "quality:1,humor:0", "train": False},
            ],
        }
    )
    assert reference_values([labelled], SCHEMA, human) == {"quality": [3.6, 1.0], "humor": [0.0]}
