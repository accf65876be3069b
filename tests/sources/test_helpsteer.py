"""HelpSteer rows: labels, earlier turns in prompts, forms as published."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from steersman.errors import DataError
from steersman.sources.helpsteer import prepare_helpsteer, split_prompt
from steersman.sources.prepare import ConversationConfig

RATINGS = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
ROW = {"prompt": "c#", "response": "C# is a language.", **RATINGS}


def run(path: Path, **options: Any) -> list[dict[str, Any]]:
    prefix = path.with_name("out")
    config = {"input": (str(path),), "output_prefix": str(prefix), "split_ratio": 1.0, "overwrite": True, **options}
    prepare_helpsteer(ConversationConfig.model_validate(config))
    return [json.loads(line) for line in Path(f"{prefix}_train.jsonl").read_text().splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_a_row_and_its_label(tmp_path: Path) -> None:
    (record,) = run(write(tmp_path / "train.jsonl.gz", [{**ROW, "id": 7}]), system="S")
    label = "helpfulness:3,correctness:4,coherence:4,complexity:2,verbosity:1"
    assert record == {
        "system": "S",
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [
            {"from": "User", "value": "c#", "label": None},
            {"from": "Assistant", "value": "C# is a language.", "label": label},
        ],
        "id": 7,
    }


def test_parquet_as_published(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{**ROW, "prompt": f"p{n}", "helpfulness": n} for n in range(5)]
    schema = pyarrow.schema([("prompt", "string"), ("response", "string"), *((name, "int32") for name in RATINGS)])
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), tmp_path / "train.parquet")
    expected = run(write(tmp_path / "train.jsonl", rows))
    assert run(tmp_path / "train.parquet") == expected
    assert len(expected) == 5


def test_earlier_turns_in_a_prompt_are_turns_that_are_not_trained(tmp_path: Path) -> None:
    prompt = "Hi\n<extra_id_1>Assistant\nHello\nyou\n<extra_id_1>User\nBye"
    (record,) = run(write(tmp_path / "train.jsonl", [{**ROW, "prompt": prompt}]))
    turns = [(turn["from"], turn["value"], turn.get("train", True)) for turn in record["conversations"]]
    assert turns == [
        ("User", "Hi", True),
        ("Assistant", "Hello\nyou", False),
        ("User", "Bye", True),
        ("Assistant", "C# is a language.", True),
    ]
    assert [turn["label"] is None for turn in record["conversations"]] == [True, True, True, False]


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("What does <extra_id_1> mean?", ["What does <extra_id_1> mean?"]),
        ("<extra_id_1>Assistant without a line break", ["<extra_id_1>Assistant without a line break"]),
        ("a\n\n<extra_id_1>Assistant\n\nb\n\n<extra_id_1>User\n\nc", ["a", "b", "c"]),
        ("a<extra_id_1>Assistant\nb<extra_id_1>User\nc", ["a", "b", "c"]),
        ("", [""]),
    ],
)
def test_where_a_prompt_is_split(prompt: str, values: list[str]) -> None:
    assert [turn["value"] for turn in split_prompt(prompt)] == values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, '"prompt" is missing'),
        ({"response": 3}, '"response" is missing or no string'),
        ({"helpfulness": 5}, "helpfulness must be a whole number from 0 to 4, not 5"),
        ({"coherence": 1.5}, "coherence must be a whole number from 0 to 4, not 1.5"),
        (dict.fromkeys(RATINGS), "none of the ratings is there"),
        ({"mask": "User"}, "the row has a key 'mask'"),
        ({"prompt": "a\n<extra_id_1>User\nb"}, "two turns of User in a row"),
        ({"prompt": "a\n<extra_id_1>Assistant\nb"}, "ends in a turn of Assistant"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "train.jsonl", [ROW, {**ROW, **change}])
    with pytest.raises(DataError, match=f"train.jsonl:2: .*{reason}"):
        run(path)
    assert len(run(path, on_error="skip")) == 1
