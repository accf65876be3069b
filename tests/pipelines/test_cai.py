"""The whole Constitutional AI pipeline on a tiny sandbox: what is written, skipped, and run again."""

import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import orjson
import pytest

from steersman import config, jsonl
from steersman.cai.revise import Revised
from steersman.errors import DataError
from steersman.evaluation.harm import Answered
from steersman.models.load import load_model
from steersman.pipelines import cai
from steersman.pipelines.cai_config import CaiConfig
from steersman.pipelines.running import Display, Result
from steersman.pipelines.stages import Manifest
from steersman.records import Conversation, PreferencePair
from steersman.sandbox.oracle import is_harmful
from steersman.scoring.rewards import RewardModel


def make_recipe(output: Path) -> dict[str, Any]:
    job = {
        "seq_len": 256,
        "batch": {"sequences": 4},
        "steps": 2,
        "optim": {"lr": 1e-3},
        "precision": "float32",
        "validation": {"every": 1, "batches": 1},
    }
    return {
        "title": "A <tiny> model & its constitution",
        "output": str(output),
        "sandbox": {
            "num_base": 24,
            "num_assistant": 24,
            "num_helpful": 12,
            "num_pairs": 8,
            "num_validation": 4,
            "num_test": 8,
        },
        "base": {**job, "steps": 30, "optim": {"lr": 5e-3}},
        "helpful": job,
        "revise": {"num_prompts": 6, "rounds": 2, "max_tokens": 100},
        "blend": {"helpful_ratio": 1},
        "sl_cai": job,
        "answers": {"answers": 3, "num_prompts": 6, "num_held_out": 4, "max_tokens": 200},
        "judging": {"principles": 2},
        "reward": {**job, "batch": {"pairs": 2}},
        "ppo": {
            "ppo": {"steps": 2, "rollout": {"samples": 4, "max_tokens": 40}, "global_batch": 2},
            "optim": {"lr": 1e-4},
            "critic": {"optim": {"lr": 1e-4}, "precision": "float32"},
            "precision": "float32",
        },
        "dpo": {**job, "beta": 0.1, "batch": {"pairs": 2}},
        "evaluation": {"num_prompts": 4, "max_tokens": 8},
        "inference": {"precision": "float32"},
        "targets": {
            "cai.harm_rate.sl_cai": {"low": 0, "high": 1},
            "cai.reward.accuracy": {"high": -1},
            "cai.no.such": {"low": 0},
        },
    }


def run(recipe: dict[str, Any]) -> tuple[Result, list[str]]:
    said: list[str] = []
    return cai.run(config.validate(recipe, CaiConfig, "test"), Display(say=said.append)), said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, list[str]]:
    """A whole run: its folder, what it found and what it said."""
    folder = tmp_path_factory.mktemp("cai") / "run"
    return folder, *run(make_recipe(folder))


@pytest.fixture
def again(finished: tuple[Path, Result, list[str]], tmp_path: Path) -> dict[str, Any]:
    """The recipe of that run, whose folder is a copy of its own."""
    shutil.copytree(finished[0], tmp_path / "run")
    return make_recipe(tmp_path / "run")


def test_from_the_sandbox_to_a_report(finished: tuple[Path, Result, list[str]]) -> None:
    folder, result, said = finished
    assert [line.removesuffix(": runs") for line in said if line.endswith(": runs")] == [
        "data", "base", "helpful", "revise", "blend", "sl-cai", "prefer", "prefer-held-out", "reward", "ppo",
        "answers-helpful_only", "answers-sl_cai", "answers-rl_cai", "reward-gain", "reward-accuracy",
        "hhh-helpful_only", "hhh-sl_cai", "hhh-rl_cai",
    ]  # fmt: skip

    figures = orjson.loads((folder / "report.json").read_bytes())
    assert figures.keys() == result.figures.keys()
    documented = [
        f"{kind}.{name}"
        for kind in ("harm_rate", "helpfulness", "hhh")
        for name in ("helpful_only", "sl_cai", "rl_cai")
    ]
    documented += ["seconds", "judge.oracle_agreement", "judge.rejected", "helpfulness_kept.sl_cai"]
    documented += ["reward.accuracy", "reward.accuracy_low", "reward.accuracy_high"]
    assert {f"cai.{key}" for key in documented} <= set(figures)
    assert {f"ppo.{key}" for key in ("seconds", "kl", "reward_gain", "reward_gain_stderr", "oracle_gain")} <= set(
        figures
    )
    assert figures["ppo.oracle_gain"] == figures["cai.harm_rate.sl_cai"] - figures["cai.harm_rate.rl_cai"]
    assert {target.name: target.met for target in result.targets} == {
        "cai.harm_rate.sl_cai": True,
        "cai.reward.accuracy": False,
        "cai.no.such": False,
    }

    check_data(folder)
    page = (folder / "report.html").read_text()
    assert "A &lt;tiny&gt; model &amp; its constitution" in page
    for section in (
        "targets",
        "harm-and-help",
        "revisions",
        "preferences",
        "reward-model",
        "ppo",
        "hhh",
        "samples",
        "run",
    ):
        assert f'<h2 id="{section}">' in page


def test_what_has_not_changed_is_skipped(again: dict[str, Any]) -> None:
    _, said = run(again)
    assert all(line.endswith("done and unchanged, skipped") for line in said)
    again["judging"]["principles"] = 1
    _, said = run(again)
    assert "prefer: runs again, since judging.principles: 2 -> 1" in said
    assert "sl-cai: done and unchanged, skipped" in said
    assert "reward: runs again, since input train-1 changed" in said


def test_dpo_in_the_place_of_ppo(again: dict[str, Any]) -> None:
    targets = {"dpo.oracle_gain": {"low": -1}, "ppo.kl": {"magnitude": -1}}
    result, said = run({**again, "policy": "dpo", "targets": targets})
    ran = [line.partition(":")[0] for line in said if ": runs" in line]
    assert ran == ["dpo", "answers-rl_cai", "reward-gain", "hhh-rl_cai"]
    assert {name for name in result.figures if name.startswith(("ppo.", "dpo."))} == {
        f"dpo.{key}" for key in ("seconds", "reward_gain", "reward_gain_stderr", "oracle_gain")
    }
    assert [target.name for target in result.targets] == ["dpo.oracle_gain"]
    page = result.page.read_text()
    assert '<h2 id="dpo">' in page
    assert '<h2 id="ppo">' not in page
    assert "reward implied, chosen" in page


def test_no_pairs_from_the_judge_end_the_run_with_the_reason(again: dict[str, Any]) -> None:
    again["answers"]["max_tokens"] = 1
    with pytest.raises(
        DataError, match=r"pairs.jsonl: the judge made no pair of 18 answers \(\d+ did not end.*max_tokens"
    ):
        run(again)


def test_a_second_reward_model_has_its_own_view_of_the_gain(again: dict[str, Any], tmp_path: Path) -> None:
    again["second_reward"] = again["reward"]
    result, said = run(again)
    ran = [line.partition(":")[0] for line in said if ": runs" in line]
    assert ran == ["second-reward", "second-reward-gain", "second-reward-accuracy"]

    stages = tmp_path / "run"
    trained, tested = (read_manifest(stages / f"{name}reward") for name in ("second-", ""))
    assert trained.inputs["train-1"] == read_manifest(stages / "reward-accuracy").inputs["pairs"]
    assert trained.inputs["train-1"] not in tested.inputs.values()
    assert trained.inputs["model"] == tested.inputs["model"]

    judge = RewardModel(load_model(stages / "second-reward" / "run" / "best", precision="float32"))
    before, after = (
        judge.rewards([one.conversation("") for one in jsonl.read(stages / f"answers-{name}/answers.jsonl", Answered)])
        for name in ("sl_cai", "rl_cai")
    )
    risen = mean(after) - mean(before)
    assert result.figures["ppo.second_reward_gain"] == pytest.approx(risen, abs=1e-6)
    assert result.figures["ppo.second_reward_gain"] != result.figures["ppo.reward_gain"]
    assert result.figures["cai.second_reward.n"] == 4
    assert "second reward model" in result.page.read_text()


def test_on_real_data_the_start_and_the_reward_model_are_compared_too(
    finished: tuple[Path, Result, list[str]], tmp_path: Path
) -> None:
    data, rows = finished[0] / "data", tmp_path / "hh.jsonl"
    pairs = [
        pair for name in ("pairs_train", "test_pairs") for pair in jsonl.read(data / f"{name}.jsonl", PreferencePair)
    ]
    jsonl.write(rows, [{name: transcript(pair, name) for name in ("chosen", "rejected")} for pair in pairs])
    recipe = {
        **make_recipe(tmp_path / "run"),
        "sandbox": None,
        "base": None,
        "model": str(finished[0] / "base" / "run" / "best"),
        "data": {
            "red_team": [str(rows)],
            "helpful": [str(data / "helpful_train.jsonl")],
            "helpful_form": "conversations",
            "preferences": [str(rows)],
            "test_fold": "1/2",
            "hhh": str(data / "hhh.jsonl"),
            "split_ratio": 0.5,
        },
        "answers": {"answers": 6, "num_prompts": 6, "num_held_out": 4, "max_tokens": 120},
    }
    result, said = run(recipe)
    names = [line.partition(":")[0] for line in said if line.startswith("hhh-") and line.endswith(": runs")]
    assert names == ["hhh-base", "hhh-helpful_only", "hhh-sl_cai", "hhh-rl_cai", "hhh-reward_model"]
    assert {"cai.hhh.base", "cai.hhh.reward_model", "cai.reward.accuracy"} <= set(result.figures)
    assert not {name for name in result.figures if "harm_rate" in name}  # there is no oracle


def transcript(pair: PreferencePair, answer: str) -> str:
    return f"\n\nHuman: {pair.prompt[0]['content']}\n\nAssistant: {getattr(pair, answer)}"


def read_manifest(stage: Path) -> Manifest:
    return Manifest.model_validate_json((stage / "manifest.json").read_bytes())


def check_data(folder: Path) -> None:
    """Revisions are trained on beside helpful dialogues; pairs name their principles; the oracle measures answers."""
    revisions = list(jsonl.read(folder / "revise" / "revisions.jsonl", Revised))
    assert len(revisions) == 6
    blended = [
        (one.model_extra or {}).get("dataset") for one in jsonl.read(folder / "blend" / "train.jsonl", Conversation)
    ]
    assert 0 < blended.count("sl_cai") <= 6
    assert blended.count(None) == blended.count("sl_cai")
    pairs = list(jsonl.read(folder / "prefer" / "pairs.jsonl", PreferencePair))
    assert pairs
    assert all(pair.principle and pair.principle.count(",") == 1 for pair in pairs)
    answers = list(jsonl.read(folder / "answers-sl_cai" / "answers.jsonl", Answered))
    assert [one.asks_harm for one in answers] == [True] * 4 + [False] * 4
    assert all(one.harmful is is_harmful(one.answer) for one in answers)


def test_another_constitution_revises_and_judges_anew(again: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "critiques: [{id: one, critique_request: Say how., revision_request: Again.}]\n"
        "comparisons: [{id: two, question: Which is kind}]\n"
    )
    _, said = run({**again, "constitution": [str(own)]})
    assert "helpful: done and unchanged, skipped" in said
    assert [line for line in said if line.startswith("revise: runs again, since constitution")]
    revised, pairs = tmp_path / "run/revise/revisions.jsonl", tmp_path / "run/prefer/pairs.jsonl"
    assert {one.rounds[0].principle for one in jsonl.read(revised, Revised) if one.rounds} == {"one"}
    assert {pair.principle for pair in jsonl.read(pairs, PreferencePair)} == {"two"}


def test_a_run_can_start_from_a_model_that_is_there(
    finished: tuple[Path, Result, list[str]], again: dict[str, Any], tmp_path: Path
) -> None:
    base = finished[0] / "base" / "run" / "best"
    _, said = run({**again, "base": None, "model": str(base)})  # whose weights are the same
    assert not [line for line in said if line.startswith("base")]
    assert "data: runs again, since base: True -> False" in said
    assert "helpful: done and unchanged, skipped" in said
    assert "ppo: done and unchanged, skipped" in said
    assert not (tmp_path / "run" / "data" / "base").exists()
