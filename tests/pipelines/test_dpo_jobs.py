"""Direct preference optimisation: what a policy learns, full or LoRA, and that a cut run ends alike."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from steersman import config, jsonl
from steersman.card import ModelCard
from steersman.config import validate
from steersman.errors import ConfigError, DataError, ModelError
from steersman.models.load import LoadedModel, load_model
from steersman.pipelines.jobs import REFERENCE, TrainConfig, run_training
from steersman.records import PreferencePair
from steersman.sources.chat_text import NEMO

from .conftest import QUESTIONS, pair


@pytest.fixture
def recipe(tmp_path, tiny_steered_folder):
    """`recipe(**overrides)` -> the config of a short run on 32 pairs, with a validation set."""
    jsonl.write(tmp_path / "train.jsonl", map(pair, range(32)))
    jsonl.write(tmp_path / "val.jsonl", map(pair, range(100, 112)))

    def make(**overrides):
        data = {
            "model": str(tiny_steered_folder),
            "output": str(tmp_path / "run"),
            "role": "dpo",
            "beta": 0.1,
            "data": {
                "train": [{"path": str(tmp_path / "train.jsonl")}],
                "validation": {"val": str(tmp_path / "val.jsonl")},
            },
            "seq_len": 128,
            "batch": {"pairs": 8, "micro_tokens": 512},
            "steps": 12,
            "optim": {"lr": 3e-3},
            "precision": "float32",
            **overrides,
        }
        return validate(data, TrainConfig, "recipe")

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def losses(run: TrainConfig) -> list[tuple]:
    reports = []
    run_training(run, reports.append)
    return [(report.num_trained, pytest.approx(report.loss, rel=1e-4)) for report in reports]


def answer_logprob(loaded: LoadedModel, one: PreferencePair, answer: str) -> float:
    """What a model says of an answer with its end, off the logits of the whole text."""
    (question,) = one.prompt
    head = f"<extra_id_0>System\n{loaded.card.system}\n<extra_id_1>User\n{question['content']}\n<extra_id_1>Assistant\n"
    ids = loaded.encoder.encode(f"{head}{answer}\n<extra_id_1>").ids
    size = len(ids) - len(loaded.encoder.encode(head).ids)
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        logprobs_LV = loaded.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logprobs_LV[place - 1, ids[place]].item() for place in range(len(ids) - size, len(ids)))


def test_a_policy_learns_which_answer_is_better(recipe, tmp_path, tiny_steered_folder):
    reports = []
    result = run_training(recipe(), reports.append)
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-5)  # it is the reference yet
    assert reports[0].metrics["reward_chosen"] == pytest.approx(0, abs=1e-5)
    assert reports[0].num_trained == 8  # pairs
    assert result.metrics["validation.val.accuracy"] == 1
    assert result.metrics["validation.val.reward_chosen"] > result.metrics["validation.val.reward_rejected"] + 0.5

    before, after = ModelCard.load(tiny_steered_folder), ModelCard.load(result.last)
    assert (after.role, after.head, after.attributes, after.system) == ("sft", "lm", before.attributes, before.system)

    # The reward that it implies is beta times what it says now, less what it said at first.
    now, then = (load_model(folder, precision="float32") for folder in (result.last, tiny_steered_folder))
    held_out = [pair(number) for number in range(100, 112)]
    moved = [answer_logprob(now, one, one.chosen) - answer_logprob(then, one, one.chosen) for one in held_out]
    assert result.metrics["validation.val.reward_chosen"] == pytest.approx(0.1 * sum(moved) / 12, rel=1e-3)


def test_the_reference_is_the_policy_before_it_is_trained(recipe, tmp_path, tiny_steered_folder):
    """Read off the trained tokens of the file's pairs, in its order, whatever rows they lay in."""
    run_training(recipe(steps=1, batch={"pairs": 8, "micro_tokens": 100}))
    reference = load_file(tmp_path / "run" / REFERENCE)
    assert [len(reference[name]) for name in ("0", "1")] == [64, 24]
    policy = load_model(tiny_steered_folder, precision="float32")
    answers = [(one, answer) for one in (pair(0), pair(31)) for answer in (one.chosen, one.rejected)]
    wanted = [answer_logprob(policy, one, answer) for one, answer in answers]
    assert reference["0"][[0, 1, 62, 63]].tolist() == pytest.approx(wanted, rel=1e-5)


def test_soft_labels_and_margins_reach_the_loss(recipe, tmp_path):
    """At the start all rewards are 0: soft labels change the gradient alone, a margin of 1 makes log(1 + e)."""
    changed = [pair(0, soft_label=0.8, margin=0.5), pair(1, soft_label=0.5, margin=0.5)]
    jsonl.write(tmp_path / "soft.jsonl", changed)
    options = {"data": {"train": [{"path": str(tmp_path / "soft.jsonl")}]}, "steps": 1, "batch": {"pairs": 2}}
    high, low = 1.313262, 0.313262  # -log sigma of -1 and of 1
    hand = (0.8 * high + 0.2 * low + 0.5 * high + 0.5 * low) / 2
    assert losses(recipe(**options)) == [(2, pytest.approx(math.log(2), rel=1e-4))]
    assert losses(recipe(**options, margin_scale=2, output=str(tmp_path / "margin"))) == [(2, pytest.approx(hand))]


def test_packing_accumulation_and_larger_families_change_nothing(recipe, tmp_path):
    def changed(name, **batch):
        # Adam's eps hides that a gradient of almost zero has a sign that rounding decides.
        return losses(recipe(steps=3, output=str(tmp_path / name), batch=batch, optim={"lr": 1e-3, "eps": 1e-4}))

    assert changed("packed", pairs=8, micro_tokens=2048) == changed("alone", pairs=8, micro_tokens=1)
    assert sum(number for number, _ in changed("tokens", tokens=400)) > 3


@pytest.mark.parametrize("lora", [None, {"rank": 4, "dropout": 0.1}])
def test_a_run_that_was_cut_ends_in_the_same_bits(recipe, tmp_path, lora):
    class CutError(Exception):
        pass

    options = {"steps": 8, "checkpoint": {"every": 3}, "lora": lora}
    for cut in (1, 5):

        def interrupt(report, cut=cut):
            if report.step == cut:
                raise CutError

        with pytest.raises(CutError):
            run_training(recipe(**options), interrupt)
    resumed = run_training(recipe(**options), bar=lambda *args, **options: pytest.fail("the reference was read again"))
    whole = run_training(recipe(**options, output=str(tmp_path / "whole")))
    assert_same_weights(resumed.last, whole.last)
    assert_same_weights(resumed.best, whole.best)


def test_an_adapter_begins_as_its_own_reference(recipe, tmp_path, tiny_steered_folder):
    """A fresh one says what its base does; one that goes on says what it did, which its base does not."""
    first = run_training(recipe(lora={"rank": 4}, optim={"lr": 2e-2}))
    assert first.metrics["validation.val.accuracy"] == 1
    reports = []
    run_training(recipe(model=str(first.last), output=str(tmp_path / "further")), reports.append)
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-5)
    base, further = (load_file(tmp_path / name / REFERENCE)["0"] for name in ("run", "further"))
    assert not torch.allclose(base, further, atol=0.1)


def test_two_processes_do_what_one_does(recipe, tmp_path):
    run = recipe(steps=2, optim={"lr": 1e-3, "eps": 1e-4}, batch={"pairs": 3, "micro_tokens": 100})
    (tmp_path / "recipe.yaml").write_text(config.dump(run))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    steersman = ["-m", "steersman", "train", "dpo", str(tmp_path / "recipe.yaml"), f"output={tmp_path / 'two'}"]
    done = subprocess.run([sys.executable, *torchrun, *steersman], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = weights(run_training(run).last), weights(tmp_path / "two" / "last")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    ours, theirs = (load_file(tmp_path / name / REFERENCE) for name in ("run", "two"))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-6) for name in ours)


def test_a_comparison_file_trains_as_its_pairs_do(recipe, tmp_path):
    texts = []
    for number in range(32):
        one = pair(number)
        for answer in (one.chosen, one.rejected):
            texts.append({"text": NEMO.write([*one.prompt, {"role": "assistant", "content": answer}])})
    jsonl.write(tmp_path / "comparisons.jsonl", texts)
    data = {"train": [{"path": str(tmp_path / "comparisons.jsonl")}]}
    theirs = losses(recipe(data=data, steps=2, output=str(tmp_path / "theirs")))
    assert theirs == losses(recipe(steps=2, output=str(tmp_path / "ours")))


def test_a_system_message_stands_in_the_place_of_the_models_own(recipe, tmp_path):
    other = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}]
    jsonl.write(tmp_path / "train.jsonl", [pair(0, prompt=other), pair(1, prompt=other), pair(2)], overwrite=True)
    result = run_training(recipe(steps=1))
    assert ModelCard.load(result.last).system == "Be brief."  # that of most


def test_pairs_that_are_too_long_are_counted(recipe, tmp_path, caplog):
    long = [pair(0, rejected="x " * 150), pair(1, prompt=[{"role": "user", "content": "x " * 150}])]
    jsonl.write(tmp_path / "train.jsonl", [*long, pair(2)], overwrite=True)
    run_training(recipe(steps=1))
    assert "2 of 3 pairs are longer than 128 tokens, a larger seq_len keeps more" in caplog.text
    jsonl.write(tmp_path / "train.jsonl", long, overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl: nothing to train on: 2 of 2 pairs are longer"):
        run_training(recipe(output=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "tool", "content": ""}], "prompt, message 1: give a role"),
        ([{"role": "system", "content": "Be kind."}], "the prompt is a system message alone"),
    ],
)
def test_bad_pairs_are_placed(recipe, tmp_path, prompt, message):
    jsonl.write(tmp_path / "train.jsonl", [pair(0), pair(1, prompt=prompt)], overwrite=True)
    with pytest.raises(DataError, match=rf"train.jsonl:2: {message}"):
        run_training(recipe())


def test_a_damaged_reference_is_named(recipe, tmp_path):
    class CutError(Exception):
        pass

    def interrupt(report):
        raise CutError

    with pytest.raises(CutError):
        run_training(recipe(), interrupt)
    (tmp_path / "run" / REFERENCE).write_bytes(b"half")
    with pytest.raises(ModelError, match=r"reference.safetensors is damaged .* run again"):
        run_training(recipe())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "reward"}, "role dpo has head lm, not reward"),
        ({"attributes": ["quality"]}, "role: dpo compares pairs: it has no attributes, and batch.pairs"),
        ({"batch": {"sequences": 1}}, "role: dpo compares pairs: it has no attributes, and batch.pairs"),
        ({"beta": None}, "role: dpo needs beta"),
        ({"role": "sft"}, "no other role has one"),
        ({"contrast": 1}, "contrast is for role: sft"),
    ],
)
def test_recipes_are_checked(recipe, change, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**change)
