"""What people said of each turn before it was rounded to a label.

In: raw OASST files (trees or message rows), whose labels are fractions, means over several people. Out: a lookup from
(tree, turn) to attribute values on the label's scale, for measurements; training uses the rounded labels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from steersman.attributes import OASST
from steersman.evaluation.predictor import HumanValues
from steersman.jsonl import Rejects
from steersman.sources.deep_json import parse_object
from steersman.sources.inputs import Inputs


def read_human_values(locations: Sequence[str]) -> HumanValues:
    """The values of every labelled message of the files; lines that `prepare` would refuse are left to it."""
    values: dict[tuple[str, str], dict[str, float]] = {}
    inputs = Inputs(locations, on_error="skip", rejects=Rejects())
    for _, record in inputs.parse(inputs.lines(lambda num_bytes: None), parse_object):
        tree = record.get("message_tree_id")
        for message in _messages(record["prompt"]) if "prompt" in record else [record]:
            if fractions := dict(_fractions(message.get("labels"))):
                values[str(tree), message["text"]] = {name: 4 * fraction for name, fraction in fractions.items()}
    return lambda tree, turn: values.get((tree, turn.value))


def _messages(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All messages of a tree, however deep."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        waiting += message.get("replies", [])


def _fractions(labels: Any) -> Iterator[tuple[str, float]]:
    """(attribute, fraction) of either form: an object by name, or the flat rows' lists side by side."""
    if labels and isinstance(labels.get("name"), list):
        labels = dict(zip(labels["name"], labels["value"], strict=True))
    for name, entry in (labels or {}).items():
        if name in OASST and entry is not None:
            yield name, float(entry["value"] if isinstance(entry, dict) else entry)
