"""Checkpoints for exact resume: `step-00000100/` folders that appear whole or not at all.

A checkpoint is the optimiser's state (weights and moments) as safetensors and the step number. Nothing else is needed:
the order of the data and every random number are functions of (seed, step). Frozen weights stay where they came from.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from steersman import jsonl
from steersman.config import Config
from steersman.errors import ModelError, OutputError, named_errors
from steersman.training.optim import AdamW

TENSORS, STATE = "training.safetensors", "state.json"
NUM_UPDATES = "num_updates"


class CheckpointConfig(Config):
    """When to save the training state, and how many to keep; the last step is always saved.

    Attributes:
        every: steps from one checkpoint to the next; None for the last step alone.
        keep: how many of the newest stay.
    """

    every: int | None = Field(default=None, ge=1)
    keep: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands.

    Attributes:
        step: steps done.
        best_loss: lowest validation loss so far, if there was any validation.
    """

    step: int = 0
    best_loss: float | None = None


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    names = (path.name for path in folder.glob("step-*"))
    return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def save(folder: Path, state: TrainingState, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Commit a checkpoint, then drop all but the newest `keep`.

    Raises:
        OutputError: it cannot be written; earlier checkpoints are untouched.
    """
    path = _path(folder, state.step)
    temporary = folder / f".{path.name}.tmp"
    with named_errors(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_file(dict(tensors), temporary / TENSORS)
            jsonl.write_bytes(temporary / STATE, orjson.dumps({"step": state.step, "best_loss": state.best_loss}))
            _sync(temporary / TENSORS)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(folder)
        except SafetensorError as error:
            raise OutputError(
                f"{path}: the checkpoint could not be written ({error}); earlier ones are safe: "
                "free some space and run again"
            ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for step in steps(folder)[:-keep]:
            _drop(folder, step)
    return path


def counted(optimizer: AdamW) -> dict[str, Tensor]:
    """An optimiser's state with the number of its updates, where that does not follow from the step."""
    return {**optimizer.state(), NUM_UPDATES: torch.tensor(optimizer.num_steps)}


def restore_counted(optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Continue from such a state."""
    optimizer.load_state(tensors, int(tensors[NUM_UPDATES]))


def drop_after(folder: Path, last: int) -> None:
    """Delete the checkpoints of later steps than `last`: they are to be done again."""
    for step in steps(folder):
        if step > last:
            _drop(folder, step)


def _drop(folder: Path, step: int) -> None:
    # Renamed first, so that what has a checkpoint's name is always whole.
    dropped = folder / f".{_path(folder, step).name}.old"
    os.replace(_path(folder, step), dropped)
    shutil.rmtree(dropped, ignore_errors=True)


def load(folder: Path, step: int) -> tuple[TrainingState, dict[str, Tensor]]:
    """A checkpoint's state and tensors (on the CPU)."""
    path = _path(folder, step)
    try:
        state = TrainingState(**orjson.loads((path / STATE).read_bytes()))
        return state, load_file(path / TENSORS)
    except (OSError, SafetensorError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{path}: damaged checkpoint ({error}); delete it and run again from the one before") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
