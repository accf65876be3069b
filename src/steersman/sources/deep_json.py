"""JSON objects of any depth: a tree with a thousand replies below one another nests deeper than orjson reads."""

import re
from typing import Any

import orjson

from steersman import jsonl
from steersman.errors import DataError

ORJSON_DEPTH = 1024
"""Containers within one another that orjson reads."""

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},:]|[^ \t\r\n\[\]{},:"]+|"')
_COMMA, _COLON = object(), object()
_SEPARATORS = {b",": _COMMA, b":": _COLON}


def parse_object(line: bytes) -> dict[str, Any]:
    """`jsonl.parse_json` without its limit of depth; `DataError` when the line is not a JSON object."""
    try:
        return jsonl.parse_json(line)
    except DataError:
        if line.count(b"[") + line.count(b"{") <= ORJSON_DEPTH:
            raise
        try:
            value = _loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise
        return value


def _loads(text: bytes) -> Any:
    """Parse with a stack of open containers in place of recursion; `ValueError` when the text is not JSON."""
    open_containers: list[tuple[bytes, list[Any]]] = [(b"", [])]
    for token in _TOKEN.findall(text):
        if token in (b"[", b"{"):
            open_containers.append((token, []))
            continue
        if token in (b"]", b"}"):
            bracket, parts = open_containers.pop()
            part: Any = _close(bracket + token, parts)
        else:
            part = _SEPARATORS[token] if token in _SEPARATORS else orjson.loads(token)
        open_containers[-1][1].append(part)
    (_, whole), *unclosed = open_containers
    if unclosed or len(whole) != 1:
        raise ValueError("a bracket stays open, or more than one value stands there")
    return whole[0]


def _close(brackets: bytes, parts: list[Any]) -> list[Any] | dict[str, Any]:
    """The container that `parts` fill: values, with separators in between."""
    values, separators = parts[::2], parts[1::2]
    wanted = {b"[]": (_COMMA,), b"{}": (_COLON, _COMMA)}.get(brackets)
    if (
        wanted is None
        or (parts and len(parts) % 2 == 0)
        or any(separator is not wanted[i % len(wanted)] for i, separator in enumerate(separators))
        or any(value is _COMMA or value is _COLON for value in values)
    ):
        raise ValueError("brackets, commas or colons do not match")
    if brackets == b"[]":
        return values
    names = values[::2]
    if len(values) % 2 or not all(isinstance(name, str) for name in names):
        raise ValueError("an object holds names and values")
    return dict(zip(names, values[1::2], strict=True))
