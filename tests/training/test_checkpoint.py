"""Checkpoints: whole or absent, a bounded number, bit for bit."""

import pytest
import torch

from steersman.errors import ModelError
from steersman.training import checkpoint
from steersman.training.checkpoint import TrainingState


def save(folder, step, keep=2):
    tensors = {"w": torch.tensor([step, 0.1]), "m": torch.tensor([step], dtype=torch.bfloat16)}
    return checkpoint.save(folder, TrainingState(step=step, best_loss=1 / step), tensors, keep)


def test_the_newest_are_kept_and_come_back_bit_for_bit(tmp_path):
    for step in (5, 100, 20_000_000, 300_000_000):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [20_000_000, 300_000_000]
    assert len(list(tmp_path.iterdir())) == 2
    state, tensors = checkpoint.load(tmp_path, 300_000_000)
    assert state == TrainingState(step=300_000_000, best_loss=1 / 300_000_000)
    assert torch.equal(tensors["w"], torch.tensor([300_000_000, 0.1]))
    assert tensors["m"].dtype == torch.bfloat16


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000000.old").mkdir()
    assert checkpoint.steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [1, 2]
    assert checkpoint.steps(tmp_path / "absent") == []


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = save(tmp_path, 7)
    (path / "training.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ModelError, match=r"step-00000007: damaged checkpoint"):
        checkpoint.load(tmp_path, 7)
