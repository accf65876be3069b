"""How well an attribute predictor judges turns that people labelled.

In: turns with the human values and what a predictor that never saw their tree says. Out: per attribute, Spearman
between expected and human value beside what answer length alone reaches, the mean absolute error of the posterior
median beside the best constant's, and exact matches; intervals by bootstrap over trees.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from steersman.attributes import AttributeSchema
from steersman.errors import DataError
from steersman.evaluation import statistics
from steersman.evaluation.statistics import Array, Estimate
from steersman.records import Conversation, Judgement, Message

HumanValues = Callable[[str, Message], Mapping[str, float] | None]
"""(tree, turn) -> attribute -> mean human value on the label's scale."""


class PredictedTurn(BaseModel):
    """One labelled turn and its prediction: a line of `predictions.jsonl`.

    Attributes:
        id: unique among the turns.
        tree: what it may share a topic, a writer or a labeller with; resampled whole.
        fold: which predictor judged it.
        num_characters: length of the answer.
        human: attribute -> mean human value on the label's scale, not rounded.
        judgement: what the predictor says.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    tree: str
    fold: int = 0
    num_characters: int
    human: dict[str, float]
    judgement: Judgement


class AttributeQuality(BaseModel):
    """How well one attribute is predicted.

    Attributes:
        num_turns: turns with a human value.
        spearman: of expected value and human value.
        spearman_length: of answer length in characters and human value.
        gain_over_length: spearman - |spearman_length|.
        mae, mae_constant: mean absolute error of the posterior median; of the median of the training values.
        exact_match: share of turns whose likeliest value is the rounded human value.
    """

    model_config = ConfigDict(extra="forbid")

    num_turns: int
    spearman: Estimate
    spearman_length: float
    gain_over_length: Estimate
    mae: Estimate
    mae_constant: float
    exact_match: float


class PredictorReport(BaseModel):
    """Quality per attribute, in schema order; attributes that people labelled in fewer than two trees are left out.

    `num_unpredicted` labelled turns have no prediction, being longer than the predictor's window.
    """

    model_config = ConfigDict(extra="forbid")

    num_turns: int
    num_trees: int
    num_folds: int
    num_unpredicted: int = 0
    attributes: dict[str, AttributeQuality]

    def figures(self) -> dict[str, float]:
        """Flat dotted keys -> numbers."""
        flat: dict[str, float] = {"n": self.num_turns}
        for name, quality in self.attributes.items():
            flat |= {
                f"exact_match.{name}": quality.exact_match,
                f"mae.{name}": quality.mae.value,
                f"mae_constant.{name}": quality.mae_constant,
                f"spearman.{name}": quality.spearman.value,
                f"spearman_length.{name}": quality.spearman_length,
                f"gain_over_length.{name}.low": quality.gain_over_length.low,
                f"gain_over_length.{name}.high": quality.gain_over_length.high,
            }
        return flat


def predicted_turns(
    conversations: Iterable[Conversation],
    schema: AttributeSchema,
    *,
    fold: int = 0,
    human_values: HumanValues | None = None,
) -> tuple[list[PredictedTurn], int]:
    """The turns of annotated conversations that carry a human label, and how many of them were not predicted.

    A turn that is kept out of training (`"train": false`) stands in another record of its tree, and is left to it.

    Args:
        conversations: as `annotate` writes them.
        schema: of the labels.
        fold: which predictor annotated them.
        human_values: unrounded human values, where they are known; the label's whole numbers otherwise.
    """
    turns: list[PredictedTurn] = []
    num_unpredicted = 0
    for number, conversation in enumerate(conversations):
        for index, turn in _trained_turns(conversation):
            extra = turn.model_extra or {}
            if "gt_label" not in extra:
                continue
            if turn.label is None:
                num_unpredicted += 1
                continue
            judgement = Judgement(
                values=schema.parse(turn.label), expected=extra["label_expected"], probabilities=extra["label_probs"]
            )
            turns.append(
                PredictedTurn(
                    id=f"{fold}.{number}.{index}",
                    tree=_tree(conversation) or str(number),
                    fold=fold,
                    num_characters=len(turn.value),
                    human=_human(conversation, turn, extra["gt_label"], schema, human_values),
                    judgement=judgement,
                )
            )
    return turns, num_unpredicted


def reference_values(
    conversations: Iterable[Conversation], schema: AttributeSchema, human_values: HumanValues | None = None
) -> dict[str, list[float]]:
    """Attribute -> the human values of labelled conversations: what a predictor's training turns say of its scale."""
    values: dict[str, list[float]] = {}
    for conversation in conversations:
        for _, turn in _trained_turns(conversation):
            if turn.label is not None:
                for name, value in _human(conversation, turn, turn.label, schema, human_values).items():
                    values.setdefault(name, []).append(value)
    return values


def _trained_turns(conversation: Conversation) -> Iterator[tuple[int, Message]]:
    turns = ((index, conversation.conversations[index]) for index in conversation.spoken_turns())
    return ((index, turn) for index, turn in turns if turn.train)


def _tree(conversation: Conversation) -> str:
    return str((conversation.model_extra or {}).get("tree_id", ""))


def _human(
    conversation: Conversation, turn: Message, label: str, schema: AttributeSchema, human_values: HumanValues | None
) -> dict[str, float]:
    unrounded = human_values(_tree(conversation), turn) if human_values else None
    return dict(unrounded or {name: float(value) for name, value in schema.parse(label).items()})


def measure(
    turns: Sequence[PredictedTurn],
    schema: AttributeSchema,
    references: Sequence[Mapping[str, Sequence[float]]],
    num_unpredicted: int = 0,
) -> PredictorReport:
    """The quality of predictions.

    Args:
        turns: each turn once.
        schema: the attributes to report.
        references: for each fold, the human values its predictor was trained on. They say what a label stands for
            (`statistics.posterior_median`), and their median is the constant to beat.

    Raises:
        DataError: no attribute is left, or a turn stands there twice.
    """
    if len({turn.id for turn in turns}) < len(turns):
        raise DataError("a turn is predicted twice; give each labelled turn once")
    attributes = {}
    for attribute in schema.attributes:
        labelled = [turn for turn in turns if attribute.name in turn.human and attribute.name in turn.judgement.values]
        if len({turn.tree for turn in labelled}) > 1:
            attributes[attribute.name] = _measure_attribute(labelled, attribute.name, attribute.low, references)
    if not attributes:
        raise DataError("no attribute that the predictor gives has human values in two trees or more")
    return PredictorReport(
        num_turns=len(turns),
        num_trees=len({turn.tree for turn in turns}),
        num_folds=len({turn.fold for turn in turns}),
        num_unpredicted=num_unpredicted,
        attributes=attributes,
    )


def _measure_attribute(
    turns: Sequence[PredictedTurn], name: str, low: int, references: Sequence[Mapping[str, Sequence[float]]]
) -> AttributeQuality:
    human_N = np.array([turn.human[name] for turn in turns])
    expected_N = np.array([turn.judgement.expected[name] for turn in turns])
    likeliest_N = np.array([turn.judgement.values[name] for turn in turns])
    length_N = np.array([turn.num_characters for turn in turns])
    median_N, constant_N = np.empty(len(turns)), np.empty(len(turns))
    for fold, reference in enumerate(references):
        of_fold = [index for index, turn in enumerate(turns) if turn.fold == fold]
        if of_fold:
            seen = reference[name] if reference.get(name) else human_N[of_fold]
            median_N[of_fold] = _medians([turns[index].judgement for index in of_fold], name, low, seen)
            constant_N[of_fold] = np.median(seen)

    weights_RN = statistics.group_weights([turn.tree for turn in turns])

    def by_prediction(weights_RN: Array) -> Array:
        return statistics.spearman(expected_N, human_N, weights_RN)

    def by_length(weights_RN: Array) -> Array:
        return statistics.spearman(length_N, human_N, weights_RN)

    return AttributeQuality(
        num_turns=len(turns),
        spearman=statistics.estimate(by_prediction, weights_RN),
        spearman_length=float(by_length(np.ones((1, len(turns))))[0]),
        gain_over_length=statistics.estimate(lambda w: by_prediction(w) - np.abs(by_length(w)), weights_RN),
        mae=statistics.estimate(lambda w: statistics.mean_absolute_error(median_N, human_N, w), weights_RN),
        mae_constant=float(np.abs(constant_N - human_N).mean()),
        exact_match=float((likeliest_N == np.rint(human_N)).mean()),
    )


def _medians(judgements: Sequence[Judgement], name: str, low: int, seen: Sequence[float] | Array) -> Array:
    """Posterior medians; an exact scorer, which gives no probabilities, is certain of its value."""
    if not all(name in judgement.probabilities for judgement in judgements):
        return np.array([float(judgement.values[name]) for judgement in judgements])
    return statistics.posterior_median([judgement.probabilities[name] for judgement in judgements], seen, low)
