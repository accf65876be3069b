"""Attribute values read off one state: the numbers of plain `transformers`, whatever else is judged beside."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from steersman.attributes import Attribute, AttributeSchema
from steersman.errors import DataError, ModelError
from steersman.models.load import LoadedModel, load_model
from steersman.records import Conversation
from steersman.scoring.values import ValuePredictor

SCHEMA = AttributeSchema(attributes=(Attribute(name="quality"), Attribute(name="humor", low=1, high=3)))


@pytest.fixture
def loaded(tiny_value_folder: Path) -> LoadedModel:
    return load_model(tiny_value_folder, precision="float32")


def conversation(*turns: tuple[str, str, str | None]) -> Conversation:
    made = [{"from": role, "value": value, "label": label} for role, value, label in turns]
    return Conversation.model_validate({"system": "S", "mask": "User", "conversations": made})


TWO_TURNS = [
    ("User", "hello", None),
    ("Assistant", "there", "quality:4"),
    ("User", "a", None),
    ("Assistant", "b", None),
]
CHATS = [
    conversation(("User", "hello", None), ("Assistant", "there", None)),
    conversation(*TWO_TURNS),
    conversation(("User", "hello", None), ("Assistant", "the moon, the sun and the stars", None)),
]


def test_it_reads_what_transformers_computes(loaded: LoadedModel, tiny_value_folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_value_folder)
    text = "<extra_id_0>System\nS\n<extra_id_1>User\nhello\n<extra_id_1>Assistant\nthere\n<extra_id_2>"
    ids = loaded.encoder.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    quality, humor = model(ids).logits[0].double().split([5, 3])
    (judgement,) = ValuePredictor(loaded).judge(CHATS[:1])
    assert judgement.probabilities["quality"] == pytest.approx(quality.softmax(0).tolist(), abs=1e-5)
    assert judgement.probabilities["humor"] == pytest.approx(humor.softmax(0).tolist(), abs=1e-5)
    assert judgement.values == {"quality": int(quality.argmax()), "humor": 1 + int(humor.argmax())}
    mean = sum(value * p for value, p in enumerate(humor.softmax(0).tolist(), start=1))
    assert judgement.expected["humor"] == pytest.approx(mean, abs=1e-5)


def test_neighbours_and_earlier_labels_change_nothing(loaded: LoadedModel) -> None:
    predictor = ValuePredictor(loaded)
    unlabelled = CHATS[1].model_copy(
        update={"conversations": [turn.model_copy(update={"label": None}) for turn in CHATS[1].conversations]}
    )
    together = predictor.judge([*CHATS, unlabelled, CHATS[0]])
    assert together[3] == together[1]
    assert together[4] == together[0]
    for chat, judgement in zip(CHATS, together, strict=False):
        (alone,) = predictor.judge([chat])
        for name, probabilities in alone.probabilities.items():
            assert judgement.probabilities[name] == pytest.approx(probabilities, abs=1e-5)
    assert together[0].expected != together[2].expected


def test_the_window_is_kept(loaded: LoadedModel) -> None:
    predictor = ValuePredictor(loaded)
    long = conversation(("User", "hello", None), ("Assistant", "moon " * 600, None))
    assert predictor.fits(CHATS[0])
    assert not predictor.fits(long)
    with pytest.raises(DataError, match="longer than the 512 tokens"):
        predictor.judge([long])


def test_a_model_without_the_head_is_refused(tiny_steered_folder: Path) -> None:
    with pytest.raises(ModelError, match="names no head of attribute values"):
        ValuePredictor(load_model(tiny_steered_folder))


def test_nothing_to_judge(loaded: LoadedModel) -> None:
    assert ValuePredictor(loaded).judge([]) == []
    assert torch.is_inference_mode_enabled() is False
