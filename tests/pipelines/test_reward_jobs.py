"""Training reward models: what they learn, full or LoRA, from pairs or from values, and that a cut run ends alike."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from steersman import jsonl
from steersman.attributes import MERGED
from steersman.card import ModelCard
from steersman.config import validate
from steersman.errors import ConfigError, DataError, ModelError
from steersman.models.convert import merge
from steersman.models.load import load_model
from steersman.pipelines.jobs import HELPSTEER2_GOAL, TrainConfig, run_training
from steersman.pipelines.opened import open_predictor
from steersman.records import Conversation
from steersman.scoring.rewards import RewardModel
from steersman.sources.chat_text import NEMO
from steersman.sources.nemo import regression_lines
from steersman.steerlm.annotate import annotate

from .conftest import ANSWERS, QUESTIONS, pair


def labelled(number):
    """An answer whose helpfulness is its place among `ANSWERS`; only some have a correctness."""
    choose = random.Random(number)
    best = choose.randrange(4)
    label = f"helpfulness:{best}" + (f",correctness:{4 - best}" if number % 2 else "")
    turns = [
        {"from": "User", "value": choose.choice(QUESTIONS), "label": None},
        {"from": "Assistant", "value": ANSWERS[best], "label": label},
    ]
    return {"system": "", "mask": "User", "type": "TEXT_TO_VALUE", "conversations": turns}


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """`recipe(**overrides)` -> the config of a short run on 32 pairs, with a validation set."""
    jsonl.write(tmp_path / "train.jsonl", map(pair, range(32)))
    jsonl.write(tmp_path / "val.jsonl", map(pair, range(100, 112)))

    def make(**overrides):
        data = {
            "model": str(tiny_model_folder),
            "output": str(tmp_path / "run"),
            "role": "reward",
            "data": {
                "train": [{"path": str(tmp_path / "train.jsonl")}],
                "validation": {"val": str(tmp_path / "val.jsonl")},
            },
            "seq_len": 64,
            "batch": {"pairs": 8, "micro_tokens": 512},
            "steps": 30,
            "optim": {"lr": 1e-2},
            "precision": "float32",
            **overrides,
        }
        return validate(data, TrainConfig, "recipe")

    return make


@pytest.fixture
def regression(recipe, tmp_path):
    """The same for a model that regresses two attributes."""
    jsonl.write(tmp_path / "values.jsonl", map(labelled, range(32)))

    def make(**overrides):
        options = {
            "head": "regression",
            "attributes": ["helpfulness", "correctness"],
            "goal": {"helpfulness": 1, "correctness": 0.5},
            "data": {"train": [{"path": str(tmp_path / "values.jsonl")}]},
            "batch": {"sequences": 8},
        }
        return recipe(**{**options, **overrides})

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def test_it_learns_which_answer_is_better(recipe):
    reports = []
    result = run_training(recipe(), reports.append)
    assert reports[0].loss == pytest.approx(0.6931, abs=1e-4)  # a head of zeros: log 2
    assert reports[0].metrics["accuracy"] == 0.5
    assert reports[0].num_trained == 8  # pairs
    assert result.metrics["validation.val.accuracy"] == 1
    assert result.metrics["validation.val.reward_chosen"] > result.metrics["validation.val.reward_rejected"] + 1
    card = ModelCard.load(result.best)
    assert (card.role, card.head, card.attributes, card.goal, card.system) == ("reward", "reward", None, None, "")
    assert weights(result.last)["score.weight"].dtype == torch.float32


def test_soft_labels_and_margins_reach_the_loss(recipe, tmp_path):
    """At the start all rewards are 0: soft labels change nothing, a margin of 1 makes log(1 + e)."""
    changed = [pair(0, soft_label=0.8, margin=0.5), pair(1, soft_label=0.5, margin=0.5)]
    jsonl.write(tmp_path / "soft.jsonl", changed)
    data = {"train": [{"path": str(tmp_path / "soft.jsonl")}]}

    def first_loss(**options):
        reports = []
        output = str(tmp_path / f"run-{len(options)}")
        run_training(recipe(data=data, steps=1, batch={"pairs": 2}, output=output, **options), reports.append)
        return reports[0]

    assert first_loss().loss == pytest.approx(0.6931, abs=1e-4)
    high, low = 1.313262, 0.313262  # -log sigma of -1 and of 1
    assert first_loss(margin_scale=2).loss == pytest.approx((0.8 * high + 0.2 * low + 0.5 * high + 0.5 * low) / 2)


def test_packing_accumulation_and_larger_families_change_nothing(recipe, tmp_path):
    def losses(name, **batch):
        reports = []
        # Adam's eps hides that a gradient of almost zero has a sign that rounding decides.
        optim = {"lr": 1e-2, "eps": 1e-4}
        run_training(recipe(steps=3, output=str(tmp_path / name), batch=batch, optim=optim), reports.append)
        return [(report.num_trained, pytest.approx(report.loss, rel=1e-4)) for report in reports]

    assert losses("packed", pairs=8, micro_tokens=2048) == losses("alone", pairs=8, micro_tokens=1)
    assert sum(number for number, _ in losses("tokens", tokens=200)) > 3


def test_a_run_that_was_cut_ends_in_the_same_bits(recipe, tmp_path):
    class CutError(Exception):
        pass

    def cut(report):
        if report.step == 7:
            raise CutError

    options = {"steps": 10, "checkpoint": {"every": 3}, "lora": {"rank": 4, "dropout": 0.1}}
    with pytest.raises(CutError):
        run_training(recipe(**options), cut)
    resumed = run_training(recipe(**options))
    whole = run_training(recipe(**options, output=str(tmp_path / "whole")))
    ours, theirs = weights(resumed.last), weights(whole.last)
    assert ours.keys() == theirs.keys()
    assert any("score" in name for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_lora_trains_the_head_beside_the_adapter(recipe, tmp_path, tiny_model_folder):
    result = run_training(recipe(lora={"rank": 4}, optim={"lr": 2e-2}))
    assert result.metrics["validation.val.accuracy"] == 1
    loaded = load_model(result.last, precision="float32")
    before = weights(tiny_model_folder)
    base = {name.replace("base_layer.", ""): t for name, t in loaded.model.get_base_model().state_dict().items()}
    assert torch.equal(base["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert loaded.model.get_base_model().score.weight.abs().sum() > 0

    answers = [answer for number in range(3) for answer in pair(number).conversations()]
    rewards = RewardModel(loaded).rewards(answers)
    merge(result.last, tmp_path / "merged", precision="float32")
    assert RewardModel(load_model(tmp_path / "merged", precision="float32")).rewards(answers) == pytest.approx(
        rewards, rel=1e-4, abs=1e-4
    )
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    ids = loaded.encoder.encode_prompt(loaded.encoder.template.prompt_for_reward(answers[0]))
    assert theirs(torch.tensor([ids])).logits.item() == pytest.approx(rewards[0], rel=1e-4, abs=1e-4)


def test_an_adapter_goes_on_as_a_reward_model(recipe, tmp_path):
    """A LoRA checkpoint of fine-tuning is given a head, and both are trained on."""
    chats = [{**labelled(number), "type": None} for number in range(8)]
    jsonl.write(tmp_path / "chats.jsonl", chats)
    tuned = run_training(
        recipe(
            role="sft", lora={"rank": 4}, data={"train": [{"path": str(tmp_path / "chats.jsonl")}]},
            batch={"sequences": 4}, steps=2, output=str(tmp_path / "sft"),
        )
    )  # fmt: skip
    result = run_training(recipe(model=str(tuned.last), optim={"lr": 2e-2}))
    assert result.metrics["validation.val.accuracy"] > 0.9
    before, after = weights(tuned.last), weights(result.last)
    (head,) = after.keys() - before.keys()
    assert head.endswith("score.weight")
    assert after[head].dtype == torch.float32
    assert not all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    with pytest.raises(ModelError, match="has an adapter already"):
        run_training(recipe(model=str(tuned.last), lora={"rank": 4}, output=str(tmp_path / "other")))


def test_regression_learns_values_and_annotates(regression, tmp_path):
    result = run_training(regression(steps=60, optim={"lr": 1e-2}))
    assert result.metrics["loss"] < 0.1  # squared points a value
    assert result.metrics["accuracy"] == 1
    assert result.metrics["num_trained"] == pytest.approx(60 * 8 * 1.5, rel=0.1)  # values that somebody gave
    card = ModelCard.load(result.last)
    assert (card.role, card.head, card.attributes.names) == ("reward", "regression", ("helpfulness", "correctness"))
    assert card.goal == {"helpfulness": 1, "correctness": 0.5}

    judge = open_predictor(str(result.last), precision="float32")
    annotate(tmp_path / "values.jsonl", tmp_path / "annotated.jsonl", judge.scorer, identity=judge.identity)
    for chat, again in zip(
        map(labelled, range(32)), jsonl.read(tmp_path / "annotated.jsonl", Conversation), strict=True
    ):
        human, found = chat["conversations"][1]["label"], again.conversations[1].label
        assert found.partition(",")[0] == human.partition(",")[0]


def test_the_goal_is_helpsteer2s_by_default(recipe):
    config = recipe(head="regression", attributes="merged", batch={"sequences": 8})
    assert config.goal == HELPSTEER2_GOAL == {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45}


def test_pairs_that_are_too_long_are_counted(recipe, tmp_path, caplog):
    jsonl.write(tmp_path / "train.jsonl", [pair(0, rejected="x " * 80), pair(1), pair(2)], overwrite=True)
    run_training(recipe(steps=1))
    assert "1 of 3 pairs are longer than 64 tokens, a larger seq_len keeps more" in caplog.text
    jsonl.write(tmp_path / "train.jsonl", [pair(0, rejected="x " * 80)], overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl: nothing to train on: 1 of 1 pairs are longer"):
        run_training(recipe(output=str(tmp_path / "other")))


def test_bad_pairs_are_placed(recipe, tmp_path):
    jsonl.write(tmp_path / "train.jsonl", [pair(0), pair(1, prompt=[{"role": "tool", "content": ""}])], overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl:2: prompt, message 1: give a role"):
        run_training(recipe())
    jsonl.write(tmp_path / "train.jsonl", [labelled(0), labelled(1)], overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl:1: neither a pair .* nor a line of comparisons"):
        run_training(recipe(output=str(tmp_path / "other")))


def test_nemos_files_are_read_as_they_are(recipe, regression, tmp_path):
    """A comparison file trains as the pairs that it holds do, a regression file as its labelled conversations."""

    def losses(make, name, **change):
        reports = []
        run_training(make(steps=2, output=str(tmp_path / name), **change), reports.append)
        return [report.loss for report in reports]

    texts = []
    for number in range(32):
        one = pair(number)
        for answer in (one.chosen, one.rejected):
            texts.append({"text": NEMO.write([*one.prompt, {"role": "assistant", "content": answer}])})
    jsonl.write(tmp_path / "comparisons.jsonl", texts)
    data = {"train": [{"path": str(tmp_path / "comparisons.jsonl")}]}
    assert losses(recipe, "comparisons", data=data) == losses(recipe, "pairs")

    both = MERGED.restrict({"helpfulness", "correctness"})
    lines = [line for n in range(32) for line in regression_lines(Conversation.model_validate(labelled(n)), both)]
    assert lines[0]["text"].endswith("<extra_id_2>")
    assert lines[0]["label"].count(-100) == 8
    jsonl.write(tmp_path / "regression.jsonl", lines)
    data = {"train": [{"path": str(tmp_path / "regression.jsonl")}]}
    assert losses(regression, "nemo", data=data) == losses(regression, "ours")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "values"}, "role reward has head reward or regression, not values"),
        ({"head": "regression", "batch": {"sequences": 1}}, "attributes are needed"),
        ({"head": "regression", "batch": {"sequences": 1}, "attributes": ["quality"]}, "goal weighs helpfulness, "),
        ({"attributes": ["quality"]}, "it has no attributes, and batch.pairs"),
        ({"batch": {"sequences": 1}}, "it has no attributes, and batch.pairs"),
        ({"role": "sft"}, "batch.pairs and margin_scale are for head: reward"),
    ],
)
def test_recipes_are_checked(recipe, change, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**change)
