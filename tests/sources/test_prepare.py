"""What all sources share: splits, folds, sidecar, outputs that are whole or absent, memory that stays flat."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from steersman.attributes import OASST
from steersman.errors import ConfigError, DataError, OutputError
from steersman.sources.inputs import Inputs
from steersman.sources.nemo import NemoConfig, prepare_nemo
from steersman.sources.oasst import OasstConfig, prepare_oasst
from steersman.sources.prepare import Branch, Group, PrepareConfig, Progress, Read, prepare
from steersman.sources.summary import DataSummary


def conversation(question: str, **extra: Any) -> dict[str, Any]:
    turns = [{"from": "User", "value": question}, {"from": "Assistant", "value": "yes", "label": "quality:4"}]
    return {"system": "", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns, **extra}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(prefix: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{prefix}_{split}.jsonl").read_text().splitlines()]


def test_records_that_begin_alike_are_never_split(tmp_path: Path) -> None:
    records = [conversation(f"question {n % 20}", n=n) for n in range(100)]
    path = write(tmp_path / "in.jsonl", records)
    summary = prepare_nemo(NemoConfig(input=(path,), output_prefix=str(tmp_path / "out"), split_ratio=0.5))
    train, val = read(tmp_path / "out", "train"), read(tmp_path / "out", "val")
    questions = [{record["conversations"][0]["value"] for record in part} for part in (train, val)]
    assert questions[0].isdisjoint(questions[1])
    assert (summary.train.groups, summary.val.groups) == (10, 10)
    assert sorted(record["n"] for record in train + val) == list(range(100))
    assert [record["n"] % 20 for record in train[::5]] == [record["n"] for record in train[::5]]  # groups are adjacent


def test_folds_partition_and_depend_on_the_id_alone(tmp_path: Path) -> None:
    records = [conversation(f"q{n}", tree_id=f"t{n}") for n in range(60)]
    path, more = write(tmp_path / "a.jsonl", records[:40]), write(tmp_path / "b.jsonl", records[40:])

    def fold(k: int, *inputs: str) -> tuple[set[str], set[str]]:
        prefix = tmp_path / f"fold{k}"
        prepare_nemo(NemoConfig(input=inputs, output_prefix=str(prefix), fold=f"{k}/3", overwrite=True))
        train, val = ({record["tree_id"] for record in read(prefix, split)} for split in ("train", "val"))
        return train, val

    folds = [fold(k, path, more) for k in (1, 2, 3)]
    every = {record["tree_id"] for record in records}
    assert [train | val for train, val in folds] == [every] * 3
    assert all(train.isdisjoint(val) for train, val in folds)
    assert sorted(name for _, val in folds for name in val) == sorted(every)
    assert all(len(val) > 10 for _, val in folds)
    assert fold(2, path)[1] == folds[1][1] & {record["tree_id"] for record in records[:40]}


def test_validation_files_of_their_own(tmp_path: Path) -> None:
    train_path = write(tmp_path / "t.jsonl", [conversation(f"t{n}") for n in range(9)])
    val_path = write(tmp_path / "v.jsonl", [conversation(f"v{n}") for n in range(4)])
    config = NemoConfig(input=(train_path,), val_input=(val_path,), output_prefix=str(tmp_path / "out"))
    summary = prepare_nemo(config)
    assert (summary.train.records, summary.val.records) == (9, 4)
    assert [record["conversations"][0]["value"] for record in read(tmp_path / "out", "val")] == ["v0", "v1", "v2", "v3"]


def test_the_sidecar_says_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [conversation(f"q{n}") for n in range(10)])
    config = NemoConfig(input=(path,), output_prefix=str(tmp_path / "out"), split_ratio=0.8, derive=("verbosity",))
    summary = prepare_nemo(config)
    assert DataSummary.load(tmp_path / "out") == summary
    assert summary.attributes is not None
    assert [(a.name, a.derived) for a in summary.attributes.attributes] == [("quality", False), ("verbosity", True)]
    assert summary.label_counts == {"quality": (0, 0, 0, 0, 8), "verbosity": (8, 0, 0, 0, 0)}
    with pytest.raises(ConfigError, match="'humor' is not a derived attribute of this data: verbosity"):
        summary.measure("humor", "ha")
    with pytest.raises(DataError, match="no such file"):
        DataSummary.load(tmp_path / "other")
    (tmp_path / "bad_schema.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad_schema.json: train: Field required"):
        DataSummary.load(tmp_path / "bad")


def test_what_is_there_already_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [conversation("q")])
    config = NemoConfig(input=(path,), output_prefix=str(tmp_path / "out"))
    (tmp_path / "out_val.jsonl").write_text("mine")
    with pytest.raises(OutputError, match=r"out_val.jsonl exists already"):
        prepare_nemo(config)
    assert (tmp_path / "out_val.jsonl").read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out_val.jsonl"}
    prepare_nemo(config.model_copy(update={"overwrite": True}))
    assert read(tmp_path / "out", "val") == [conversation("q") | {"conversations": [
        {"from": "User", "value": "q", "label": None}, {"from": "Assistant", "value": "yes", "label": "quality:4"}
    ]}]  # fmt: skip


def test_nothing_to_prepare(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [])
    with pytest.raises(DataError, match=r"nothing to prepare in .*in.jsonl"):
        prepare_nemo(NemoConfig(input=(path,), output_prefix=str(tmp_path / "out")))
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        prepare_nemo(NemoConfig(input=(str(tmp_path / "gone.jsonl"),), output_prefix=str(tmp_path / "out")))


def test_a_derived_attribute_that_people_rated_already(tmp_path: Path) -> None:
    config = NemoConfig(input=("x",), output_prefix=str(tmp_path / "out"), derive=("verbosity",), label_schema="merged")
    with pytest.raises(ConfigError, match="derive: the labels have verbosity already"):
        prepare_nemo(config)


def test_progress_tells_of_all_bytes_and_all_groups(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "in.jsonl", [conversation(f"q{n}") for n in range(10)]))
    seen: dict[str, list[int | None]] = {}

    @contextmanager
    def bar(description: str, *, total: int | None, unit: str) -> Iterator[Progress]:
        seen[description] = [total, 0]

        def advance(num_done: int) -> None:
            seen[description][1] += num_done  # type: ignore[operator]

        yield advance

    prepare_nemo(NemoConfig(input=(str(path),), output_prefix=str(tmp_path / "out")), bar)
    size = path.stat().st_size
    assert seen == {"read": [size, size], "write": [10, 10]}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [conversation("q")])
    with pytest.raises(OutputError, match="cannot write here"):
        prepare_nemo(NemoConfig(input=(path,), output_prefix=str(tmp_path / "in.jsonl" / "out")))


@pytest.mark.parametrize("buffering", [0, -1])
def test_no_space_left_for_parked_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffering: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def full(dir: Path) -> IO[bytes]:
        return Path("/dev/full").open("r+b", buffering=buffering)

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    path = write(tmp_path / "in.jsonl", [conversation("q")])
    with pytest.raises(OutputError, match="no space left on the disk"):
        prepare_nemo(NemoConfig(input=(path,), output_prefix=str(tmp_path / "out")))
    assert not list(tmp_path.glob("out*"))


def many(num_groups: int, size: int) -> Read:
    """A source of groups that exist nowhere but in its loop."""

    def groups(inputs: Inputs, progress: Progress) -> Iterator[Group]:
        for n in range(num_groups):
            turns = [{"from": "Assistant", "value": f"{n}" * size, "label": "quality:1"}]
            yield Group(str(n), [Branch({"conversations": turns})])

    return groups


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [])

    def peak(num_groups: int, size: int) -> int:
        config = PrepareConfig(
            input=(path,), output_prefix=str(tmp_path / "out"), overwrite=True, derive=("verbosity",)
        )
        tracemalloc.start()
        prepare(config, many(num_groups, size), OASST)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10, 1)
    assert (tmp_path / "out_train.jsonl").stat().st_size < 10_000
    small, large = peak(1500, 10), peak(1500, 10_000)
    assert (tmp_path / "out_train.jsonl").stat().st_size > 30_000_000
    assert large < small + 1_000_000


# --- killed


JOB = """
import sys
from steersman.sources.oasst import OasstConfig, prepare_oasst
print("started", flush=True)
prepare_oasst(OasstConfig(input=(sys.argv[1],), output_prefix=sys.argv[2], derive=("verbosity",), on_error="skip"))
"""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 trees and a line that is none."""
    path = tmp_path_factory.mktemp("trees") / "trees.jsonl"
    words = random.Random(0)
    with path.open("w") as stream:
        for n in range(3000):
            answers = [
                {"role": "assistant", "text": "w" * words.randrange(400), "labels": {"quality": {"value": 0.5}}}
                for _ in range(3)
            ]
            prompt = {"role": "prompter", "text": f"question {n}", "replies": answers}
            stream.write(json.dumps({"message_tree_id": f"t{n}", "prompt": prompt}) + "\n")
        stream.write("no tree\n")
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".tmp")}


def start(trees: Path, folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(trees), str(folder / "out")], stdout=subprocess.PIPE, text=True
    )


def kill_and_rerun(trees: Path, tmp_path: Path, num_kills: int) -> None:
    job = start(trees, tmp_path / "whole")
    assert job.stdout is not None
    job.stdout.readline()
    began = time.monotonic()
    assert job.wait() == 0
    seconds = time.monotonic() - began
    whole = outputs(tmp_path / "whole")
    assert set(whole) == {"out_train.jsonl", "out_val.jsonl", "out_schema.json", "out_rejects.jsonl"}
    moments = random.Random(num_kills)
    for attempt in range(num_kills):
        folder = tmp_path / f"cut{attempt}"
        job = start(trees, folder)
        assert job.stdout is not None
        job.stdout.readline()
        time.sleep(moments.uniform(0, seconds))
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        finished = (folder / "out_schema.json").exists() and not list(folder.glob(".*.unfinished"))
        if not finished:
            assert start(trees, folder).wait() == 0
        assert outputs(folder) == whole


def test_killed_and_run_again_it_writes_the_same_bytes(trees: Path, tmp_path: Path) -> None:
    kill_and_rerun(trees, tmp_path, num_kills=2)


@pytest.mark.slow
def test_killed_at_twenty_moments(trees: Path, tmp_path: Path) -> None:
    kill_and_rerun(trees, tmp_path, num_kills=20)


def test_a_run_killed_between_its_files_does_not_lock_the_next_one_out(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OasstConfig(input=(str(trees),), output_prefix=str(tmp_path / "out"), limit=50)

    def killed(self: DataSummary, path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DataSummary, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_oasst(config)
    assert {path.name for path in tmp_path.iterdir()} == {"out_train.jsonl", "out_val.jsonl", ".out_train.unfinished"}
    prepare_oasst(config)
    assert {path.name for path in tmp_path.iterdir()} == {"out_train.jsonl", "out_val.jsonl", "out_schema.json"}
    with pytest.raises(OutputError, match="exists already"):
        prepare_oasst(config)
