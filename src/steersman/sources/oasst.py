"""OpenAssistant message trees -> conversations, or preference pairs from the ranks of replies.

Comes in: one tree a line (`{"message_tree_id", "prompt": {"text", "role", "labels", "replies": [...]}}`), or one
message a line as the hub publishes them (`{"message_id", "parent_id", "message_tree_id", "text", "role", "labels"}`),
which are put back into trees. Goes out, per tree: every root-to-leaf path with at least two messages as a
conversation, or every pair of ranked answers to one message as a `PreferencePair`.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
from pydantic import field_validator, model_validator

from steersman import jsonl
from steersman.attributes import OASST, AttributeSchema, fraction_to_value
from steersman.errors import DataError, LabelError
from steersman.randomness import derive_seed
from steersman.records import ASSISTANT, USER, ConversationType, PreferencePair, masked_roles
from steersman.sources.chat_text import OPENAI_ROLES
from steersman.sources.deep_json import parse_object
from steersman.sources.inputs import Inputs, joined_rows
from steersman.sources.labels import NUM_CACHED_LABELS
from steersman.sources.prepare import Bar, Branch, ConversationConfig, Group, Progress, no_bar, prepare
from steersman.sources.spool import Spool
from steersman.sources.summary import DataSummary

NAMES = frozenset(OASST.names)
ROLES = {"prompter": USER, "assistant": ASSISTANT}


class OasstConfig(ConversationConfig):
    """Options of OpenAssistant data.

    Attributes:
        label_turns: "assistant": user turns lose their labels; "all": they keep them.
        attributes: those that labels keep; all by default.
        train_once: a turn that several paths share is trained in the first of them only (`"train": false` in the
            others), and a path that trains nothing new is left out. Under TEXT_TO_VALUE nothing but labels is trained.
        lang: labels end in `lang:en`.
        preferences: write preference pairs in place of conversations: all pairs of differently ranked assistant
            replies to one user message, best first, `margin` being the difference of ranks.
    """

    type: ConversationType | None = "TEXT_TO_VALUE"
    label_turns: Literal["assistant", "all"] = "assistant"
    attributes: tuple[str, ...] = OASST.names
    train_once: bool = False
    lang: bool = False
    preferences: bool = False

    @field_validator("attributes")
    @classmethod
    def _check_attributes(cls, attributes: tuple[str, ...]) -> tuple[str, ...]:
        for name in attributes:
            OASST[name]
        return attributes

    @model_validator(mode="after")
    def _check_preferences(self) -> "OasstConfig":
        if self.preferences and (self.derive or self.train_once or self.lang):
            raise ValueError("preferences have no labels: drop derive, train_once and lang")
        return self

    @property
    def label_schema(self) -> AttributeSchema:
        """What labels may hold."""
        return OASST.restrict(set(self.attributes)).model_copy(update={"language": self.lang})


def prepare_oasst(config: OasstConfig, bar: Bar = no_bar) -> DataSummary:
    """Prepare OpenAssistant trees or message rows. See `prepare.prepare` for what is written and raised."""
    schema = config.label_schema

    @lru_cache(NUM_CACHED_LABELS)
    def label_of(values: Values, language: str | None) -> str | None:
        kept = {name: value for name, value in values if name in schema}
        return schema.encode(kept, language) if kept else None

    def group(tree: Tree) -> Group:
        return Group(tree.id, preferences(tree) if config.preferences else conversations(tree, config, label_of))

    def parse_line(text: bytes) -> Group | dict[str, Any]:
        value = parse_object(text)
        return group(parse_tree(value)) if "prompt" in value else parse_row(value)

    def parse_rows(text: bytes) -> Group:
        return group(join_rows(orjson.loads(text)))

    def read(inputs: Inputs, progress: Progress) -> Iterator[Group]:
        with Spool(Path(config.output_prefix).parent) as rows:
            for line, item in inputs.parse(inputs.lines(progress), parse_line):
                if isinstance(item, Group):
                    yield item
                else:
                    rows.append(derive_seed(0, item["message_tree_id"]), jsonl.dumps([line.path, line.number, item]))
            for _, item in inputs.parse(joined_rows(rows), parse_rows):
                yield item

    return prepare(config, read, schema, bar, by_key=False)  # NeMo's split goes by line, even where a tree comes twice


Values = tuple[tuple[str, int], ...]
LabelOf = Callable[[Values, str | None], str | None]
"""The label string of a message's values and language, if it has one."""


class Node(NamedTuple):
    """A message of a tree.

    Attributes:
        id: the message's own id, or one made of the tree's id and its position.
        parent: index of the message it answers; -1 for the first.
        role: "User" or "Assistant".
        text: what it says.
        values: (attribute, value on the 0-4 scale) of those that people judged.
        language: code of the language, without the country.
        rank: place among its siblings, 0 being best, if people ranked them.
    """

    id: str
    parent: int
    role: str
    text: str
    values: Values
    language: str | None
    rank: int | None


@dataclass(frozen=True, slots=True)
class Tree:
    """A message tree; its nodes in depth-first order, replies in their own order."""

    id: str
    nodes: list[Node]

    def paths(self) -> Iterator[list[int]]:
        """Indices along each path from the root to a leaf, in depth-first order."""
        path: list[int] = []
        for index, node in enumerate(self.nodes):
            while path and path[-1] != node.parent:
                path.pop()
            path.append(index)
            if index + 1 == len(self.nodes) or self.nodes[index + 1].parent != index:
                yield list(path)

    def path_to(self, index: int) -> list[int]:
        """Indices from the root to a node."""
        path = []
        while index >= 0:
            path.append(index)
            index = self.nodes[index].parent
        return path[::-1]


def parse_tree(value: dict[str, Any]) -> Tree:
    """The tree that a JSON object describes, of any depth.

    Raises:
        DataError, LabelError: something is missing, of the wrong kind or out of range; names the message.
    """
    tree_id, prompt = value.get("message_tree_id"), value.get("prompt")
    if not isinstance(tree_id, str):
        raise DataError('"message_tree_id" is missing or no string')
    nodes: list[Node] = []
    waiting: list[tuple[Any, int]] = [(prompt, -1)]
    while waiting:
        message, parent = waiting.pop()
        index = len(nodes)
        nodes.append(_parse_message(message, parent, f"{tree_id}/{index}"))
        replies = message.get("replies", [])
        if not isinstance(replies, list):
            raise DataError(f'message {nodes[index].id}: "replies" must be a list, not {type(replies).__name__}')
        waiting.extend((reply, index) for reply in reversed(replies))
    return Tree(tree_id, nodes)


def parse_row(value: dict[str, Any]) -> dict[str, Any]:
    """A flat message row, checked and cut down to what a tree needs."""
    row = {key: value.get(key) for key in ("message_id", "parent_id", "message_tree_id")}
    if not isinstance(row["message_id"], str) or not isinstance(row["message_tree_id"], str):
        raise DataError('neither a tree (no "prompt") nor a message of one (no "message_id" and "message_tree_id")')
    _parse_message(value, -1, row["message_id"])
    return row | {key: value.get(key) for key in ("text", "role", "lang", "rank", "labels")}


def join_rows(rows: list[dict[str, Any]]) -> Tree:
    """The tree of which `rows` are the messages; replies to a message stand in the order of the rows.

    Raises:
        DataError: a message is there twice or lacks its parent, or the first message is not exactly one.
    """
    messages: dict[str, dict[str, Any]] = {row["message_id"]: {**row, "replies": []} for row in rows}
    roots = []
    for message in messages.values():
        if (parent := message["parent_id"]) is None:
            roots.append(message)
        elif parent in messages:
            messages[parent]["replies"].append(message)
        else:
            raise DataError(f"message {message['message_id']}: the message it answers, {parent}, is not in the data")
    tree_id = rows[0]["message_tree_id"]
    if len(roots) != 1:
        raise DataError(f"tree {tree_id} has {len(roots)} first messages (without parent_id), not one")
    tree = parse_tree({"message_tree_id": tree_id, "prompt": roots[0]})
    if len(tree.nodes) != len(rows):
        raise DataError(f"tree {tree_id}: {len(rows) - len(tree.nodes)} messages stand twice or answer one another")
    return tree


def _parse_message(message: Any, parent: int, position: str) -> Node:
    if not isinstance(message, dict):
        raise DataError(f"message {position}: expected an object, found {type(message).__name__}")
    get = message.get
    name, role, text, language, rank = get("message_id") or position, get("role"), get("text"), get("lang"), get("rank")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"message {name}: unknown role {role!r}; expected prompter or assistant")
    if not isinstance(text, str):
        raise DataError(f'message {name}: "text" must be a string, not {type(text).__name__}')
    if language is not None and not isinstance(language, str):
        raise DataError(f'message {name}: "lang" must be a string, not {type(language).__name__}')
    if rank is not None and type(rank) is not int:
        raise DataError(f'message {name}: "rank" must be a whole number, not {rank!r}')
    try:
        values = _values(get("labels"))
    except (DataError, LabelError) as error:
        raise DataError(f"message {name}: labels: {error}") from None
    return Node(str(name), parent, ROLES[role], text, values, language and language.split("-")[0], rank)


def _values(labels: Any) -> Values:
    """(attribute, value) of each judgement; those of no attribute (spam, pii ...) are left out.

    `labels` is `{name: {"value": x, ...}}`, or, in flat rows, `{"name": [...], "value": [...]}`.
    """
    if labels is None:
        return ()
    if not isinstance(labels, dict):
        raise DataError(f"expected an object, found {type(labels).__name__}")
    if isinstance(names := labels.get("name"), list):
        fractions = labels.get("value")
        if not isinstance(fractions, list) or len(names) != len(fractions):
            raise DataError('"name" and "value" must be lists of equal length')
        labels = {str(name): {"value": fraction} for name, fraction in zip(names, fractions, strict=True)}
    values = []
    for name, entry in labels.items():
        if entry is not None and name in NAMES:
            fraction = entry.get("value") if isinstance(entry, dict) else entry
            if type(fraction) is not float and type(fraction) is not int:
                raise DataError(f"{name} must be a number, not {fraction!r}")
            values.append((name, fraction_to_value(fraction)))
    return tuple(values)


def conversations(tree: Tree, config: OasstConfig, label_of: LabelOf) -> list[Branch]:
    """Every path of at least two messages, depth first, as a conversation that carries `tree_id`."""
    masked = masked_roles(config.mask_role)
    all_turns: list[dict[str, Any]] = [
        {
            "from": node.role,
            "value": node.text,
            "label": label_of(node.values, node.language if config.lang else None)
            if node.role == ASSISTANT or config.label_turns == "all"
            else None,
        }
        for node in tree.nodes
    ]
    branches: list[Branch] = []
    last = -1  # leaf of the path kept last; nodes stand depth first, so a path's nodes up to it are in that path too
    for path in tree.paths():
        if len(path) < 2:
            continue
        num_shared = bisect_right(path, last)
        turns = [all_turns[index] for index in path]
        if config.train_once:
            turns = [
                {**turn, "train": False} if place < num_shared or _is_unlabelled(turn, config) else turn
                for place, turn in enumerate(turns)
            ]
            own = enumerate(turns[num_shared:], num_shared)
            if not any(_is_trained(turn, place, config, masked) for place, turn in own):
                continue
        record = {
            "system": config.system,
            "mask": config.mask_role,
            "type": config.type,
            "conversations": turns,
            "tree_id": tree.id,
        }
        branches.append(Branch(record, num_shared))
        last = path[-1]
    return branches


def _is_unlabelled(turn: dict[str, Any], config: OasstConfig) -> bool:
    """Whether a turn has nothing to teach a predictor; without a label, its text would be trained."""
    return config.type == "TEXT_TO_VALUE" and turn["label"] is None and turn["from"] == ASSISTANT


def _is_trained(turn: dict[str, Any], place: int, config: OasstConfig, masked: frozenset[str]) -> bool:
    """Whether something of a turn is trained: it may be, its role is not masked, and it is no opening turn to obey."""
    opens = place == 0 and config.type != "TEXT_TO_VALUE"
    return turn.get("train", True) and not opens and turn["from"] not in masked


def preferences(tree: Tree) -> list[Branch]:
    """All pairs of differently ranked assistant replies to one user message, the better first."""
    ranked: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, node in enumerate(tree.nodes):
        answers = node.role == ASSISTANT and node.parent >= 0 and tree.nodes[node.parent].role == USER
        if answers and node.rank is not None:
            ranked[node.parent].append((node.rank, index))
    branches = []
    for parent in sorted(ranked):
        prompt = [
            {"role": OPENAI_ROLES[tree.nodes[index].role], "content": tree.nodes[index].text}
            for index in tree.path_to(parent)
        ]
        for (rank, better), (worse_rank, worse) in combinations(sorted(ranked[parent]), 2):
            if rank == worse_rank:
                continue
            chosen, rejected = tree.nodes[better], tree.nodes[worse]
            pair = PreferencePair.model_validate(
                {
                    "id": f"{chosen.id}>{rejected.id}",
                    "prompt": prompt,
                    "chosen": chosen.text,
                    "rejected": rejected.text,
                    "judge": "human",
                    "source": "oasst",
                    "margin": float(worse_rank - rank),
                    "tree_id": tree.id,
                }
            )
            branches.append(Branch(pair.model_dump()))
    return branches
