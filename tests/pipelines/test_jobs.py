"""A training run from its recipe to its folder: what it writes, how it resumes, what it refuses."""

import random
from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import load_file

from steersman import jsonl
from steersman.card import ModelCard
from steersman.config import validate
from steersman.errors import ConfigError, DataError, NonFiniteError, OutputError
from steersman.models.load import load_model
from steersman.pipelines.jobs import TrainConfig, run_training
from steersman.training import checkpoint

ANSWERS = ["Paris.", "Because it saw the shore.", "There are 3 apples left, and 12 pears.", "Thank you very much!"]


def conversation(number, **record):
    """A question, an answer, a second question, a second answer; the first answer is labelled."""
    choose = random.Random(number)
    turns = [
        {"from": "User", "value": "What is the capital of France?", "label": None},
        {"from": "Assistant", "value": choose.choice(ANSWERS), "label": f"quality:{number % 5},humor:{number % 3}"},
        {"from": "User", "value": "Tell me more.", "label": None},
        {"from": "Assistant", "value": choose.choice(ANSWERS), "label": None},
    ][: choose.choice((2, 4))]
    return {"system": "Answer.\n", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns, **record}


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """`recipe(**overrides)` -> the config of a short run on 24 conversations, with a validation set."""
    jsonl.write(tmp_path / "train.jsonl", (conversation(number) for number in range(24)))
    jsonl.write(tmp_path / "val.jsonl", (conversation(number) for number in range(100, 106)))

    def make(**overrides):
        data = {
            "model": str(tiny_model_folder),
            "output": str(tmp_path / "run"),
            "role": "sft",
            "template": {"control": "special"},
            "attributes": "oasst",
            "data": {"train": [{"path": str(tmp_path / "train.jsonl")}], "validation": {"val": str(tmp_path / "val.jsonl")}},
            "seq_len": 128,
            "batch": {"sequences": 4, "micro_tokens": 256},
            "steps": 8,
            "optim": {"lr": 1e-2, "warmup_steps": 2},
            "precision": "float32",
            "validation": {"every": 4},
            "checkpoint": {"every": 3},
            **overrides,
        }
        return validate(data, TrainConfig, "recipe")

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def rows(folder: Path) -> list[dict]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def test_a_run_writes_what_it_says(recipe, tmp_path):
    reports = []
    result = run_training(recipe(), reports.append)
    run = tmp_path / "run"
    assert (result.best, result.last) == (run / "best", run / "last")
    assert [report.step for report in reports] == list(range(1, 9))
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert rows(run)[-1]["loss"] < 0.8 * rows(run)[0]["loss"]
    validated = {row["step"]: row["validation.val.loss"] for row in rows(run) if "validation.val.loss" in row}
    assert list(validated) == [4, 8]
    assert result.metrics["best_validation_loss"] == min(validated.values())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000008"]

    card = ModelCard.load(result.last)
    assert card.role == "sft"
    assert card.attributes.names == ("quality", "humor")  # of oasst's twelve, those that the data has
    assert (card.system, card.seq_len, card.template.control) == ("Answer.\n", 128, "special")
    assert [parent.kind for parent in card.parents] == ["model", "data", "data"]
    loaded = load_model(result.last, precision="float32")
    assert loaded.encoder.encode("<extra_id_1>").ids != []


def test_a_finished_run_is_not_done_again(recipe):
    first = run_training(recipe())
    stamp = (first.last / "model.safetensors").stat().st_mtime_ns
    again = run_training(recipe(), on_step=lambda report: pytest.fail("trained again"))
    assert again == first
    assert (first.last / "model.safetensors").stat().st_mtime_ns == stamp
