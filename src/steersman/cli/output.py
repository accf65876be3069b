"""What verbs say on stdout when they are done: what was written and where, and tables of figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def wrote(path: str | Path, note: str = "") -> None:
    """`wrote data_train.jsonl: 1,234 records`, with the path on one line so that it can be copied."""
    Console().print(Text.assemble("wrote ", (str(path), "bold"), f": {note}" if note else ""), soft_wrap=True)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a mapping; the first row's keys are the columns; numbers stand right, floats with three decimals."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in rows[0]))
    Console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
