"""The metrics file over a resume, and what is asked for but not installed."""

import sys
from contextlib import closing

import pytest

from steersman.errors import ConfigError
from steersman.training import metrics
from steersman.training.metrics import LogConfig, MetricsLog


def test_rows_after_the_step_of_the_checkpoint_are_dropped(tmp_path):
    with closing(MetricsLog(tmp_path, LogConfig(), 0, {})) as log:
        for step in (1, 2, 3, 4):
            log.write({"step": step, "loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":5,"lo')  # the process was killed here
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4]
    with closing(MetricsLog(tmp_path, LogConfig(), 2, {})) as log:
        log.write({"step": 3, "loss": 0.5})
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.5}]


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'steersman\[tracking\]'"):
        MetricsLog(tmp_path, LogConfig(wandb="project"), 0, {})


def test_numbers_reach_weights_and_biases(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def log(self, numbers, step):
            calls.append((step, numbers))

        def finish(self):
            calls.append("finished")

    class FakeModule:
        @staticmethod
        def init(**options):
            calls.append(options)
            return FakeRun()

    monkeypatch.setitem(sys.modules, "wandb", FakeModule)
    with closing(MetricsLog(tmp_path, LogConfig(wandb="steering"), 0, {"seed": 1})) as log:
        log.write({"step": 1, "loss": 2.0})
    assert (calls[0]["project"], calls[0]["config"], calls[0]["resume"]) == ("steering", {"seed": 1}, "allow")
    assert calls[1:] == [(1, {"loss": 2.0}), "finished"]
