"""PPO with adapters: our loop against TRL's experimental PPOTrainer, samples a second and peak memory.

    python bench/ppo_rate.py [--model models/gemma-3-270m] [--toy]

A step samples 16 responses of exactly 48 tokens at temperature 1 to the same token ids, all from one model, scores them
by one reward model and learns from them in two optimiser steps: policy and critic have bf16 weights and an adapter of
rank 16 each, the reference is the policy without its adapter. All responses count, as if they had ended. The first
step warms up. The learning rate is next to nothing, so that both sides sample from the same policy throughout, each run
with another seed: their mean rewards must agree within four standard errors, once there are three runs to tell them by.
TRL gets the better of two batch sizes while sampling, by two steps of each.

Their reward model, critic and reference run over padded rows; ours are packed, and reward model and critic are one
frozen model with an adapter on or off. Saving is left out on either side.
"""

import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import inputs
import peers
import sides
from result import write
from sides import Numbers

SAMPLES, MINIBATCHES, RESPONSE, RANK = 16, 2, 48, 16
SHORTEST, LONGEST = 24, 120  # tokens of a prompt
STANDSTILL = 1e-12  # a learning rate

Critic = dict[str, Any]


def summary(seconds: list[float], rewards: list[float]) -> Numbers:
    """Samples a second and mean reward, both but for the first step."""
    return {"rate": SAMPLES * len(seconds[1:]) / sum(seconds[1:]), "seconds": seconds, "reward": mean(rewards[1:])}


def differences(times: list[float]) -> list[float]:
    """Seconds between each and the next."""
    return [after - before for before, after in itertools.pairwise(times)]


def critic_training() -> dict[str, Any]:
    """How our critic is trained: as a recipe's `critic.training`."""
    return {"optim": {"lr": STANDSTILL}, "lora": {"rank": RANK, "alpha": 2 * RANK}, "precision": "bfloat16"}


def run_ours(
    model: str,
    folder: str,
    steps: int,
    response: int,
    parts: int,
    critic: Critic,
    on_step: Callable[[Any], Any],
    seed: int = 0,
) -> None:
    """Our loop, whose rollouts come in so many parts; responses all have the same length and count as ended."""
    from steersman.config import validate
    from steersman.pipelines import ppo
    from steersman.records import Completion
    from steersman.seams import GenerationRequest, Progress

    class FixedLength(ppo.FreshEngine):
        def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
            fixed = [replace(one, sampling=replace(one.sampling, min_tokens=response)) for one in requests]
            return [one.model_copy(update={"finish_reason": "stop"}) for one in super().generate(fixed, progress)]

    ppo.FreshEngine = FixedLength  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=folder) as output:
        recipe = {
            "model": model, "output": f"{output}/run", "data": {"train": [f"{folder}/prompts.jsonl"]},
            "ppo": {
                "steps": steps, "global_batch": SAMPLES // MINIBATCHES,
                "rollout": {"samples": SAMPLES, "micro_batch": SAMPLES // parts, "max_tokens": response},
            },
            "optim": {"lr": STANDSTILL}, "lora": {"rank": RANK, "alpha": 2 * RANK}, "precision": "bfloat16",
            "checkpoint": {"every": None}, "critic": critic, "seed": seed,
        }  # fmt: skip
        ppo.run_ppo(validate(recipe, ppo.PPORecipe, "bench"), on_step)


def ours(model: str, folder: str, steps: int, response: int, seed: int) -> Numbers:
    """Our loop in one process."""
    times, rewards = [time.perf_counter()], []

    def note(report: Any) -> None:
        times.append(time.perf_counter())
        rewards.append(report.metrics["rewards"])

    critic = {"model": f"{folder}/reward", "training": critic_training()}
    run_ours(model, folder, steps, response, 1, critic, note, seed)
    return summary(differences(times), rewards)


def trl(model: str, folder: str, steps: int, response: int, rows: int, seed: int) -> Numbers:
    """PPOTrainer, so many rows at once while sampling."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    times: list[float] = []
    rewards: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            rewards.extend([logs["objective/scores"]] if "objective/scores" in logs else [])

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token or "<pad>"})
    prompts = [json.loads(line) for line in Path(folder, "tokens.jsonl").read_text().splitlines()]
    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    judge = partial(
        AutoModelForSequenceClassification.from_pretrained, f"{folder}/reward", num_labels=1, dtype=torch.bfloat16
    )
    critic = judge()
    head = critic.score
    matrices = {name.rpartition(".")[2] for name, module in critic.model.named_modules() if type(module) is type(head)}
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=sorted(matrices)), critic)
    for parameter in critic.score.parameters():
        parameter.requires_grad = True
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=f"{folder}/peer", per_device_train_batch_size=SAMPLES // MINIBATCHES,
            gradient_accumulation_steps=MINIBATCHES, num_mini_batches=MINIBATCHES,
            local_rollout_forward_batch_size=rows, total_episodes=steps * SAMPLES, num_ppo_epochs=1,
            response_length=response, temperature=1.0, learning_rate=STANDSTILL, kl_coef=0.01, bf16=False,
            use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, logging_steps=1,
            num_sample_generations=0, seed=seed, save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16),
        ref_model=None,
        reward_model=judge(),
        value_model=critic,
        train_dataset=Dataset.from_list(prompts),
        eval_dataset=Dataset.from_list(prompts),
        peft_config=adapter,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return summary(differences(times), rewards)


def write_work(model: str, folder: Path) -> None:
    """Prompts of HH, also as tokens, and a reward model with a new head."""
    import torch

    from steersman import jsonl
    from steersman.generation.conditioned import answer_request
    from steersman.models.load import load_model, save_model
    from steersman.seams import Sampling
    from steersman.sources.prompts import parse_prompt
    from steersman.sources.transcripts import parse_transcript

    loaded = load_model(model, precision="bfloat16", outputs=("reward",))
    torch.manual_seed(0)
    torch.nn.init.normal_(loaded.model.score.weight, std=0.05)
    card = loaded.card.model_copy(update={"role": "reward", "head": "reward"})
    save_model(replace(loaded, card=card), folder / "reward")

    prompts, tokens = [], []
    for _, row in jsonl.parse_each(inputs.DATA / "hh_harmless_base.jsonl.gz", dict):
        line = {"prompt": parse_transcript(row["chosen"])[0]["content"]}
        asked = parse_prompt(line, loaded.card.system)
        request = answer_request(
            asked.conversation, loaded.encoder.template, loaded.card.attributes, asked.attributes, Sampling()
        )
        ids = loaded.encoder.encode_prompt(request.prompt)
        if SHORTEST <= len(ids) <= LONGEST:
            prompts.append(line)
            tokens.append({"input_ids": ids})
        if len(prompts) == SAMPLES:
            break
    jsonl.write(folder / "prompts.jsonl", prompts)
    jsonl.write(folder / "tokens.jsonl", tokens)


def check_same(ours: Sequence[Numbers], theirs: Sequence[Numbers]) -> None:
    """Mean rewards of both sides differ no more than chance has it, judging by the spread between runs."""
    one, other = ([run["reward"] for run in side] for side in (ours, theirs))
    spread = math.sqrt(sum((x - mean(side)) ** 2 for side in (one, other) for x in side) / max(1, 2 * len(one) - 2))
    error = spread * math.sqrt(2 / len(one))
    assert len(one) < 3 or abs(mean(one) - mean(other)) < 4 * error, f"rewards {one} and {other} differ"


def seeded(side: Callable[..., Numbers]) -> Callable[[], Numbers]:
    """A side whose every run has another seed."""
    seeds = itertools.count(1)
    return lambda: side(seed=next(seeds))


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--steps", type=int, default=3, help="of a run; the first one warms up (%(default)s)")
    asked = options.parse_args()
    python = peers.python("trl-ppo")
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        write_work(model, Path(folder))
        work = {"model": model, "folder": folder, "response": 8 if asked.toy else RESPONSE}
        ways = {
            f"sampling {rows} at once": partial(sides.run, trl, python=python, **work, rows=rows)
            for rows in (SAMPLES, SAMPLES // 2)
        }
        best, rates = sides.fastest({name: partial(way, steps=2, seed=0) for name, way in ways.items()})
        us = partial(sides.run, ours, **work)
        each = (seeded(partial(side, steps=asked.steps)) for side in (us, ways[best]))
        found, theirs = sides.alternate(asked.runs, *each)
        check_same(found, theirs)
        for name, unit, key in (("ppo_rate", "samples/s", "rate"), ("ppo_memory", "GB", "peak_gb")):
            write(
                name, unit, *([run[key] for run in side] for side in (found, theirs)),
                f"{peers.version('trl-ppo')} PPOTrainer, {best}", toy=asked.toy, model=Path(model).name,
                peer_rates=rates, rewards=[[run["reward"] for run in side] for side in (found, theirs)],
            )  # fmt: skip


if __name__ == "__main__":
    main()
