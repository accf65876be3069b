"""`steersman clean`, as a user calls it."""

import json

import pytest

from steersman import jsonl
from steersman.attributes import OASST
from steersman.card import ModelCard
from steersman.cli import main
from steersman.records import Conversation
from steersman.text.tokenize import open_encoder

GOOD = {
    "mask": "User",
    "type": "VALUE_TO_TEXT",
    "conversations": [{"from": "User", "value": "hi"}, {"from": "Assistant", "value": "yo", "label": "quality:4"}],
    "tree_id": "t1",
}
LONG = {**GOOD, "system": "The capital of France is Paris. " * 50}
SILENT = {**GOOD, "mask": "Critic"}


@pytest.fixture
def clean(tmp_path, tiny_tokenizer, capsys):
    """`clean(lines, *arguments)` -> (status, stdout, stderr)."""
    tiny_tokenizer.save_pretrained(tmp_path / "model")

    def run(lines, *arguments):
        (tmp_path / "in.jsonl").write_bytes(b"".join(x if isinstance(x, bytes) else jsonl.dumps(x) for x in lines))
        paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
        with pytest.raises(SystemExit) as ended:
            main(["clean", *paths, "--tokenizer", str(tmp_path / "model"), "--seq-len", "100", *arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_drops_and_says_how_many_and_why(clean, tmp_path):
    status, out, _ = clean([GOOD, LONG, SILENT, LONG, {**GOOD, "tree_id": "t2"}])
    assert status == 0
    assert "out.jsonl: 2 records kept, 3 dropped" in out
    assert "dropped 2: nothing left to train within 100 tokens" in out
    assert "dropped 1: the masked role never speaks" in out
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert kept == [GOOD, {**GOOD, "tree_id": "t2"}]  # unchanged: no key came, none went


def test_a_bad_record_stops_or_is_skipped(clean, tmp_path):
    status, _, err = clean([GOOD, b"{not json\n", GOOD])
    assert status == 1
    assert "in.jsonl:2: not valid JSON" in err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == []
    status, out, _ = clean([GOOD, b"{not json\n", GOOD], "--on-error", "skip")
    assert status == 0
    assert "2 records kept, 0 dropped" in out
    assert "out.jsonl.rejects.jsonl: 1 bad records skipped" in out
    (reject,) = (tmp_path / "out.jsonl.rejects.jsonl").read_bytes().splitlines()
    assert json.loads(reject)["line"] == 2


def test_an_output_that_exists_is_kept(clean, tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    status, _, err = clean([GOOD])
    assert status == 1
    assert "exists already" in err
    assert (tmp_path / "out.jsonl").read_text() == "mine"
    assert clean([GOOD], "--overwrite")[0] == 0
    assert json.loads((tmp_path / "out.jsonl").read_bytes()) == GOOD


def test_labels_must_fit_the_cards_schema(clean, tmp_path):
    ModelCard(attributes=OASST).save(tmp_path / "model")
    wrong = {**GOOD, "conversations": [GOOD["conversations"][0], {**GOOD["conversations"][1], "label": "quality:7"}]}
    status, _, err = clean([GOOD, wrong])
    assert status == 1
    assert "in.jsonl:2: turn 2: quality must be a whole number from 0 to 4, not 7" in err


def test_bos_counts(clean, tmp_path):
    """One more token in front pushes the first trained one out of the window."""
    encoder, _ = open_encoder(tmp_path / "model")
    first_trained = encoder.encode_conversation(Conversation.model_validate(GOOD)).loss_mask.index(True)
    for extra, dropped in (([], 0), (["--bos"], 1)):
        out = clean([GOOD], "--overwrite", "--seq-len", str(first_trained), *extra)[1]
        assert f"{1 - dropped} records kept, {dropped} dropped" in out
