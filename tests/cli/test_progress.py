"""Progress where stderr is no terminal, and on one of several processes."""

import pytest

from steersman.cli import progress
from steersman.cli.progress import progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_plain_lines_tell_the_recent_rate_and_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("annotate", total=2000, unit="turns") as advance:
        advance(1000)  # what an earlier run had done
        clock.now += 11
        advance(0)
        for _ in range(10):
            clock.now += 2
            advance(5)
        clock.now += 5
    assert capsys.readouterr().err.splitlines() == [
        "annotate: 1,000 of 2,000 turns, 90.9 turns/s, 0:00:11 left",
        "annotate: 1,025 of 2,000 turns, 2.5 turns/s, 0:06:30 left",
        "annotate: 1,050 of 2,000 turns, 2.5 turns/s, 0:06:20 left",
        "annotate: 1,050 turns done in 0:00:36",
    ]


def test_an_unknown_total_gives_no_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("read", total=None, unit="lines") as advance:
        clock.now += 10
        advance(5000, "a note")
    assert capsys.readouterr().err.splitlines() == [
        "read: 5,000 lines, 500 lines/s, a note",
        "read: 5,000 lines done in 0:00:10",
    ]


def test_only_the_first_process_reports(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress_bar("train", total=3, unit="steps") as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_live_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("train", total=3, unit="steps") as advance:
        advance(3, "loss 1.5")
    printed = capsys.readouterr().err
    assert "3/3" in printed
    assert "loss 1.5" in printed
    assert "steps/s" in printed
