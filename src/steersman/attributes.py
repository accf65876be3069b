"""An attribute schema and its label string: the one home of `quality:4,toxicity:0`.

A label string is `name:value` joined by commas, without spaces, in the schema's order; attributes without a value are
left out. Values are whole numbers on the attribute's scale, 0-4 unless it says otherwise. Optionally the
string ends in `lang:en` (some NeMo versions write it).
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property, lru_cache

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steersman.errors import LabelError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LANGUAGE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
LANGUAGE_KEY = "lang"


class Attribute(BaseModel):
    """One dial.

    Attributes:
        name: as it stands in the label string.
        low, high: the scale's ends, both included.
        derived: computed from the text (such as verbosity as a length quintile), not judged by people.
        default: what a partial request is filled with; the model's card sets it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    low: int = 0
    high: int = 4
    derived: bool = False
    default: int | None = None

    @model_validator(mode="after")
    def _check(self) -> "Attribute":
        if not _NAME.fullmatch(self.name) or self.name == LANGUAGE_KEY:
            raise ValueError(f"attribute name {self.name!r}: use letters, digits and underscores, and not 'lang'")
        if self.low >= self.high:
            raise ValueError(f"attribute {self.name!r}: low {self.low} must lie below high {self.high}")
        if self.default is not None and not self.low <= self.default <= self.high:
            raise ValueError(f"attribute {self.name!r}: default {self.default} lies outside {self.low}-{self.high}")
        return self

    @property
    def values(self) -> range:
        """Every value of the scale, ascending."""
        return range(self.low, self.high + 1)


class AttributeSchema(BaseModel):
    """Attributes in the order in which label strings name them.

    Attributes:
        attributes: the dials, in order.
        language: label strings may end in `lang:xx`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attributes: tuple[Attribute, ...]
    language: bool = Field(default=False)

    @model_validator(mode="after")
    def _check(self) -> "AttributeSchema":
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) != len(names):
            raise ValueError(f"attribute names must differ: {names}")
        return self

    @classmethod
    def of(cls, *names: str) -> "AttributeSchema":
        """A schema of plain 0-4 attributes."""
        return cls(attributes=tuple(Attribute(name=name) for name in names))

    @cached_property
    def _by_name(self) -> dict[str, Attribute]:
        return {attribute.name: attribute for attribute in self.attributes}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> Attribute:
        """The attribute called `name`; `LabelError` with the nearest valid name when there is none."""
        if name in self._by_name:
            return self._by_name[name]
        near = get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LabelError(f"no attribute {name!r} in the schema ({', '.join(self.names)}){hint}")

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def check(self, values: Mapping[str, int]) -> None:
        """Raise `LabelError` when a name is unknown or a value is not a whole number on its scale."""
        for name, value in values.items():
            attribute = self[name]
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not attribute.low <= value <= attribute.high:
                raise LabelError(
                    f"{name} must be a whole number from {attribute.low} to {attribute.high}, not {value!r}"
                )

    def encode(self, values: Mapping[str, int], language: str | None = None) -> str:
        """The label string of `values`, in schema order: `{"toxicity": 0, "quality": 4}` -> `quality:4,toxicity:0`.

        Raises:
            LabelError: an unknown name, or a value off its scale.
        """
        self.check(values)
        parts = [f"{name}:{values[name]}" for name in self.names if name in values]
        if language is not None:
            if not self.language:
                raise LabelError(f"this schema writes no language, but lang:{language} was asked for")
            if not _LANGUAGE.fullmatch(language):
                raise LabelError(f"a language is a code such as en or pt-BR, not {language!r}")
            parts.append(f"{LANGUAGE_KEY}:{language}")
        return ",".join(parts)

    def parse(self, label: str) -> dict[str, int]:
        """The values of a label string, in schema order; the inverse of `encode` (a language is checked and left out).

        Raises:
            LabelError: not in the format, an unknown attribute or one named twice, or a value off its scale.
        """
        values: dict[str, int] = {}
        pieces = label.split(",") if label else []
        for index, piece in enumerate(pieces):
            name, colon, value = piece.partition(":")
            if name == LANGUAGE_KEY and self.language and index == len(pieces) - 1 and _LANGUAGE.fullmatch(value):
                continue
            if not colon or not re.fullmatch(r"-?[0-9]{1,9}", value):
                raise LabelError(f"label {label!r}: expected name:value joined by commas, found {piece!r}")
            if name in values:
                raise LabelError(f"label {label!r}: {name} is given twice")
            values[name] = int(value)
        self.check(values)
        return {name: values[name] for name in self.names if name in values}

    def language_of(self, label: str) -> str | None:
        """The language that a label string ends in, if it does."""
        key, _, language = label.rpartition(",")[2].partition(":")
        return language if self.language and key == LANGUAGE_KEY else None

    def defaults(self) -> dict[str, int]:
        """The attributes that have a default, with it."""
        return {a.name: a.default for a in self.attributes if a.default is not None}

    def with_defaults(self, values: Mapping[str, int]) -> "AttributeSchema":
        """This schema with these defaults, and none for the attributes that are not named.

        Raises:
            LabelError: an unknown name, or a value off its scale.
        """
        self.check(values)
        attributes = tuple(a.model_copy(update={"default": values.get(a.name)}) for a in self.attributes)
        return AttributeSchema(attributes=attributes, language=self.language)

    def opposite(self, values: Mapping[str, int]) -> dict[str, int]:
        """The mirror image of `values` on each scale (4 -> 0, 1 -> 3): what attribute guidance contrasts with."""
        self.check(values)
        return {name: self[name].low + self[name].high - value for name, value in values.items()}

    def extend(self, *attributes: Attribute) -> "AttributeSchema":
        """This schema with further attributes appended last."""
        return AttributeSchema(attributes=(*self.attributes, *attributes), language=self.language)

    def restrict(self, names: set[str]) -> "AttributeSchema":
        """This schema with only the attributes in `names`, order kept."""
        kept = tuple(attribute for attribute in self.attributes if attribute.name in names)
        return AttributeSchema(attributes=kept, language=self.language)


@lru_cache(maxsize=1024)  # they recur: thirds, quarters and so on
def fraction_to_value(fraction: float) -> int:
    """OASST stores labels as fractions of [0, 1]; the label is `round(fraction * 4)`, Python's round (half to even)."""
    if not 0.0 <= fraction <= 1.0:
        raise LabelError(f"an OASST label must lie in [0, 1], not {fraction!r}")
    return round(fraction * 4)


OASST = AttributeSchema.of(
    "quality", "toxicity", "humor", "creativity", "violence", "helpfulness", "not_appropriate", "hate_speech",
    "sexual_content", "fails_task", "political_content", "moral_judgement",
)  # fmt: skip
HELPSTEER = AttributeSchema.of("helpfulness", "correctness", "coherence", "complexity", "verbosity")
MERGED = AttributeSchema.of("quality", "toxicity", "humor", "creativity", *HELPSTEER.names)
SCHEMAS = {"oasst": OASST, "helpsteer": HELPSTEER, "merged": MERGED}
