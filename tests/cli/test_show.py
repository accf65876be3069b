"""`steersman show`, as a user calls it."""

import json

import pytest

from steersman import jsonl
from steersman.card import ModelCard, TemplateSpec
from steersman.cli import main
from steersman.text.tokenize import Encoder, load_tokenizer

RECORDS = [
    {
        "system": "Be kind.",
        "mask": "User",
        "type": kind,
        "conversations": [
            {"from": "User", "value": "say <extra_id_1>", "label": None},
            {"from": "Assistant", "value": "yo", "label": "quality:4"},
        ],
    }
    for kind in ("VALUE_TO_TEXT", "TEXT_TO_VALUE", None)
]


@pytest.fixture
def show(tmp_path, tiny_tokenizer, capsys):
    """`show(*arguments)` -> (status, stdout, stderr) on three records and a folder with the tiny tokenizer."""
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    jsonl.write(tmp_path / "data.jsonl", RECORDS)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["show", str(tmp_path / "data.jsonl"), "--tokenizer", str(tmp_path / "model"), *arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_json_has_one_object_a_record(show, tmp_path):
    status, out, _ = show("--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [list(row) for row in rows] == [["input_ids", "loss_mask"]] * 3
    assert all(len(row["input_ids"]) == len(row["loss_mask"]) and set(row["loss_mask"]) == {0, 1} for row in rows)
    tokenizer = load_tokenizer(tmp_path / "model")
    tokenizer.add_tokens(["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"], special_tokens=True)
    trained = [
        tokenizer.decode([i for i, mask in zip(row["input_ids"], row["loss_mask"], strict=True) if mask])
        for row in rows
    ]
    assert trained == ["yo\n<extra_id_1>", "quality:4\n<extra_id_1>", "yo\n<extra_id_1>"]
    assert [row["input_ids"].count(401) for row in rows] == [3, 3, 3]  # <extra_id_1>, and never the user's


def test_the_options_of_the_template(show, tmp_path):
    rows = [json.loads(line) for line in show("--json", "--limit", "1", "--bos", "--seq-len", "4")[1].splitlines()]
    assert [(row["input_ids"][:2], len(row["input_ids"])) for row in rows] == [([0, 400], 5)]
    (row,) = [json.loads(line) for line in show("--json", "--limit", "1", "--template", "chatml")[1].splitlines()]
    assert row["input_ids"][0] == 400
    status, _, err = show("--json", "--control", "text")
    assert status == 1
    assert "data.jsonl:1: the text holds the control string '<extra_id_1>'" in err


def test_the_card_governs(show, tmp_path):
    tokenizer = load_tokenizer(tmp_path / "model")
    card = ModelCard(role="sft", template=TemplateSpec(bos=True, control="text", turn_start="<T>"))
    card.save(tmp_path / "model")
    encoder = Encoder(tokenizer, card.template)
    (row,) = [json.loads(line) for line in show("--json", "--limit", "1")[1].splitlines()]
    assert encoder.decode(row["input_ids"]).startswith("<extra_id_0>System\nBe kind.\n<T>User\n")
    assert row["input_ids"][0] == tokenizer.bos_token_id
    status, _, err = show("--no-bos")
    assert status == 2
    assert "says its card" in err


def test_text_for_people(show):
    status, out, _ = show("--limit", "2")
    assert status == 0
    assert "record 2: TEXT_TO_VALUE" in out
    assert "yo\n<extra_id_2>quality:4\n<extra_id_1>\n" in out


def test_a_tokenizer_that_is_not_there(show):
    status, _, err = show("--tokenizer", "./absent")
    assert status == 1
    assert "./absent: no such tokenizer" in err
