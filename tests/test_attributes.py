"""Schemas and label strings: the round trip, FORMATS' examples, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from steersman.attributes import HELPSTEER, MERGED, OASST, Attribute, AttributeSchema, fraction_to_value
from steersman.errors import LabelError

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,12}", fullmatch=True).filter(lambda name: name != "lang")


@st.composite
def attributes(draw: st.DrawFn, name: str) -> Attribute:
    low = draw(st.integers(-9, 9))
    return Attribute(name=name, low=low, high=low + draw(st.integers(1, 9)))


@st.composite
def labelled_schemas(draw: st.DrawFn) -> tuple[AttributeSchema, dict[str, int], str | None]:
    """A schema, values for some of its attributes in any order, and perhaps a language."""
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=6))
    schema = AttributeSchema(attributes=tuple(draw(attributes(name)) for name in names), language=draw(st.booleans()))
    chosen = draw(st.lists(st.sampled_from(names), unique=True))
    values = {name: draw(st.sampled_from(schema[name].values)) for name in chosen}
    return schema, values, draw(st.sampled_from([None, "en", "pt-BR"])) if schema.language else None


@given(labelled_schemas())
def test_parse_inverts_encode(case: tuple[AttributeSchema, dict[str, int], str | None]) -> None:
    schema, values, language = case
    label = schema.encode(values, language)
    assert schema.parse(label) == values
    assert list(schema.parse(label)) == [name for name in schema.names if name in values]
    assert schema.encode(schema.parse(label), language) == label
    assert AttributeSchema.model_validate_json(schema.model_dump_json()) == schema


@given(labelled_schemas(), st.text(max_size=30))
def test_parse_gives_values_on_the_scale_or_a_label_error(
    case: tuple[AttributeSchema, dict[str, int], str | None], noise: str
) -> None:
    schema, values, language = case
    for label in (noise, schema.encode(values, language) + noise):
        try:
            parsed = schema.parse(label)
        except LabelError:
            continue
        assert all(value in schema[name].values for name, value in parsed.items())


def test_label_strings_as_nemo_writes_them() -> None:
    label = "quality:4,toxicity:0,humor:0,creativity:0,violence:0,helpfulness:4,not_appropriate:0,hate_speech:0,"
    label += "sexual_content:0,fails_task:0,political_content:0,moral_judgement:0"
    values = dict.fromkeys(OASST.names, 0) | {"helpfulness": 4, "quality": 4}
    assert OASST.encode(dict(reversed(values.items()))) == label
    assert OASST.encode({"humor": 1, "quality": 3}) == "quality:3,humor:1"
    assert OASST.encode({}) == ""
    assert ",".join(MERGED.names) == (
        "quality,toxicity,humor,creativity,helpfulness,correctness,coherence,complexity,verbosity"
    )
    with_language = OASST.model_copy(update={"language": True})
    assert with_language.encode({"quality": 4}, "en") == "quality:4,lang:en"
    assert with_language.parse("quality:4,lang:en") == {"quality": 4}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("quality:5", "quality must be a whole number from 0 to 4, not 5"),
        ("quality:-1", "not -1"),
        ("quality:" + "9" * 5000, "name:value"),
        ("qualty:3", "did you mean 'quality'?"),
        ("quality=3", "name:value joined by commas, found 'quality=3'"),
        ("quality:3, humor:1", "no attribute ' humor'"),
        ("quality:3,,humor:1", "found ''"),
        ("quality:3,quality:3", "quality is given twice"),
        ("quality:3.5", "found 'quality:3.5'"),
        ("quality:3,lang:en", "found 'lang:en'"),
    ],
)
def test_a_label_outside_the_schema_is_refused(label: str, words: str) -> None:
    with pytest.raises(LabelError) as caught:
        OASST.parse(label)
    assert words in str(caught.value)


def test_values_off_the_scale_are_not_encoded() -> None:
    for value in (5, -1, 2.0, True, "3"):
        with pytest.raises(LabelError, match="humor must be a whole number from 0 to 4"):
            OASST.encode({"humor": value})  # type: ignore[dict-item]
    with pytest.raises(LabelError, match="writes no language"):
        OASST.encode({}, "en")
    with pytest.raises(LabelError, match="language is a code"):
        OASST.model_copy(update={"language": True}).encode({}, "en,quality:4")


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "lang"},
        {"name": "two words"},
        {"name": "a:b"},
        {"name": ""},
        {"name": "a", "low": 4},
        {"name": "a", "default": 5},
    ],
)
def test_attributes_that_no_label_string_could_hold(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Attribute.model_validate(fields)


def test_names_differ() -> None:
    with pytest.raises(ValidationError, match="must differ"):
        AttributeSchema.of("quality", "quality")


def test_fractions_round_half_to_even_as_python_does() -> None:
    fractions = [0.0, 0.124, 0.125, 0.126, 0.375, 0.5, 0.625, 0.875, 1.0]
    assert [fraction_to_value(x) for x in fractions] == [0, 0, 0, 1, 2, 2, 2, 4, 4]
    for bad in (-0.01, 1.01, float("nan")):
        with pytest.raises(LabelError):
            fraction_to_value(bad)


def test_schemas_derived_from_a_schema() -> None:
    extended = HELPSTEER.extend(Attribute(name="quality", low=1, high=5, default=5, derived=True))
    assert extended.names[-1] == "quality"
    assert extended.defaults() == {"quality": 5}
    assert extended.opposite({"quality": 4, "verbosity": 0}) == {"quality": 2, "verbosity": 4}
    assert extended.restrict({"quality", "coherence", "unknown"}).names == ("coherence", "quality")


def test_language_of_a_label() -> None:
    with_language = OASST.model_copy(update={"language": True})
    assert with_language.language_of("quality:4,lang:pt-BR") == "pt-BR"
    assert with_language.language_of("lang:en") == "en"
    assert with_language.language_of("quality:4") is None
    assert OASST.language_of("quality:4,lang:en") is None


def test_with_defaults_replaces_all_of_them():
    schema = AttributeSchema(attributes=(Attribute(name="quality", default=1), Attribute(name="humor", default=2)))
    assert schema.with_defaults({"humor": 0}).defaults() == {"humor": 0}
    with pytest.raises(LabelError, match="did you mean 'humor'"):
        schema.with_defaults({"humour": 0})
