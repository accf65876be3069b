"""Predictors fitted in closed form: what they read, by plain `transformers`, and that the folder gives it back."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.card import ModelCard, TemplateSpec
from steersman.errors import DataError, ModelError, OutputError
from steersman.models.load import load_model
from steersman.pipelines.jobs import TrainConfig, run_training
from steersman.pipelines.probes import ProbeConfig, run_probe
from steersman.pipelines.training_files import each_labelled, labelled_turns
from steersman.records import Conversation
from steersman.scoring.heads import HeadReader
from steersman.scoring.values import ValuePredictor

SCHEMA = AttributeSchema.of("quality", "humor", "toxicity")
WORDS = ("moon", "sun", "stars", "rain", "wind")


def talk(*turns: tuple[str, str, str | None], system: str = "") -> Conversation:
    made = [{"from": role, "value": value, "label": label} for role, value, label in turns]
    return Conversation.model_validate({"system": system, "type": "TEXT_TO_VALUE", "conversations": made})


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Answers whose first word says their quality, and how often it stands there their humor."""
    path = tmp_path / "labelled.jsonl"
    jsonl.write(
        path,
        (
            talk(
                ("User", f"the {WORDS[(number * 3 + times) % 5]} {number % 7}", None),
                ("Assistant", " ".join([word] * times), f"quality:{quality},humor:{times - 1}"),
            )
            for number in range(16)
            for times in range(1, 6)
            for quality, word in [((number + times) % 5, WORDS[(number + times) % 5])]
        ),
    )
    return path


@pytest.fixture
def config(tiny_model_folder: Path, labelled: Path, tmp_path: Path) -> ProbeConfig:
    return ProbeConfig(
        model=str(tiny_model_folder),
        output=tmp_path / "probe",
        attributes=SCHEMA,
        data=(str(labelled),),
        layers=1,
        template=TemplateSpec(kind="transcript", label_start="Rating:"),
        precision="float32",
    )


def test_it_learns_from_frozen_states(config: ProbeConfig, labelled: Path) -> None:
    figures = run_probe(config)
    assert figures["num_turns"] == 80
    assert set(figures["penalties"]) == {"quality", "humor"}, "nobody labelled toxicity"
    card = ModelCard.load(config.output)
    assert (card.role, card.head) == ("attributes", "probe")
    assert card.attributes is not None
    assert card.attributes.names == ("quality", "humor")
    predictor = ValuePredictor(load_model(config.output, precision="float32"))
    found = each_labelled(str(labelled), SCHEMA, lambda conversation: labelled_turns(conversation, SCHEMA))
    turns = [turn for turns in found for turn in turns]
    judged = predictor.judge([turn.conversation for turn in turns])
    for name in ("quality", "humor"):
        errors = [abs(found.expected[name] - turn.values[name]) for found, turn in zip(judged, turns, strict=True)]
        assert sum(errors) / len(errors) < 0.6, f"{name}: the scale's middle is wrong by 1.2"
        assert all(sum(found.probabilities[name]) == pytest.approx(1) for found in judged)


def test_features_are_the_answers_mean_its_end_and_its_size(config: ProbeConfig, tiny_model_folder: Path) -> None:
    run_probe(config)
    loaded = load_model(config.output, precision="float32")
    reader, tokenizer = HeadReader(loaded), loaded.encoder.tokenizer
    answer, prompt = "moon rain", "User: the sun\n\nAssistant: "
    conversations = [
        talk(("User", "the sun", None), ("Assistant", answer, None)),
        talk(
            ("User", "wind", None), ("Assistant", "stars", "quality:4"), ("User", "the sun", None),
            ("Assistant", answer, "quality:0"), system="Be kind.",
        ),
        talk(("User", "the sun", None), ("Assistant", "moon rain and wind", None)),
    ]  # fmt: skip
    features = reader.features(conversations)
    ids = tokenizer(prompt + answer + "\n\nRating:", return_offsets_mapping=True, add_special_tokens=False)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    plain.model.layers = plain.model.layers[:1]
    with torch.no_grad():
        states = plain.model(torch.tensor([ids.input_ids])).last_hidden_state[0]
    inside = [len(prompt) <= start < len(prompt) + len(answer) for start, _ in ids.offset_mapping]
    size = torch.tensor([math.log1p(sum(inside))])
    expected = torch.cat([states[torch.tensor(inside)].mean(0), states[-1], size])
    torch.testing.assert_close(features[0], expected)
    assert torch.equal(features[0], features[1]), "earlier turns, labels and the system prompt are not read"
    torch.testing.assert_close(reader.features(conversations[2:])[0], features[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(features[0], features[2], atol=1e-3)


def test_an_answer_without_words_has_features_too(config: ProbeConfig) -> None:
    run_probe(config)
    (features,) = HeadReader(load_model(config.output)).features([talk(("User", "a", None), ("Assistant", "", None))])
    *states, size = features
    assert states[: len(states) // 2] == states[len(states) // 2 :]
    assert size == 0


def test_what_it_refuses(config: ProbeConfig, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 2 layers, not the 3"):
        run_probe(config.model_copy(update={"layers": 3}))
    bare = tmp_path / "bare.jsonl"
    jsonl.write(bare, [talk(("User", "a", None), ("Assistant", "b", None))])
    with pytest.raises(DataError, match="no turn has a label"):
        run_probe(config.model_copy(update={"data": (str(bare),)}))
    jsonl.write(bare, [talk(("User", "a", None), ("Assistant", "b", "speed:4"))], overwrite=True)
    with pytest.raises(DataError, match=r"bare\.jsonl:1: turn 2"):
        run_probe(config.model_copy(update={"data": (str(bare),)}))
    run_probe(config)
    with pytest.raises(OutputError, match="exists already"):
        run_probe(config)


def test_it_is_not_trained_further(config: ProbeConfig, labelled: Path, tmp_path: Path) -> None:
    run_probe(config)
    recipe = {
        "model": str(config.output), "output": tmp_path / "run", "role": "attributes", "head": "values", "seq_len": 64,
        "attributes": ["quality", "humor"], "batch": {"sequences": 2}, "steps": 1, "optim": {"lr": 1e-3},
        "data": {"train": [{"path": str(labelled)}]},
    }  # fmt: skip
    with pytest.raises(ModelError, match="is a probe"):
        run_training(TrainConfig.model_validate(recipe))
    with pytest.raises(ValueError, match="for heads that judge"):
        TrainConfig.model_validate({**recipe, "head": "lm", "template": {"kind": "transcript"}})
