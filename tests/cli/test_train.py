"""`steersman train`: which recipe it takes, and what it shows. Whole runs: tests/pipelines/test_jobs.py."""

import pytest

from steersman.cli import main, progress
from steersman.cli.train import training_progress
from steersman.training.loop import Report


def test_a_recipe_of_the_other_role_is_refused(tmp_path, capsys):
    (tmp_path / "predictor.yaml").write_text("role: attributes\n")
    with pytest.raises(SystemExit) as end:
        main(["train", "sft", str(tmp_path / "predictor.yaml")])
    assert end.value.code == 2
    assert f"run steersman train attributes {tmp_path}" in capsys.readouterr().err


def test_an_unknown_key_is_refused_with_the_nearest_valid_one(tmp_path, capsys):
    (tmp_path / "sft.yaml").write_text("model: m\n")
    with pytest.raises(SystemExit) as end:
        main(["train", "sft", str(tmp_path / "sft.yaml"), "optim.lrr=1"])
    assert end.value.code == 2
    assert "unknown key 'optim.lrr'; did you mean 'lr'" in capsys.readouterr().err


def test_each_step_shows_loss_rate_and_learning_rate(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    numbers = {"metrics": {}, "grad_norm": 1.0, "num_tokens": 300, "seconds": 0.5, "num_steps": 9}
    with training_progress("train") as on_step:
        on_step(Report(step=8, loss=1.5, lr=2e-5, num_trained=120, **numbers))
        on_step(Report(step=9, loss=1.25, lr=1e-5, num_trained=120, validation={"oasst": {"loss": 1.75}}, **numbers))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train: 1 of 2 steps")
    assert lines[0].endswith("loss 1.5000, 600 tokens/s, lr 2.00e-05")
    assert lines[1].endswith("lr 1.00e-05, oasst 1.7500")
