"""Training a reward model on HH pairs: our loop against TRL's RewardTrainer, pairs a second and peak memory.

    python bench/reward_rate.py [--model models/gemma-3-270m] [--toy]

Both get the same texts of the same pairs, the same model, four pairs a step, fp32 master weights, bf16 compute and
AdamW without decay, which is TRL's default.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import peers
import sides
from result import write
from sides import Numbers

DATA = inputs.DATA / "hh_harmless_base.jsonl.gz"
PAIRS = 4


def rate(seconds: list[float]) -> Numbers:
    """Pairs a second but for the first step, which warms up."""
    return {"rate": PAIRS * len(seconds[1:]) / sum(seconds[1:])}


def ours(model: str, folder: str, seq_len: int, steps: int) -> Numbers:
    """Our loop."""
    from steersman.config import validate
    from steersman.pipelines.jobs import TrainConfig, run_training
    from steersman.training.loop import Report

    seconds: list[float] = []
    recipe = {
        "role": "reward", "model": model, "template": {"control": "text"},
        "data": {"train": [{"path": f"{folder}/pairs.jsonl"}]}, "seq_len": seq_len,
        "batch": {"pairs": PAIRS, "micro_tokens": 2 * PAIRS * seq_len}, "steps": steps,
        "optim": {"lr": 1e-5, "weight_decay": 0.0}, "precision": "bfloat16", "checkpoint": {"every": None},
    }  # fmt: skip

    def note(report: Report) -> None:
        seconds.append(report.seconds)

    with tempfile.TemporaryDirectory(dir=folder) as output:
        run_training(validate({**recipe, "output": f"{output}/run"}, TrainConfig, "bench"), note)
    return rate(seconds)


def trl(model: str, folder: str, seq_len: int, steps: int) -> Numbers:
    """RewardTrainer."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    pairs = [json.loads(line) for line in Path(folder, "texts.jsonl").read_text().splitlines()]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=f"{folder}/peer", max_length=seq_len, per_device_train_batch_size=PAIRS, max_steps=steps,
            learning_rate=1e-5, bf16=True, use_cpu=not torch.cuda.is_available(), report_to="none", save_strategy="no",
            gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"},
        ),
        processing_class=AutoTokenizer.from_pretrained(model),
        train_dataset=Dataset.from_list(pairs),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return rate(seconds)


def fitting_pairs(model: str, folder: Path, seq_len: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Pairs whose answers both fit, as our JSON, and as the two texts that our template makes of them."""
    from steersman import jsonl
    from steersman.card import TemplateSpec
    from steersman.records import PreferencePair
    from steersman.sources.hh import HhConfig, prepare_hh
    from steersman.text.tokenize import Encoder, load_tokenizer

    config = {"input": [str(DATA)], "output_prefix": str(folder / "hh"), "split_ratio": 1.0, "limit": 500}
    prepare_hh(HhConfig.model_validate(config))
    encoder = Encoder(load_tokenizer(model), TemplateSpec(control="text"))
    for pair in jsonl.read(folder / "hh_train.jsonl", PreferencePair):
        prompts = [encoder.template.prompt_for_reward(one) for one in pair.conversations()]
        if max(len(encoder.encode_prompt(prompt)) for prompt in prompts) < seq_len:  # TRL appends one token
            yield pair.model_dump_json(), {"chosen": prompts[0].text, "rejected": prompts[1].text}


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--seq-len", type=int, default=512)
    options.add_argument("--steps", type=int, default=12)
    asked = options.parse_args()
    python = peers.python("trl")
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        chosen = list(itertools.islice(fitting_pairs(model, Path(folder), asked.seq_len), PAIRS * asked.steps))
        Path(folder, "pairs.jsonl").write_text("".join(f"{pair}\n" for pair, _ in chosen))
        Path(folder, "texts.jsonl").write_text("".join(json.dumps(texts) + "\n" for _, texts in chosen))
        work = {"model": model, "folder": folder, "seq_len": asked.seq_len, "steps": asked.steps}
        found = sides.alternate(
            asked.runs, partial(sides.run, ours, **work), partial(sides.run, trl, python=python, **work)
        )
    further = {"toy": asked.toy, "pairs_a_step": PAIRS, "seq_len": asked.seq_len, "model": Path(model).name}
    for name, unit, key in (("reward_rate", "pairs/s", "rate"), ("reward_memory", "GB", "peak_gb")):
        values = ([run[key] for run in side] for side in found)
        write(name, unit, *values, f"{peers.version('trl')} RewardTrainer", **further)


if __name__ == "__main__":
    main()
