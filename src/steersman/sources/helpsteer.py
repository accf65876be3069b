r"""HelpSteer and HelpSteer2 -> conversations.

Comes in: `{"prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"}`, ratings 0-4,
as published (JSONL or parquet). A HelpSteer2 prompt may hold earlier turns, set off by `<extra_id_1>Assistant\n` and
`<extra_id_1>User\n`. Goes out: one conversation a row, whose last turn is the response with its label; answers before
it are unrated and stay out of the loss.
"""

import re
from typing import Any

from steersman.attributes import HELPSTEER
from steersman.errors import DataError
from steersman.records import ASSISTANT, USER, Conversation
from steersman.sources.deep_json import parse_object
from steersman.sources.prepare import Bar, ConversationConfig, carried, each_line, no_bar, prepare
from steersman.sources.summary import DataSummary

_TURN_START = re.compile(rf"\n*<extra_id_1>({USER}|{ASSISTANT})\n+")


def prepare_helpsteer(config: ConversationConfig, bar: Bar = no_bar) -> DataSummary:
    """Prepare HelpSteer rows. See `prepare.prepare` for what is written and raised."""
    return prepare(config, each_line(lambda text: parse_row(parse_object(text), config)), HELPSTEER, bar)


def parse_row(row: dict[str, Any], config: ConversationConfig) -> Conversation:
    """The conversation of a row.

    Raises:
        DataError, LabelError: a text or every rating is missing, or a rating is off its scale.
    """
    for name in ("prompt", "response"):
        if not isinstance(row.get(name), str):
            raise DataError(f'"{name}" is missing or no string')
    values = {name: row[name] for name in HELPSTEER.names if row.get(name) is not None}
    if not values:
        raise DataError(f"none of the ratings is there: {', '.join(HELPSTEER.names)}")
    turns: list[dict[str, Any]] = split_prompt(row["prompt"])
    turns.append({"from": ASSISTANT, "value": row["response"], "label": HELPSTEER.encode(values)})
    return Conversation.model_validate(
        {
            "system": config.system,
            "mask": config.mask_role,
            "type": config.type,
            "conversations": turns,
            **carried(row, "prompt", "response", *HELPSTEER.names),
        }
    )


def split_prompt(prompt: str) -> list[dict[str, Any]]:
    """The turns of a prompt, which ends in a user's; answers in it are not trained.

    Raises:
        DataError: two turns of one role follow each other, or the last one is an answer.
    """
    first, *rest = _TURN_START.split(prompt)
    turns: list[dict[str, Any]] = [{"from": USER, "value": first}]
    for role, value in zip(rest[::2], rest[1::2], strict=True):
        if role == turns[-1]["from"]:
            raise DataError(f"the prompt has two turns of {role} in a row")
        turns.append({"from": role, "value": value, "train": role == USER})
    if turns[-1]["from"] != USER:
        raise DataError("the prompt ends in a turn of Assistant, where the response should stand")
    return turns
