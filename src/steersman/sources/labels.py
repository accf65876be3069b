"""The labels of the records that are written: derived attributes are added, and what occurs is counted."""

from collections import Counter
from collections.abc import Sequence
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
        if turn["from"] == ASSISTANT and turn["label"]:
            label, text = turn["label"], turn["value"]
            derived = {name: length_quantile(text, cuts) for name, cuts in self.thresholds.items()}
            turn["label"] = self.schema.encode({**self.parse(label), **derived}, self.schema.language_of(label))


class Tally:
    """Counts what is written to one file."""

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._num_groups = self._num_records = self._num_turns = self._num_labelled = 0
        self._last_key: int | None = None
        self._waiting: Counter[str] = Counter()
        self._values: Counter[tuple[str, int]] = Counter()
        self._has_language = False

    def add(self, key: int, own_labels: Sequence[Sequence[str | None]]) -> None:
        """Count records of the group `key` (those of a group come one after the other) by the turns they add to it.

        `own_labels` are these turns' labels, of each record.
        """
        if own_labels:
            self._num_groups += key != self._last_key
            self._last_key = key
        self._num_records += len(own_labels)
        for labels in own_labels:
            self._num_turns += len(labels)
            present = [label for label in labels if label]
            self._num_labelled += len(present)
            self._waiting.update(present)
        if len(self._waiting) > NUM_CACHED_LABELS:
            self._count_values()

    def _count_values(self) -> None:
        """Count the values in the labels of which only the number is known so far: equal ones are parsed once."""
        for label, count in self._waiting.items():
            for name_and_value in self._labels.parse(label).items():
                self._values[name_and_value] += count
            self._has_language |= self._labels.schema.language_of(label) is not None
        self._waiting.clear()

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
        self._count_values()
        seen = self._labels.schema.restrict({name for name, _ in self._values})
        return seen.model_copy(update={"language": self._has_language}) if seen.attributes else None

    @property
    def label_counts(self) -> dict[str, tuple[int, ...]]:
        """Attribute -> how many turns have each value of its scale."""
        return {
            attribute.name: tuple(self._values[attribute.name, value] for value in attribute.values)
            for attribute in (self.schema.attributes if self.schema else ())
        }
