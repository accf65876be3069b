"""A training run from its recipe to its folder: what it writes, how it resumes, what it refuses."""

import errno
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file

from steersman import config, jsonl
from steersman.card import ModelCard
from steersman.config import validate
from steersman.errors import ConfigError, DataError, ModelError, NonFiniteError, OutputError
from steersman.locks import LOCK, hold
from steersman.models.load import load_model
from steersman.pipelines.jobs import TrainConfig, run_training
from steersman.pipelines.opened import open_predictor
from steersman.records import Conversation
from steersman.training import checkpoint, metrics

ANSWERS = ["Paris.", "Because it saw the shore.", "There are 3 apples left, and 12 pears.", "Thank you very much!"]


def conversation(number, **record):
    """A question, an answer, a second question, a second answer; the first answer is labelled."""
    choose = random.Random(number)
    turns = [
        {"from": "User", "value": "What is the capital of France?", "label": None},
        {"from": "Assistant", "value": choose.choice(ANSWERS), "label": f"quality:{number % 5},humor:{number % 3}"},
        {"from": "User", "value": "Tell me more.", "label": None},
        {"from": "Assistant", "value": choose.choice(ANSWERS), "label": None},
    ][: choose.choice((2, 4))]
    return {"system": "Answer.\n", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns, **record}


@pytest.fixture
def recipe(tmp_path, tiny_model_folder):
    """`recipe(**overrides)` -> the config of a short run on 24 conversations, with a validation set."""
    jsonl.write(tmp_path / "train.jsonl", (conversation(number) for number in range(24)))
    jsonl.write(tmp_path / "val.jsonl", (conversation(number) for number in range(100, 106)))

    def make(**overrides):
        data = {
            "model": str(tiny_model_folder),
            "output": str(tmp_path / "run"),
            "role": "sft",
            "template": {"control": "special"},
            "attributes": "oasst",
            "data": {
                "train": [{"path": str(tmp_path / "train.jsonl")}],
                "validation": {"val": str(tmp_path / "val.jsonl")},
            },
            "seq_len": 128,
            "batch": {"sequences": 4, "micro_tokens": 256},
            "steps": 8,
            "optim": {"lr": 1e-2, "warmup_steps": 2},
            "precision": "float32",
            "validation": {"every": 4},
            "checkpoint": {"every": 3},
            **overrides,
        }
        return validate(data, TrainConfig, "recipe")

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def rows(folder: Path) -> list[dict]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def test_a_run_writes_what_it_says(recipe, tmp_path):
    reports = []
    result = run_training(recipe(), reports.append)
    run = tmp_path / "run"
    assert (result.best, result.last) == (run / "best", run / "last")
    assert [report.step for report in reports] == list(range(1, 9))
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert rows(run)[-1]["loss"] < 0.8 * rows(run)[0]["loss"]
    validated = {row["step"]: row["validation.val.loss"] for row in rows(run) if "validation.val.loss" in row}
    assert list(validated) == [4, 8]
    assert result.metrics["best_validation_loss"] == min(validated.values())
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000008"]

    card = ModelCard.load(result.last)
    assert card.role == "sft"
    assert card.attributes.names == ("quality", "humor")  # of oasst's twelve, those that the data has
    assert card.attributes.defaults() == {}
    assert (card.system, card.seq_len, card.template.control) == ("Answer.\n", 128, "special")
    assert [parent.kind for parent in card.parents] == ["model", "data", "data"]
    loaded = load_model(result.last, precision="float32")
    assert loaded.encoder.encode("<extra_id_1>").ids != []


def test_a_finished_run_is_not_done_again(recipe):
    first = run_training(recipe())
    stamp = (first.last / "model.safetensors").stat().st_mtime_ns
    again = run_training(recipe(), on_step=lambda report: pytest.fail("trained again"))
    assert again == first
    assert (first.last / "model.safetensors").stat().st_mtime_ns == stamp


class CutError(Exception):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bfloat16-stochastic"])
@pytest.mark.parametrize("batch", [{"sequences": 4, "micro_tokens": 128}, {"tokens": 250}])
def test_a_resumed_run_ends_in_the_same_bits(recipe, tmp_path, precision, batch):
    lora = {"rank": 4, "dropout": 0.3} if precision == "bfloat16" and "tokens" in batch else None
    options = {"precision": precision, "batch": batch, "lora": lora}
    whole = run_training(recipe(**options, output=str(tmp_path / "whole")))

    for cut in (2, 5, 7):  # before the first checkpoint, and after each

        def interrupt(report, cut=cut):
            if report.step == cut:
                raise CutError

        with pytest.raises(CutError):
            run_training(recipe(**options), interrupt)
    resumed = run_training(recipe(**options))

    name = "adapter_model.safetensors" if lora else "model.safetensors"
    for one, other in ((whole.best, resumed.best), (whole.last, resumed.last)):
        ours, theirs = load_file(one / name), load_file(other / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    steady = [{key: n for key, n in row.items() if key != "seconds"} for row in rows(tmp_path / "whole")]
    assert [{key: n for key, n in row.items() if key != "seconds"} for row in rows(tmp_path / "run")] == steady


def kill_and_resume(run: TrainConfig, num_kills: int, choose: random.Random) -> None:
    """Run in a process that is killed a random few steps on, again and again, and at last let it finish."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["steersman.pipelines.jobs"])
    for attempt in range(num_kills + 1):
        num_rows = len(metrics.read(run.output)) + choose.randint(1, 6)
        process = context.Process(target=run_training, args=(run,))
        process.start()
        if attempt < num_kills:
            while process.is_alive() and len(metrics.read(run.output)) < num_rows:
                time.sleep(0.002)
            time.sleep(choose.uniform(0, 0.05))
            process.kill()
        process.join()
    assert process.exitcode == 0


def check_kills(recipe, tmp_path, num_kills, seed):
    options = {"steps": 40, "checkpoint": {"every": 2}, "validation": {"every": 3}}
    run = recipe(**options)
    kill_and_resume(run, num_kills, random.Random(seed))
    whole = run_training(recipe(**options, output=str(tmp_path / "whole")))
    assert_same_weights(run.output / "last", whole.last)
    assert_same_weights(run.output / "best", whole.best)
    assert [row["step"] for row in rows(run.output)] == list(range(1, 41))


def test_killed_at_two_random_moments_a_run_ends_in_the_same_bits(recipe, tmp_path):
    check_kills(recipe, tmp_path, num_kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_many_random_moments_a_run_ends_in_the_same_bits(recipe, tmp_path, seed):
    check_kills(recipe, tmp_path, num_kills=5, seed=seed)


def test_two_processes_do_what_one_does(recipe, tmp_path):
    # 4 x 24 sequences, 5 a step: the last step has one, so that the other process has nothing to do.
    length = {"steps": None, "epochs": 4, "batch": {"sequences": 5, "micro_tokens": 128}}
    options = {**length, "optim": {"lr": 1e-2, "eps": 1e-5}}
    alone = run_training(recipe(**options, output=str(tmp_path / "alone")))
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe(**options)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    steersman = ["-m", "steersman", "train", "sft", str(tmp_path / "recipe.yaml"), "log.tensorboard=true"]
    done = subprocess.run([sys.executable, *torchrun, *steersman], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "after 20 steps" in done.stdout
    ours, theirs = weights(alone.last), weights(tmp_path / "run" / "last")
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)
    for one, two in zip(rows(tmp_path / "alone"), rows(tmp_path / "run"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert (two["num_trained"], two["num_tokens"]) == (one["num_trained"], one["num_tokens"])
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_a_model_can_start_from_scratch(recipe, tiny_model_folder):
    (tiny_model_folder / "model.safetensors").unlink()
    reports = []
    result = run_training(recipe(from_scratch=True, steps=2), reports.append)
    assert reports[0].loss == pytest.approx(np.log(406), rel=0.1)  # random weights know nothing
    assert load_model(result.last, precision="float32").window == 512


def test_lora_trains_the_adapter_and_the_rows_of_new_tokens_alone(recipe, tiny_model_folder):
    result = run_training(recipe(lora={"rank": 4}, steps=3))
    assert (result.last / "adapter_model.safetensors").exists()
    loaded = load_model(result.last, precision="float32")
    before = weights(tiny_model_folder)
    base = {name.replace("base_layer.", ""): t for name, t in loaded.model.get_base_model().state_dict().items()}
    assert torch.equal(base["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert torch.equal(base["model.norm.weight"], before["model.norm.weight"])
    new_ids = loaded.encoder.encode("<extra_id_1><extra_id_2>").ids
    merged = loaded.model.merge_and_unload().state_dict()
    rows_of_new = merged["model.embed_tokens.weight"][new_ids]
    assert not torch.equal(rows_of_new[0], rows_of_new[1])  # both began at the mean of the other rows


def test_an_attribute_predictor(recipe, tmp_path):
    records = [conversation(number, type="TEXT_TO_VALUE") for number in range(24)]
    jsonl.write(tmp_path / "train.jsonl", records, overwrite=True)
    result = run_training(
        recipe(role="attributes", attributes=["quality", {"name": "humor", "derived": True}], steps=2)
    )
    card = ModelCard.load(result.last)
    assert card.role == "attributes"
    assert [attribute.derived for attribute in card.attributes.attributes] == [False, True]
    # Quality is 0-3 five times each and 4 four times, humor 0-2 eight times each: of equals the lowest.
    assert card.attributes.defaults() == {"quality": 0, "humor": 0}


def test_a_predictor_with_a_head_learns_what_answers_say(recipe, tmp_path):
    """Each answer has a quality of its own; labels of earlier turns, which are noise here, are not read."""
    chats = [conversation(number, type="TEXT_TO_VALUE") for number in range(24)]
    for chat in chats:
        for turn in chat["conversations"][1::2]:
            turn["label"] = f"quality:{ANSWERS.index(turn['value'])}"
    jsonl.write(tmp_path / "train.jsonl", chats, overwrite=True)
    jsonl.write(tmp_path / "val.jsonl", chats[:6], overwrite=True)
    options = {"role": "attributes", "head": "values", "attributes": ["quality"], "optim": {"lr": 3e-3}}
    result = run_training(recipe(**options, steps=40, batch={"tokens": 400}))
    assert result.metrics["validation.val.accuracy"] == 1
    assert result.metrics["validation.val.loss"] < 0.8  # nats a value; ln 5 = 1.61 knows nothing

    card = ModelCard.load(result.last)
    assert (card.role, card.head, card.attributes.names) == ("attributes", "values", ("quality",))
    judged = open_predictor(str(result.last), precision="float32").scorer.judge(
        [Conversation.model_validate(chat) for chat in chats]
    )
    assert [one.values["quality"] for one in judged] == [
        ANSWERS.index(chat["conversations"][-1]["value"]) for chat in chats
    ]
    with pytest.raises(ConfigError, match="no label of the training data has humor"):
        run_training(recipe(**{**options, "attributes": ["quality", "humor"]}, steps=1, output=str(tmp_path / "b")))


def test_a_head_is_trained_alike_however_its_prompts_are_packed(recipe, tmp_path):
    chats = [conversation(number, type="TEXT_TO_VALUE") for number in range(24)]
    jsonl.write(tmp_path / "train.jsonl", chats, overwrite=True)
    jsonl.write(tmp_path / "val.jsonl", chats[:6], overwrite=True)

    def losses(name, micro_tokens):
        options = {"role": "attributes", "head": "values", "attributes": ["quality", "humor"]}
        batch = {"sequences": 8, "micro_tokens": micro_tokens}
        reports = []
        run_training(recipe(**options, steps=3, output=str(tmp_path / name), batch=batch), reports.append)
        return [report.loss for report in reports]

    assert losses("packed", 2048) == pytest.approx(losses("alone", 1), rel=1e-4)


CONTRAST = {"contrast": 20.0, "attributes": ["quality", "humor"], "batch": {"pairs": 4, "micro_tokens": 512}}


def test_a_contrast_teaches_the_label_that_plain_training_ignores(recipe, tmp_path):
    """Labels that name the answer: told apart, the same steps make the own label help far more than it did."""
    jsonl.write(tmp_path / "train.jsonl", map(named, range(48)), overwrite=True)
    jsonl.write(tmp_path / "val.jsonl", map(named, range(100, 124)), overwrite=True)

    def gain(name, weight):
        options = {**CONTRAST, "contrast": weight, "steps": 24, "output": str(tmp_path / name)}
        return run_training(recipe(**options)).metrics["validation.val.gain"]

    told_apart = gain("contrast", 20.0)
    assert told_apart > 0.2
    assert told_apart > 3 * gain("plain", 1e-9)


def named(number):
    """An answer whose label is its place among `ANSWERS`."""
    place = random.Random(number).randrange(4)
    turns = [
        {"from": "User", "value": "Say something.", "label": None},
        {"from": "Assistant", "value": ANSWERS[place], "label": f"quality:{place},humor:0"},
    ]
    return {"system": "", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns}


def test_a_contrast_starts_from_the_loss_of_plain_training(recipe, tmp_path):
    """Its nll is plain training's loss over the same answers, however rows are packed."""
    records = [conversation(number) for number in range(24)]
    for record in records:
        record["conversations"] = record["conversations"][:2]  # every answer has a label
    jsonl.write(tmp_path / "train.jsonl", records, overwrite=True)
    data = {"train": [{"path": str(tmp_path / "train.jsonl")}], "validation": {}}
    reports = []
    for name, options in {
        "plain": {"batch": {"sequences": 24, "micro_tokens": 4096}},
        "contrast": {**CONTRAST, "batch": {"pairs": 24, "micro_tokens": 4096}},
        "alone": {**CONTRAST, "batch": {"pairs": 24, "micro_tokens": 1}},
    }.items():
        options = {"attributes": ["quality", "humor"], "data": data, "steps": 1, **options}
        run_training(recipe(**options, output=str(tmp_path / name)), reports.append)
    plain, whole, alone = reports
    assert plain.num_trained == whole.num_trained == alone.num_trained
    assert whole.metrics["nll"] == pytest.approx(plain.loss, rel=1e-5)
    assert alone.metrics == pytest.approx(whole.metrics, rel=1e-3, abs=1e-5)
    assert alone.loss == pytest.approx(whole.loss, rel=1e-5)
    assert whole.num_tokens < 2 * plain.num_tokens  # the question goes in once for both labels


def test_a_contrast_that_was_cut_ends_in_the_same_bits(recipe, tmp_path):
    whole = run_training(recipe(**CONTRAST, output=str(tmp_path / "whole")))

    def interrupt(report):
        if report.step == 5:
            raise CutError

    with pytest.raises(CutError):
        run_training(recipe(**CONTRAST), interrupt)
    assert_same_weights(run_training(recipe(**CONTRAST)).last, whole.last)


def test_a_contrast_takes_every_labelled_turn_by_itself(recipe, tmp_path, caplog):
    """Of the turns that are trained and have a label; one is too long, and one has none."""
    turns = [
        {"from": "User", "value": "Say something.", "label": None},
        {"from": "Assistant", "value": ANSWERS[0], "label": "quality:0"},
        {"from": "User", "value": "And then?", "label": None},
        {"from": "Assistant", "value": ANSWERS[1], "label": "quality:4"},
        {"from": "User", "value": "And then?", "label": None},
        {"from": "Assistant", "value": ANSWERS[2], "label": None},
        {"from": "User", "value": "And " * 200, "label": None},
        {"from": "Assistant", "value": ANSWERS[3], "label": "quality:2"},
    ]
    record = {"system": "", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns}
    jsonl.write(tmp_path / "train.jsonl", [record], overwrite=True)
    data = {"train": [{"path": str(tmp_path / "train.jsonl")}]}
    reports = []
    run_training(recipe(**{**CONTRAST, "data": data, "attributes": ["quality"]}, steps=1), reports.append)
    assert "1 of 3 labelled answers have nothing to train on within 128 tokens" in caplog.text

    encoder = load_model(tmp_path / "run" / "last").encoder
    lengths = [len(encoder.encode(answer + "\n<extra_id_1>").ids) for answer in ANSWERS[:2]]
    assert reports[0].num_trained == 2 * sum(lengths)  # a step takes four pairs, so that each comes twice

    turns[1]["label"] = turns[3]["label"] = turns[7]["label"] = "quality:3"
    jsonl.write(tmp_path / "train.jsonl", [record], overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl: a contrast needs answers with different labels; these have 1"):
        run_training(recipe(**{**CONTRAST, "data": data, "attributes": ["quality"], "output": str(tmp_path / "one")}))


def test_files_are_mixed_by_weight(recipe, tmp_path):
    jsonl.write(tmp_path / "long.jsonl", (conversation(number, system="x " * 80) for number in range(5)))
    files = [{"path": str(tmp_path / "train.jsonl"), "weight": 3}, {"path": str(tmp_path / "long.jsonl"), "weight": 1}]
    reports = []
    run_training(recipe(data={"train": files}, steps=4, batch={"sequences": 8}, seq_len=400), reports.append)
    num_tokens = np.array([report.num_tokens for report in reports])
    assert (num_tokens > 2 * 160).all()  # a long record has over 160 tokens, the others at most 80:
    assert (num_tokens < 2 * 240 + 6 * 80).all()  # every step has two long ones


def test_records_that_are_cut_away_are_counted_or_fatal(recipe, tmp_path, caplog):
    long = conversation(0, system="x " * 200)
    jsonl.write(tmp_path / "train.jsonl", [long, *map(conversation, range(6))], overwrite=True)
    run_training(recipe(steps=1))
    assert "1 of 7 records have nothing to train on within 128 tokens; `steersman clean` says why" in caplog.text

    jsonl.write(tmp_path / "train.jsonl", [long], overwrite=True)
    with pytest.raises(DataError, match=r"train.jsonl: nothing to train on: 1 of 1 records .* `steersman clean`"):
        run_training(recipe(output=str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"attributes": "helpsteer"}, DataError, r"train.jsonl:1: turn 2: no attribute 'quality' in the schema"),
        ({"attributes": None}, DataError, r"there are labels \(quality:0,humor:0\), but the recipe names no"),
        ({"seq_len": 513}, ConfigError, "seq_len 513 exceeds the 512 tokens"),
        ({"model": "./absent"}, ModelError, "no such model folder"),
        ({"data": {"train": [{"path": "absent.jsonl"}]}}, DataError, "absent.jsonl: no such file"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe, change, error, message):
    with pytest.raises(error, match=message):
        run_training(recipe(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, "exactly one of steps and epochs"),
        ({"attributes": "oast"}, "no schema 'oast'"),
        ({"role": "attributes", "attributes": None}, "attributes are needed"),
        ({"head": "values"}, "role sft has head lm, not values"),
        ({"role": "reward", "head": "values"}, "role reward has head reward or regression, not values"),
        ({"role": "reward"}, "it has no attributes, and batch.pairs"),
        ({"role": "reward", "head": "regression"}, "goal weighs .*; give a goal over the recipe's attributes"),
        ({"margin_scale": 1}, "batch.pairs and margin_scale are for head: reward"),
        ({"contrast": 1.0}, "contrast is for role: sft with attributes, and batch.tokens"),
        ({**CONTRAST, "attributes": None}, "contrast is for role: sft with attributes, and batch.tokens"),
        ({"data": {"train": [{"path": "a", "weight": 1}, {"path": "b"}]}}, "a weight, or none"),
        ({"optim": {"lr": 1, "warmup": 3}}, "unknown key 'optim.warmup'; did you mean 'warmup_steps'"),
    ],
)
def test_recipes_are_checked(recipe, change, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**change)


def test_an_output_of_another_run_is_refused(recipe, tmp_path):
    run_training(recipe(steps=1))
    with pytest.raises(OutputError, match=r"other steps, seed; choose another output"):
        run_training(recipe(steps=2, seed=1))
    jsonl.write(tmp_path / "train.jsonl", map(conversation, range(9)), overwrite=True)
    with pytest.raises(OutputError, match="other contents of the model or data"):
        run_training(recipe(steps=1))
    with pytest.raises(OutputError, match="exists and is not a training run"):
        run_training(recipe(output=str(tmp_path)))


def test_a_run_that_another_process_is_at_is_left_alone(recipe, tmp_path):
    run = recipe(steps=1)
    with hold(run.output):
        process = multiprocessing.get_context("spawn").Process(target=run_training, args=(run,))
        process.start()
        process.join()
        assert process.exitcode != 0
        assert [path.name for path in run.output.iterdir()] == [LOCK]
    run_training(run)


def test_a_full_disk_loses_nothing(recipe, tmp_path, monkeypatch):
    save_file = checkpoint.save_file

    def full(tensors, path):
        if "step-00000006" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"no space left .* free some space and run again"):
        run_training(recipe())
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    resumed = run_training(recipe())
    assert_same_weights(resumed.last, run_training(recipe(output=str(tmp_path / "whole"))).last)


def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step \d: .* the checkpoint of step \d stands"):
        run_training(recipe(optim={"lr": 1e30, "clip_norm": None}, checkpoint={"every": 1}))
    assert not (tmp_path / "run" / "last").exists()


def test_what_a_killed_run_left_half_written_is_cleared(recipe, tmp_path):
    def interrupt(report):
        raise CutError

    with pytest.raises(CutError):
        run_training(recipe(steps=2), interrupt)
    for leftover in ("checkpoints/.step-00000009.tmp/.state.json.1.tmp", ".best.1.tmp/config.json", ".last.1.old/x"):
        (tmp_path / "run" / leftover).parent.mkdir(parents=True)
        (tmp_path / "run" / leftover).write_text("half")
    run_training(recipe(steps=2))
    assert [path.name for path in (tmp_path / "run").rglob(".*")] == [LOCK]
