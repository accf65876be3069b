"""What verbs print in the end."""

import pytest

from steersman.cli.output import print_table, wrote


def test_paths_stay_on_one_line_and_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/".join(["runs[1]"] * 20)
    wrote(path, "1,234 records")
    assert capsys.readouterr().out == f"wrote {path}: 1,234 records\n"


def test_a_table_of_figures(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"attribute": "quality", "Spearman": 0.56789, "turns": 1497}, {"attribute": "[humor]", "turns": 2}]
    print_table("Predictor", rows)
    cells = [line.strip("│").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in cells] == [["quality", "0.568", "1,497"], ["[humor]", "–", "2"]]


def test_no_rows_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Empty", [])
    assert capsys.readouterr().out == ""
