"""The labels of the records that are written: derived attributes are added, and what occurs is counted."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from steersman.attributes import AttributeSchema
from steersman.records import ASSISTANT
from steersman.sources.summary import SplitCounts, derived_attribute, length_quantile

NUM_CACHED_LABELS = 1 << 16


class Labels:
    """The labels that are written: their schema, and the derived attributes to add to them.

    Args:
        schema: of the labels as they come.
        thresholds: derived attribute -> its thresholds, appended to the schema in this order.
    """

    def __init__(self, schema: AttributeSchema, thresholds: dict[str, tuple[int, ...]]) -> None:
        self.schema = schema.extend(*map(derived_attribute, thresholds))
        self.thresholds = thresholds
        self.parse = lru_cache(NUM_CACHED_LABELS)(self.schema.parse)

    def derive(self, turn: dict[str, Any]) -> None:
        """Append the derived attributes to the label of an assistant turn that has one."""
        if self.thresholds and turn["from"] == ASSISTANT and turn["label"]:
            label, text = turn["label"], turn["value"]
            derived = {name: length_quantile(text, cuts) for name, cuts in self.thresholds.items()}
            turn["label"] = self.schema.encode({**self.parse(label), **derived}, self.schema.language_of(label))


class Tally:
    """Counts what is written to one file."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._num_groups = self._num_records = self._num_turns = self._num_labelled = 0
        self._last_key: int | None = None
        self._values: Counter[tuple[str, int]] = Counter()
        self._has_language = False

    def add(self, key: int, own_turns: Iterable[dict[str, Any]]) -> None:
        """Count a record of the group `key` (those of a group come one after the other) by the turns it adds to it."""
        self._num_groups += key != self._last_key
        self._last_key = key
        self._num_records += 1
        for turn in own_turns:
            self._num_turns += 1
            if turn["label"]:
                self._num_labelled += 1
                self._values.update(self._labels.parse(turn["label"]).items())
                self._has_language |= self._labels.schema.language_of(turn["label"]) is not None

    @property
    def counts(self) -> SplitCounts:
        return SplitCounts(
            groups=self._num_groups,
            records=self._num_records,
            turns=self._num_turns,
            labelled_turns=self._num_labelled,
        )

    @property
    def schema(self) -> AttributeSchema | None:
        """What occurs in labels, in the order of the full schema; None when nothing does."""
        seen = self._labels.schema.restrict({name for name, _ in self._values})
        return seen.model_copy(update={"language": self._has_language}) if seen.attributes else None

    @property
    def label_counts(self) -> dict[str, tuple[int, ...]]:
        """Attribute -> how many turns have each value of its scale."""
        return {
            attribute.name: tuple(self._values[attribute.name, value] for value in attribute.values)
            for attribute in (self.schema.attributes if self.schema else ())
        }
