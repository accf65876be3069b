"""OpenAI-style messages: roles, system prompts, content forms."""

import json
from pathlib import Path
from typing import Any

import pytest

from steersman.errors import DataError
from steersman.sources.messages import parse_row, prepare_messages
from steersman.sources.prepare import ConversationConfig

CONFIG = ConversationConfig(input=("in.jsonl",), output_prefix="out", system="default")


def parse(*messages: Any, **rest: Any) -> dict[str, Any]:
    return parse_row({"messages": list(messages), **rest}, CONFIG).to_json()


def say(role: str, content: Any, **rest: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **rest}


def turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["from"], turn["value"]) for turn in record["conversations"]]


def test_a_conversation_with_a_system_prompt_and_what_is_carried_along() -> None:
    record = parse(say("system", "Be kind."), say("user", "Hi"), say("assistant", "Hello"), prompt_id="p1", score=0.5)
    assert record == {
        "system": "Be kind.",
        "mask": "User",
        "type": "VALUE_TO_TEXT",
        "conversations": [
            {"from": "User", "value": "Hi", "label": None},
            {"from": "Assistant", "value": "Hello", "label": None},
        ],
        "prompt_id": "p1",
        "score": 0.5,
    }


def test_system_prompts() -> None:
    exchange = say("user", "Hi"), say("assistant", "Hello")
    assert parse(*exchange)["system"] == "default"
    assert parse(say("developer", "D"), *exchange)["system"] == "D"
    assert parse(say("system", ""), *exchange)["system"] == ""


def test_what_tools_return_is_masked() -> None:
    record = parse(say("user", "2+2?"), say("assistant", "calc(2+2)"), say("tool", "4"), say("assistant", "It is 4."))
    assert record["mask"] == "User,Tool"
    assert turns(record)[2] == ("Tool", "4")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert turns(parse(say("user", parts), say("assistant", "ok")))[0] == ("User", "one two")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one message"),
        (None, "must be a list"),
        (["hi"], "message 0: expected an object, found str"),
        ([say("user", "a"), say("narrator", "b")], "message 1: unknown role 'narrator'; expected one of system"),
        ([say("user", None)], "content must be a text or a list of text parts"),
        ([say("user", [{"type": "image_url", "image_url": "x"}])], "list of text parts"),
        ([say("assistant", None, tool_calls=[{"id": 1}])], "message 0: calls tools"),
        ([say("user", "a"), say("system", "b")], "message 1: a system message must be the first"),
        ([say("system", "alone")], "conversations: List should have at least 1 item"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, messages: Any, reason: str) -> None:
    path = tmp_path / "in.jsonl"
    good = {"messages": [say("user", "q"), say("assistant", "a")]}
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, {"messages": messages}]))
    config = CONFIG.model_copy(update={"input": (str(path),), "output_prefix": str(tmp_path / "out")})
    with pytest.raises(DataError, match=f"in.jsonl:2: .*{reason}"):
        prepare_messages(config)
    summary = prepare_messages(config.model_copy(update={"on_error": "skip"}))
    assert (summary.train.records + summary.val.records, summary.rejects) == (1, 1)
    assert summary.attributes is None


def test_a_key_that_the_record_needs_for_itself() -> None:
    with pytest.raises(DataError, match="the row has a key 'system'"):
        parse(say("user", "q"), system="S")
