"""NeMo conversation JSONL -> the same, checked: to split it, join files, or derive attributes.

Comes in: `{"system", "mask", "type", "conversations": [{"from", "value", "label"}, ...], ...}`. Goes out: each record
with all its keys; absent ones (`mask`, `label`) are written out.
"""

from steersman.attributes import SCHEMAS, AttributeSchema
from steersman.errors import ConfigError, DataError
from steersman.records import Conversation
from steersman.sources.deep_json import parse_object
from steersman.sources.prepare import Bar, PrepareConfig, each_line, no_bar, prepare
from steersman.sources.summary import DataSummary


class NemoConfig(PrepareConfig):
    """Options of NeMo conversations.

    Attributes:
        label_schema: what the labels name: "oasst", "helpsteer", "merged", or the output prefix of an earlier
            preparation, whose attributes are meant.
    """

    label_schema: str = "oasst"


def prepare_nemo(config: NemoConfig, bar: Bar = no_bar) -> DataSummary:
    """Prepare NeMo conversations. See `prepare.prepare` for what is written and raised."""
    schema = find_schema(config.label_schema).model_copy(update={"language": True})
    return prepare(config, each_line(lambda text: parse_record(text, schema)), schema, bar)


def find_schema(name: str) -> AttributeSchema:
    """The schema of a name, or of the preparation with this output prefix."""
    if name in SCHEMAS:
        return SCHEMAS[name]
    try:
        summary = DataSummary.load(name)
    except DataError as error:
        raise ConfigError(
            f"label_schema: {name!r} is none of {', '.join(SCHEMAS)}, nor an output prefix ({error})"
        ) from None
    return summary.attributes or AttributeSchema(attributes=())


def parse_record(text: bytes, schema: AttributeSchema) -> Conversation:
    """A record whose labels the schema can read; `ValidationError`, `DataError` or `LabelError` when it is none."""
    conversation = Conversation.model_validate(parse_object(text))
    for turn in conversation.conversations:
        if turn.label is not None:
            schema.parse(turn.label)
    return conversation
