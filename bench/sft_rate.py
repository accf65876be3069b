"""Fine-tuning on OASST trees: our loop against TRL's SFTTrainer, trained tokens a second and peak memory.

    python bench/sft_rate.py [--model models/gemma-3-270m] [--kinds master bf16 lora] [--toy]

Three kinds: fp32 master weights with bf16 compute, bf16 weights, LoRA on bf16 weights. Both sides get the same token
ids and labels of the same conversations, at most 512 tokens each, about 2,048 tokens a step, and go through them once.
The learning rate is next to nothing, so the weights stand still and the mean losses must be the same, whatever the
order. TRL gets the best of padded and packed rows, four in a step at once or one after the other, by a step of each;
its loss comes in chunks either way. The first step warms up. We train full weights with activation checkpointing, which
costs us time and saves memory; TRL does without, which is how it is fastest.

Branches of a conversation tree stand together in the file, as `prepare` writes them, and our loop computes what they
share once; `rate_apart` is its rate when they are scattered.
"""

import itertools
import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import inputs
import peers
import sides
from result import write
from sides import Numbers

SEQ_LEN, ROWS = 512, 4  # tokens of the longest sequence, and how many of these a step holds
SAME = 5e-3  # most by which the mean losses may differ, relatively: bf16 has 8 bits
STANDSTILL = 1e-12  # a learning rate

KINDS: dict[str, dict[str, Any]] = {
    "master": {"names": ("sft_rate", "sft_memory"), "ours": {"precision": "bfloat16", "activation_checkpointing": True},
               "peer": {"dtype": "float32", "autocast": True, "rank": None}},
    "bf16": {"names": ("sft_rate_bf16", "sft_memory_bf16"),
             "ours": {"precision": "bfloat16-stochastic", "activation_checkpointing": True},
             "peer": {"dtype": "bfloat16", "autocast": False, "rank": None}},
    "lora": {"names": ("lora_rate", "lora_memory"),
             "ours": {"precision": "bfloat16", "lora": {"rank": 16, "alpha": 32}},
             "peer": {"dtype": "bfloat16", "autocast": True, "rank": 16}},
}  # fmt: skip

WAYS = {
    f"{'packed' if packing else 'padded'}, {rows} row{'s' * (rows > 1)} at once": {"packing": packing, "rows": rows}
    for packing in (False, True)
    for rows in (ROWS, 1)
}


def summary(seconds: list[float], losses: list[float], trained: list[int], **more: Any) -> Numbers:
    """Trained tokens a second but for the first step, and the mean loss of all trained tokens; both by step, too."""
    loss = sum(loss * num for loss, num in zip(losses, trained, strict=True)) / sum(trained)
    rate = sum(trained[1:]) / sum(seconds[1:])
    return {"rate": rate, "loss": loss, "seconds": seconds, "trained": trained, **more}


def ours(model: str, folder: str, file: str, settings: dict[str, Any], tokens: int = ROWS * SEQ_LEN) -> Numbers:
    """One epoch, each step of at most so many input tokens."""
    from steersman.config import validate
    from steersman.pipelines.jobs import TrainConfig, run_training
    from steersman.training.loop import Report

    reports: list[Report] = []
    with tempfile.TemporaryDirectory(dir=folder) as run:
        recipe = {
            "role": "sft", "model": model, "output": f"{run}/run", "attributes": "oasst",
            "template": json.loads(Path(folder, "template.json").read_text()),
            "data": {"train": [{"path": f"{folder}/{file}"}]}, "seq_len": SEQ_LEN - 1,
            "batch": {"tokens": tokens, "micro_tokens": tokens}, "epochs": 1, "optim": {"lr": STANDSTILL},
            "checkpoint": {"every": None}, **settings,
        }  # fmt: skip
        run_training(validate(recipe, TrainConfig, "bench"), reports.append)
    seconds, losses, trained = ([getattr(one, name) for one in reports] for name in ("seconds", "loss", "num_trained"))
    return summary(seconds, losses, trained, tokens=[one.num_tokens for one in reports])


def trl(
    model: str, folder: str, dtype: str, autocast: bool, rank: int | None, packing: bool, rows: int, steps: int = -1
) -> Numbers:
    """So many steps of SFTTrainer, or one epoch."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds: list[float] = []
    losses: list[float] = []
    trained: list[int] = []

    class Counted(SFTTrainer):
        """Notes how many trained tokens the step of a micro-batch has."""

        def compute_loss(self, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
            self.num_trained = int(num_items_in_batch)
            return super().compute_loss(*args, num_items_in_batch=num_items_in_batch, **kwargs)

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            trained.append(trainer.num_trained)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    records = [json.loads(line) for line in Path(folder, "tokens.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Counted(
        model=model,
        args=SFTConfig(
            output_dir=f"{folder}/peer", max_length=SEQ_LEN, packing=packing, per_device_train_batch_size=rows,
            gradient_accumulation_steps=ROWS // rows, num_train_epochs=1, max_steps=steps, learning_rate=STANDSTILL,
            bf16=autocast, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, logging_steps=1,
            save_strategy="no", report_to="none", disable_tqdm=True, model_init_kwargs={"dtype": dtype},
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(records),
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear") if rank else None,
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return summary(seconds, losses, trained)


def write_data(model: str, folder: Path, num_tokens: int) -> None:
    """Conversations of about so many tokens, and these tokens with their labels."""
    from steersman import jsonl
    from steersman.card import TemplateSpec
    from steersman.records import Conversation
    from steersman.sources.oasst import OasstConfig, prepare_oasst
    from steersman.text.tokenize import Encoder, load_tokenizer

    prepare_oasst(
        OasstConfig(
            input=(str(inputs.TREES),), output_prefix=str(folder / "oasst"), type="VALUE_TO_TEXT", split_ratio=1.0
        )
    )
    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer, TemplateSpec(control="text", bos=tokenizer.bos_token_id is not None))
    chosen, labelled, total = [], [], 0
    for conversation in jsonl.read(folder / "oasst_train.jsonl", Conversation):
        tokens = encoder.encode_conversation(conversation, SEQ_LEN - 1)
        if not any(tokens.loss_mask[1:]):
            continue
        labels = [token if counts else -100 for token, counts in zip(tokens.input_ids, tokens.loss_mask, strict=True)]
        chosen.append(conversation.model_dump(by_alias=True, exclude_unset=True))
        labelled.append({"input_ids": tokens.input_ids, "labels": labels})
        if (total := total + len(labels)) >= num_tokens:
            break
    jsonl.write(folder / "train.jsonl", chosen)
    jsonl.write(folder / "tokens.jsonl", labelled)
    jsonl.write(folder / "apart.jsonl", random.Random(0).sample(chosen, len(chosen)))
    (folder / "template.json").write_text(encoder.spec.model_dump_json())


def check_same(runs: list[Numbers]) -> None:
    """Every run trains the same tokens, at the same loss."""
    for one, other in itertools.pairwise(runs):
        nums = sum(one["trained"]), sum(other["trained"])
        assert nums[0] == nums[1], f"{nums[0]} and {nums[1]} tokens were trained"
        assert abs(one["loss"] / other["loss"] - 1) < SAME, f"losses {one['loss']} and {other['loss']} differ"


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    options.add_argument("--steps", type=int, default=4, help="of an epoch, about (%(default)s)")
    asked = options.parse_args()
    python = peers.python("trl")
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        write_data(model, Path(folder), asked.steps * ROWS * SEQ_LEN)
        for kind in asked.kinds:
            setting = KINDS[kind]
            us = partial(sides.run, ours, model=model, folder=folder, settings=setting["ours"])
            ways = {
                name: partial(sides.run, trl, python=python, model=model, folder=folder, **setting["peer"], **way)
                for name, way in WAYS.items()
            }
            best, rates = sides.fastest({name: partial(way, steps=2) for name, way in ways.items()})
            together, theirs = sides.alternate(asked.runs, partial(us, file="train.jsonl"), ways[best])
            apart = us(file="apart.jsonl")
            check_same([*together, *theirs, apart])
            for name, unit, key in zip(setting["names"], ("trained tokens/s", "GB"), ("rate", "peak_gb"), strict=True):
                write(
                    name, unit, *([run[key] for run in side] for side in (together, theirs)),
                    f"{peers.version('trl')} SFTTrainer, {best}", toy=asked.toy, model=Path(model).name,
                    losses=[together[0]["loss"], theirs[0]["loss"]], peer_rates=rates, rate_apart=apart["rate"],
                    trained_a_step=[mean(side[0]["trained"]) for side in (together, theirs)],
                )  # fmt: skip


if __name__ == "__main__":
    main()
