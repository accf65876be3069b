"""Conversation JSONL -> conversations with their rendered text, every bad record placed by file and line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.errors import DataError, LabelError
from steersman.records import Conversation
from steersman.text.template import Rendered, Template


def read_rendered(
    path: str | Path,
    template: Template,
    schema: AttributeSchema | None = None,
    *,
    on_error: jsonl.OnError = "stop",
    rejects: jsonl.Rejects | None = None,
    limit: int | None = None,
) -> Iterator[tuple[Conversation, Rendered]]:
    """Stream the records of a file with their text.

    Args:
        path: `.jsonl` or `.jsonl.gz`.
        template: writes the text.
        schema: where it is known, every label must fit it.
        on_error, rejects, limit: see `jsonl.parse_each`.

    Raises:
        DataError: a malformed record, a label outside the schema, or one that the template cannot write.
    """

    def parse(record: dict[str, Any]) -> tuple[Conversation, Rendered]:
        conversation = Conversation.model_validate(record)
        check_labels(conversation, schema)
        return conversation, template.render(conversation)

    return (item for _, item in jsonl.parse_each(path, parse, on_error=on_error, rejects=rejects, limit=limit))


def check_labels(conversation: Conversation, schema: AttributeSchema | None) -> None:
    """Raise `DataError` when a label does not fit the schema; without a schema nothing is checked."""
    for index, message in enumerate(conversation.conversations):
        if schema is not None and message.label is not None:
            try:
                schema.parse(message.label)
            except LabelError as error:
                raise DataError(f"turn {index + 1}: {error}") from None
