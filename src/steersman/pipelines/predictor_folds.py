"""Attribute predictors by cross-validation over trees: each labelled turn is predicted once, by a model that never saw
its tree.

In: raw labelled OASST files. Out: for each of K folds, a predictor trained on the other folds' trees (a few of which
choose its best checkpoint), its predictions on the fold, and the quality of all predictions together.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.evaluation import pictures
from steersman.evaluation.predictor import (
    HumanValues,
    PredictedTurn,
    PredictorReport,
    measure,
    predicted_turns,
    reference_values,
)
from steersman.randomness import derive_seed
from steersman.records import Conversation
from steersman.sources.oasst import OasstConfig, prepare_oasst

VALIDATION_SHARE = 0.08
"""Of a fold's training trees, those that choose the best checkpoint."""


class Fold(NamedTuple):
    """Files of one predictor: TEXT_TO_VALUE conversations."""

    train: Path
    validation: Path
    test: Path

    @classmethod
    def of(cls, folder: Path, number: int) -> "Fold":
        """The files of fold `number` (from 1) below a folder."""
        return cls(*(folder / f"fold-{number}" / f"{name}.jsonl" for name in cls._fields))


def prepare_folds(config: OasstConfig, folder: Path, num_folds: int) -> list[Fold]:
    """Split the trees into folds and write each predictor's files.

    Args:
        config: what to read and how; its prefix, type and split are replaced.
    """
    folds = []
    for number in range(1, num_folds + 1):
        fold = Fold.of(folder, number)
        fold.train.parent.mkdir(parents=True, exist_ok=True)
        prefix = str(fold.train.with_name("trees"))
        own = {"output_prefix": prefix, "fold": f"{number}/{num_folds}", "type": "TEXT_TO_VALUE", "train_once": True}
        prepare_oasst(config.model_copy(update={**own, "derive": (), "overwrite": True}))
        rest = list(jsonl.read(f"{prefix}_train.jsonl", Conversation))
        chosen = _choose_trees(rest, VALIDATION_SHARE, config.seed)
        jsonl.write(fold.train, (c for c in rest if tree_of(c) not in chosen), overwrite=True)
        jsonl.write(fold.validation, (c for c in rest if tree_of(c) in chosen), overwrite=True)
        Path(f"{prefix}_val.jsonl").replace(fold.test)
        folds.append(fold)
    return folds


def tree_of(conversation: Conversation) -> str:
    """The id of the tree that a conversation is a path of."""
    return str((conversation.model_extra or {})["tree_id"])


def _choose_trees(conversations: Iterable[Conversation], share: float, seed: int) -> set[str]:
    """At least one tree, by its id and the seed alone."""
    trees = sorted({tree_of(c) for c in conversations}, key=lambda tree: derive_seed(seed, "validation", tree))
    return set(trees[: max(1, round(share * len(trees)))])


def measure_folds(
    folds: Sequence[Fold], predicted: Sequence[Path], schema: AttributeSchema, human: HumanValues | None
) -> tuple[PredictorReport, list[PredictedTurn]]:
    """The quality of all folds' predictions together, and the predictions."""
    turns: list[PredictedTurn] = []
    num_unpredicted = 0
    for number, path in enumerate(predicted):
        conversations = jsonl.read(path, Conversation)
        found, num_missing = predicted_turns(conversations, schema, fold=number, human_values=human)
        turns += found
        num_unpredicted += num_missing
    references = [reference_values(jsonl.read(fold.train, Conversation), schema, human) for fold in folds]
    return measure(turns, schema, references, num_unpredicted), turns


def write_quality(report: PredictorReport, turns: Sequence[PredictedTurn], folder: Path) -> dict[str, float]:
    """Write `report.json`, `predictions.jsonl` and `predictor.png` / `.svg`; returns the figures."""
    jsonl.write(folder / "predictions.jsonl", turns, overwrite=True)
    jsonl.write_bytes(folder / "report.json", report.model_dump_json(indent=2).encode())
    for kind in ("svg", "png"):
        pictures.save(pictures.predictor_quality(report), folder / f"predictor.{kind}")
    return report.figures()
