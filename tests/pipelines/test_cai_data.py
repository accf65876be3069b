"""Real data of a Constitutional AI run: what is held out is held out everywhere."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from steersman import jsonl
from steersman.config import validate
from steersman.errors import ConfigError
from steersman.pipelines.cai_config import CaiConfig, CaiData
from steersman.pipelines.cai_data import Files, prepare
from steersman.records import Conversation, PreferencePair


def hh(path: Path, openings: range) -> str:
    """Three pairs to each opening."""
    rows = [
        {name: f"\n\nHuman: q{opening}\n\nAssistant: {name} {n}" for name in ("chosen", "rejected")}
        for opening in openings
        for n in range(3)
    ]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    talk = {"conversations": [{"from": "User", "value": "hi"}, {"from": "Assistant", "value": "hello"}]}
    helpful = tmp_path / "helpful.jsonl"
    helpful.write_text("".join(json.dumps({**talk, "tree_id": str(n)}) + "\n" for n in range(10)))
    pairs = hh(tmp_path / "hh.jsonl.gz", range(60))
    return {
        "red_team": [pairs],
        "preferences": [pairs],
        "helpful": [str(helpful)],
        "helpful_form": "conversations",
        "split_ratio": 0.75,
    }


def prepared(data: dict[str, Any], folder: Path) -> Files:
    folder.mkdir()
    prepare(CaiConfig.model_construct(data=validate(data, CaiData, "test")), folder)
    return Files(folder)


def openings(path: Path) -> list[str]:
    return [pair.prompt[0]["content"] for pair in jsonl.read(path, PreferencePair)]


def asked(path: Path) -> set[str]:
    return {conversation.conversations[0].value for conversation in jsonl.read(path, Conversation)}


def test_a_fold_is_held_out_of_prompts_and_pairs(data: dict[str, Any], tmp_path: Path) -> None:
    tested: list[str] = []
    for number in (1, 2, 3):
        files = prepared({**data, "test_fold": f"{number}/3"}, tmp_path / str(number))
        test, train, validation = map(openings, (files.test_pairs, files.pairs.train, files.pairs.validation))
        assert set(test).isdisjoint(train + validation)
        assert set(train).isdisjoint(validation)
        assert len(test) + len(train) + len(validation) == 180
        assert len(set(train)) == 3 * len(set(train + validation)) // 4
        assert asked(files.prompts.validation) == set(test)
        assert asked(files.prompts.train) == set(train + validation)
        assert not (files.folder / "test_pairs_train.jsonl").exists()
        tested += test
    assert sorted(tested) == sorted([f"q{n}" for n in range(60)] * 3)


def test_pairs_of_their_own_test(data: dict[str, Any], tmp_path: Path) -> None:
    files = prepared({**data, "test_pairs": [hh(tmp_path / "test.jsonl.gz", range(60, 70))]}, tmp_path / "files")
    assert set(openings(files.test_pairs)) == {f"q{n}" for n in range(60, 70)}
    assert (len(set(openings(files.pairs.train))), len(set(openings(files.pairs.validation)))) == (45, 15)


@pytest.mark.parametrize("test", [{}, {"test_pairs": ["x"], "test_fold": "1/5"}])
def test_what_tests_is_said_once(data: dict[str, Any], test: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exactly one of test_pairs and test_fold"):
        validate({**data, **test}, CaiData, "test")
