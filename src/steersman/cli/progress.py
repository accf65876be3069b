"""Progress of a long verb: a live bar with throughput and time left, or a plain line now and then where stderr is no
terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_SECONDS = 10.0


class Advance(Protocol):
    """Told of further units done, with anything worth showing beside the bar, such as the loss."""

    def __call__(self, num_more: int, /, note: str = "") -> None: ...


class RateColumn(ProgressColumn):
    """Recent throughput in units a second."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or 0.0, self.unit), style="progress.data.speed")


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.1f} {unit}/s" if speed < 100 else f"{speed:,.0f} {unit}/s"


@contextlib.contextmanager
def progress_bar(description: str, *, total: int | None, unit: str) -> Iterator[Advance]:
    """Yields `advance(n)`, to be called with the number of further units done; `total` None when it is unknown.

    Everything goes to stderr. Of several processes under torchrun only the first reports.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda num_more, /, note="": None
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(unit),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(description, total=total, note="")
            yield lambda num_more, /, note="": progress.update(task, advance=num_more, note=note)
    else:
        with _plain_lines(description, total, unit) as advance:
            yield advance


@contextlib.contextmanager
def _plain_lines(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    """A line every `LINE_SECONDS`, with the rate since the line before, and one at the end."""
    num_done = num_shown = 0
    start = shown_at = time.monotonic()

    def advance(num_more: int, /, note: str = "") -> None:
        nonlocal num_done, num_shown, shown_at
        num_done += num_more
        now = time.monotonic()
        if now - shown_at < LINE_SECONDS:
            return
        speed = (num_done - num_shown) / (now - shown_at)
        num_shown, shown_at = num_done, now
        line = f"{description}: {num_done:,} {unit}, {_rate(speed, unit)}"
        if total and speed > 0:
            left = timedelta(seconds=round((total - num_done) / speed))
            line = f"{description}: {num_done:,} of {total:,} {unit}, {_rate(speed, unit)}, {left} left"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    yield advance
    seconds = time.monotonic() - start
    took = timedelta(seconds=round(seconds))
    print(f"{description}: {num_done:,} {unit} done in {took}", file=sys.stderr, flush=True)
