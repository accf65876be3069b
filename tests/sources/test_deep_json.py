"""JSON deeper than orjson reads: the same values, and the same refusals."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steersman.errors import DataError
from steersman.sources.deep_json import ORJSON_DEPTH, parse_object

DEEP = "[" * ORJSON_DEPTH, "]" * ORJSON_DEPTH

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


def innermost(value: Any) -> Any:
    for _ in range(ORJSON_DEPTH):
        (value,) = value
    return value


@given(values, st.booleans(), st.booleans())
def test_the_same_values_as_json(value: Any, escaped: bool, spaced: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped, indent=1 if spaced else None)
    line = f'{{"deep": {DEEP[0]}{text}{DEEP[1]}, "after": {text}}}'.encode(errors="surrogatepass")
    found = parse_object(line)
    assert innermost(found["deep"]) == value
    assert found["after"] == value


@pytest.mark.parametrize(
    "inner",
    ["1 2", "1,", ",1", "1,,2", "1:2", '{"a" 1}', '{"a",1}', '{"a":1,}', "{1:2}", '{"a"}', '{"a":}', "[1}", '{"a":1]',
     '"open', "nul", "01", '"\x01"', "]", "}", "{"],
)  # fmt: skip
def test_what_is_no_json_is_refused_at_any_depth(inner: str) -> None:
    for opening, closing in (DEEP, ("[", "]")):
        with pytest.raises(DataError, match="not valid JSON"):
            parse_object(f'{{"deep": {opening}{inner}{closing}}}'.encode())


def test_a_deep_line_that_is_no_object() -> None:
    with pytest.raises(DataError, match="not valid JSON"):
        parse_object(f"{DEEP[0]}{DEEP[1]}[]".encode())
    with pytest.raises(DataError):
        parse_object(f"[{DEEP[0]}{DEEP[1]}]".encode())
