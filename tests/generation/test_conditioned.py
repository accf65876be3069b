import pytest

from steersman.attributes import Attribute, AttributeSchema
from steersman.card import TemplateSpec
from steersman.errors import ConfigError, LabelError
from steersman.generation.conditioned import answer_request, answer_text, fill_attributes
from steersman.records import Completion, Conversation
from steersman.seams import Sampling
from steersman.text.template import Template

SCHEMA = AttributeSchema(
    attributes=(
        Attribute(name="quality", default=4),
        Attribute(name="toxicity", default=0),
        Attribute(name="humor"),
    )
)
TEMPLATE = Template(TemplateSpec())
QUESTION = Conversation.model_validate(
    {
        "system": "S",
        "conversations": [
            {"from": "User", "value": "hi"},
            {"from": "Assistant", "value": "ho", "label": "quality:1"},
            {"from": "User", "value": "well?"},
        ],
    }
)
HEAD = "<extra_id_0>System\nS\n<extra_id_1>User\nhi\n<extra_id_1>Assistant\n"


def test_partial_attributes_are_filled_in_schema_order() -> None:
    assert list(fill_attributes({"humor": 3, "quality": 2}, SCHEMA).items()) == [
        ("quality", 2),
        ("toxicity", 0),
        ("humor", 3),
    ]
    assert fill_attributes({"humor": 3}, SCHEMA, rest={"quality": 0}) == {"quality": 0, "humor": 3}
    assert fill_attributes({}, None) == {}


@pytest.mark.parametrize(
    ("attributes", "words"), [({"qualty": 4}, "did you mean 'quality'"), ({"humor": 5}, "from 0 to 4")]
)
def test_attributes_outside_the_schema(attributes: dict[str, int], words: str) -> None:
    with pytest.raises(LabelError, match=words):
        answer_request(QUESTION, TEMPLATE, SCHEMA, attributes, Sampling())


def test_a_model_without_attributes_refuses_them_and_writes_no_label() -> None:
    request = answer_request(QUESTION, TEMPLATE, None, {}, Sampling())
    assert request.prompt.text == HEAD + "ho\n<extra_id_1>User\nwell?\n<extra_id_1>Assistant\n"
    with pytest.raises(LabelError, match="no attributes"):
        answer_request(QUESTION, TEMPLATE, None, {"humor": 1}, Sampling())


def test_the_prompt_ends_in_the_label_line() -> None:
    request = answer_request(QUESTION, TEMPLATE, SCHEMA, {"humor": 3}, Sampling(stop=("\n\n",)))
    assert request.prompt.text == (
        HEAD + "<extra_id_2>quality:1\nho\n<extra_id_1>User\nwell?\n"
        "<extra_id_1>Assistant\n<extra_id_2>quality:4,toxicity:0,humor:3\n"
    )
    assert request.sampling.stop == ("\n\n", "<extra_id_1>")
    assert request.guidance is None


@pytest.mark.parametrize(
    ("asked", "against"),
    [
        ({"humor": 4}, "quality:4,toxicity:0,humor:0"),  # only what was asked for is mirrored
        ({"quality": 3, "humor": 1}, "quality:1,toxicity:0,humor:3"),
        ({}, "quality:0,toxicity:4"),  # nothing asked for: the defaults
    ],
)
def test_guidance_contrasts_with_the_opposite(asked: dict[str, int], against: str) -> None:
    request = answer_request(QUESTION, TEMPLATE, SCHEMA, asked, Sampling(), 2.0)
    assert request.guidance is not None
    assert request.guidance.scale == 2.0
    assert request.guidance.against.text.endswith(f"<extra_id_1>Assistant\n<extra_id_2>{against}\n")


def test_guidance_without_contrast() -> None:
    assert answer_request(QUESTION, TEMPLATE, SCHEMA, {"humor": 2}, Sampling(), 2.0).guidance is None
    with pytest.raises(ConfigError, match="attributes to guide by"):
        answer_request(QUESTION, TEMPLATE, None, {}, Sampling(), 2.0)


def test_answer_text_is_a_turns_value() -> None:
    completion = Completion(text=" Paris.\n", token_ids=[1, 2], finish_reason="stop", stop="<extra_id_1>")
    assert answer_text(completion) == "Paris."
