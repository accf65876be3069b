"""NeMo conversations: passed through whole, labels checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from steersman.errors import ConfigError, DataError
from steersman.sources.nemo import NemoConfig, prepare_nemo

RECORD = {
    "system": "S\n\n",
    "mask": "User",
    "type": "TEXT_TO_VALUE",
    "conversations": [
        {"from": "User", "value": "q", "label": None},
        {"from": "Assistant", "value": "a", "label": "quality:4,humor:0", "gt_label": "quality:3", "train": False},
        {"from": "User", "value": "q2", "label": None},
        {"from": "Assistant", "value": "a2", "label": "quality:1,lang:en"},
    ],
    "tree_id": "T",
    "dataset": "oasst",
}


def run(
    tmp_path: Path, *records: dict[str, Any], prefix: str = "out", **options: Any
) -> tuple[list[dict[str, Any]], Any]:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {"input": (str(path),), "output_prefix": str(tmp_path / prefix), "split_ratio": 1.0, "overwrite": True}
    summary = prepare_nemo(NemoConfig.model_validate({**config, **options}))
    return [json.loads(line) for line in (tmp_path / f"{prefix}_train.jsonl").read_text().splitlines()], summary


def test_a_record_passes_through_whole(tmp_path: Path) -> None:
    (record,), summary = run(tmp_path, RECORD)
    assert record == RECORD
    assert summary.attributes.names == ("quality", "humor")
    assert summary.attributes.language


def test_absent_keys_are_written_out(tmp_path: Path) -> None:
    (record,), summary = run(tmp_path, {"conversations": [{"from": "User", "value": "q"}]})
    turns = [{"from": "User", "value": "q", "label": None}]
    assert record == {"system": "", "mask": "User", "type": None, "conversations": turns}
    assert summary.attributes is None


def test_derived_attributes_come_last_but_before_the_language(tmp_path: Path) -> None:
    (record,), _ = run(tmp_path, RECORD, derive=("verbosity",))
    labels = [turn["label"] for turn in record["conversations"]]
    assert labels == [None, "quality:4,humor:0,verbosity:0", None, "quality:1,verbosity:2,lang:en"]


def test_the_schema_of_an_earlier_preparation(tmp_path: Path) -> None:
    (first,), _ = run(tmp_path, RECORD, derive=("verbosity",), prefix="first")
    (record,), summary = run(tmp_path, first, label_schema=str(tmp_path / "first"))
    assert record == first
    assert [(a.name, a.derived) for a in summary.attributes.attributes][-1] == ("verbosity", True)
    with pytest.raises(ConfigError, match="'nowhere' is none of oasst, helpsteer, merged, nor an output prefix"):
        run(tmp_path, RECORD, label_schema="nowhere")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": []}, "conversations: List should have at least 1 item"),
        ({"conversations": [{"value": "q"}]}, "conversations.0.from: Field required"),
        ({"conversations": [{"from": "User", "value": None}]}, "conversations.0.value: Input should be a valid string"),
        ({"type": "VALUE"}, "type: Input should be 'TEXT_TO_VALUE' or 'VALUE_TO_TEXT'"),
        ({"mask": ""}, "mask names no role"),
        ({"conversations": [{"from": "A", "value": "", "label": "quality:7"}]}, "quality must be .* 0 to 4, not 7"),
        ({"conversations": [{"from": "A", "value": "", "label": "charm:1"}]}, "no attribute 'charm' in the schema"),
        ({"conversations": [{"from": "A", "value": "", "label": "good"}]}, "expected name:value"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"in.jsonl:2: .*{reason}"):
        run(tmp_path, RECORD, {**RECORD, **change})
    records, summary = run(tmp_path, RECORD, {**RECORD, **change}, on_error="skip")
    assert (records, summary.rejects) == ([RECORD], 1)
