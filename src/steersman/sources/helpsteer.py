r"""HelpSteer and HelpSteer2 -> conversations, or preference pairs.

Comes in: `{"prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"}`, ratings 0-4,
or HelpSteer2's comparisons, `{"prompt", "response_1", "response_2", "preference_strength", "split"}`, strength -3 (the
first is much better) to 3; as published (JSONL or parquet). A HelpSteer2 prompt may hold earlier turns, set off by
`<extra_id_1>Assistant\n` and `<extra_id_1>User\n`. Goes out: one conversation a rated row, whose last turn is the
response with its label; answers before it are unrated and stay out of the loss. Or pairs: of comparisons, and of every
two answers to one prompt that are rated differently helpful.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import orjson

from steersman import jsonl
from steersman.attributes import HELPSTEER
from steersman.errors import DataError
from steersman.randomness import derive_seed
from steersman.records import ASSISTANT, USER, Conversation, PreferencePair
from steersman.sources.chat_text import OPENAI_ROLES
from steersman.sources.deep_json import parse_object
from steersman.sources.inputs import Inputs, joined_rows
from steersman.sources.prepare import (
    UNLABELLED,
    Bar,
    Branch,
    ConversationConfig,
    Group,
    Progress,
    carried,
    content_id,
    each_line,
    no_bar,
    prepare,
)
from steersman.sources.spool import Spool
from steersman.sources.summary import DataSummary
from steersman.sources.transcripts import Messages

SPLITS: dict[Any, Literal["train", "val"]] = {"train": "train", "val": "val", "validation": "val"}
"""The file that a comparison belongs to, as it says itself."""
_TURN_START = re.compile(rf"\n*<extra_id_1>({USER}|{ASSISTANT})\n+")


class HelpSteerConfig(ConversationConfig):
    """Options of HelpSteer.

    Attributes:
        preferences: write preference pairs in place of conversations. `margin` is the strength of the preference, or
            the difference in helpfulness.
    """

    preferences: bool = False


def prepare_helpsteer(config: HelpSteerConfig, bar: Bar = no_bar) -> DataSummary:
    """Prepare HelpSteer rows. See `prepare.prepare` for what is written and raised."""
    if config.preferences:
        return prepare(config, lambda inputs, progress: _pairs(inputs, progress, config), UNLABELLED, bar)
    return prepare(config, each_line(lambda text: parse_row(parse_object(text), config)), HELPSTEER, bar)


def _pairs(inputs: Inputs, progress: Progress, config: HelpSteerConfig) -> Iterator[Group]:
    """The pairs of comparisons as they come, then those of the prompts whose answers were rated."""

    def parse_line(text: bytes) -> Group | dict[str, Any]:
        row = parse_object(text)
        return compare(row) if "response_1" in row else rated(row)

    with Spool(Path(config.output_prefix).parent) as rows:
        for line, item in inputs.parse(inputs.lines(progress), parse_line):
            if isinstance(item, Group):
                yield item
            else:
                rows.append(derive_seed(0, item["prompt"]), jsonl.dumps([line.path, line.number, item]))
        for _, group in inputs.parse(joined_rows(rows), lambda text: rank(orjson.loads(text))):
            yield group


def compare(row: dict[str, Any]) -> Group:
    """The pair of a row that compares two answers.

    Raises:
        DataError: a text is missing, or the strength is no whole number from -3 to 3.
    """
    prompt, first, second = (_text(row, name) for name in ("prompt", "response_1", "response_2"))
    strength = row.get("preference_strength")
    if type(strength) is not int or not -3 <= strength <= 3:
        raise DataError(f"preference_strength must be a whole number from -3 to 3, not {strength!r}")
    if strength == 0:
        return Group(prompt, [], dropped="neither answer is preferred")
    better, worse = (first, second) if strength < 0 else (second, first)
    return Group(prompt, [_pair(prompt, better, worse, abs(strength))], split=SPLITS.get(row.get("split")))


def rated(row: dict[str, Any]) -> dict[str, Any]:
    """What a rated row says of the helpfulness of an answer.

    Raises:
        DataError, LabelError: a text or that rating is missing, or it is off its scale.
    """
    HELPSTEER.check({"helpfulness": row.get("helpfulness")})  # type: ignore[dict-item]  # None fails like any other
    return {name: _text(row, name) for name in ("prompt", "response")} | {"helpfulness": row["helpfulness"]}


def rank(rows: list[dict[str, Any]]) -> Group:
    """The pairs of differently helpful answers to one prompt, the better first."""
    prompt = rows[0]["prompt"]
    best_first = sorted(rows, key=lambda row: -row["helpfulness"])
    branches = [
        _pair(prompt, better["response"], worse["response"], better["helpfulness"] - worse["helpfulness"])
        for better, worse in combinations(best_first, 2)
        if better["helpfulness"] > worse["helpfulness"]
    ]
    return Group(prompt, branches, dropped=None if branches else "no two answers that are rated differently helpful")


def _pair(prompt: str, better: str, worse: str, margin: int) -> Branch:
    messages: Messages = [
        {"role": OPENAI_ROLES[turn["from"]], "content": turn["value"]} for turn in split_prompt(prompt)
    ]
    pair = PreferencePair(
        id=content_id(prompt, better, worse),
        prompt=messages,
        chosen=better,
        rejected=worse,
        judge="human",
        source="helpsteer",
        margin=float(margin),
    )
    return Branch(pair.model_dump())


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise DataError(f'"{name}" is missing or no string')
    text: str = row[name]
    return text


def parse_row(row: dict[str, Any], config: ConversationConfig) -> Conversation:
    """The conversation of a row.

    Raises:
        DataError, LabelError: a text or every rating is missing, or a rating is off its scale.
    """
    prompt, response = _text(row, "prompt"), _text(row, "response")
    values = {name: row[name] for name in HELPSTEER.names if row.get(name) is not None}
    if not values:
        raise DataError(f"none of the ratings is there: {', '.join(HELPSTEER.names)}")
    turns: list[dict[str, Any]] = split_prompt(prompt)
    turns.append({"from": ASSISTANT, "value": response, "label": HELPSTEER.encode(values)})
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
