"""Generation with our engine against `transformers.generate`, vLLM on the CPU and the memory's read rate.

    python bench/generate_rate.py [--model models/gemma-3-270m] [--work prefix mixed single]
        [--peers transformers vllm] [--toy]

Work is token ids of real text: 32 prompts that begin with the same 1,000 tokens; 64 prompts of 20 to 600 tokens, each
with 10 to 200 new tokens; one prompt alone. All sides decode greedily, exactly as many tokens as are asked for, and
must write the same tokens in fp32 before they are timed in bf16. `transformers` gets the batch size that suits it best,
and batches sorted by their lengths, which it is told beforehand; vLLM keeps and shares prefixes, as we do, and gets the
number of cores and the libraries that suit it best (`peers.vllm_ways`).

A single stream reads all weights for each token, so the memory's read rate is its limit.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import peers
import sides
from result import write
from sides import Numbers

VLLM_MEMORY = 0.5  # share of the machine's memory that its cache gets; more than all of these prompts need
EQUAL = 0.95  # least share of requests with equal tokens in fp32; the others met a tie of two tokens


def read_work(folder: str) -> tuple[list[list[int]], list[int], list[int]]:
    """Prompts, how many new tokens each is to get, the tokens that end an answer (and must not be drawn)."""
    work = json.loads(Path(folder, "work.json").read_text())
    return work["prompts"], work["new"], work["end_ids"]


def timed(generate: Callable[[], list[list[int]]]) -> Numbers:
    start = time.perf_counter()
    answers = generate()
    seconds = time.perf_counter() - start
    return {"rate": sum(map(len, answers)) / seconds, "answers": answers}


def ours(model: str, folder: str, precision: str, batch: int) -> Numbers:
    from steersman.generation.engine import Engine
    from steersman.models.load import load_model
    from steersman.records import Prompt
    from steersman.seams import GenerationRequest, Sampling

    prompts, new, _ = read_work(folder)
    requests = [
        GenerationRequest(
            prompt=Prompt(text="", token_ids=tuple(prompt)),
            sampling=Sampling(max_tokens=num, min_tokens=num, greedy=True),
        )
        for prompt, num in zip(prompts, new, strict=True)
    ]
    engine = Engine(load_model(model, precision=precision), max_batch=batch)  # type: ignore[arg-type]
    engine.generate(requests[:2])  # warms up
    engine.forget()
    return timed(lambda: [answer.token_ids for answer in engine.generate(requests)])


def transformers(model: str, folder: str, precision: str, batch: int, by: str = "new") -> Numbers:
    """Static batches, padded on the left, of neighbours in the order of their new tokens or their prompts' lengths."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts, new, end_ids = read_work(folder)
    order = sorted(range(len(prompts)), key=lambda index: new[index] if by == "new" else len(prompts[index]))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, precision)).eval()

    @torch.inference_mode()
    def generate(rows: list[int]) -> dict[int, list[int]]:
        width, num_new = max(len(prompts[row]) for row in rows), max(new[row] for row in rows)
        ids_BT = torch.tensor([[end_ids[0]] * (width - len(prompts[row])) + prompts[row] for row in rows])
        mask_BT = torch.tensor([[0] * (width - len(prompts[row])) + [1] * len(prompts[row]) for row in rows])
        found = loaded.generate(
            input_ids=ids_BT, attention_mask=mask_BT, do_sample=False, eos_token_id=end_ids, pad_token_id=end_ids[0],
            min_new_tokens=num_new, max_new_tokens=num_new,
        )  # fmt: skip
        return {row: ids[: new[row]] for row, ids in zip(rows, found[:, width:].tolist(), strict=True)}

    def generate_all() -> list[list[int]]:
        answers: dict[int, list[int]] = {}
        for first in range(0, len(order), batch):
            answers |= generate(order[first : first + batch])
        return [answers[row] for row in range(len(prompts))]

    generate(order[:1])  # warms up
    return timed(generate_all)


def vllm(model: str, folder: str, precision: str, batch: int) -> Numbers:
    from vllm import LLM, SamplingParams

    prompts, new, end_ids = read_work(folder)
    longest = max(len(prompt) + num for prompt, num in zip(prompts, new, strict=True))
    engine = LLM(
        model, dtype=precision, max_num_seqs=batch, max_model_len=longest + 1, enable_prefix_caching=True,
        gpu_memory_utilization=VLLM_MEMORY,
    )  # fmt: skip
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    sampling = [
        SamplingParams(temperature=0, min_tokens=num, max_tokens=num, stop_token_ids=end_ids, detokenize=False)
        for num in new
    ]
    engine.generate(requests[:2], sampling[:2], use_tqdm=False)  # warms up
    engine.reset_prefix_cache()
    return timed(
        lambda: [list(one.outputs[0].token_ids) for one in engine.generate(requests, sampling, use_tqdm=False)]
    )


def read_rate(model: str, gigabytes: float) -> Numbers:
    """Tokens a second, were all weights read once a token and nothing else done; the rates, in GB (10^9 bytes)."""
    import torch

    from steersman.models.load import backbone, head_weight, load_model

    def best(read: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            read()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    loaded = load_model(model, precision="bfloat16").model
    embedding = id(loaded.get_input_embeddings().weight)
    read = {id(weight): weight for weight in (*backbone(loaded).parameters(), head_weight(loaded))}
    if embedding != id(head_weight(loaded)):
        read.pop(embedding)  # of which a token reads a single row
    num_bytes = sum(weight.nbytes for weight in read.values())
    numbers_N = torch.ones(int(gigabytes * 1e9) // 4)
    weight_NH = torch.ones(int(gigabytes * 1e9) // 4096, 2048, dtype=torch.bfloat16)
    bandwidth = numbers_N.nbytes / 1e9 / best(numbers_N.sum)
    vector_H = weight_NH[0].clone()
    product = weight_NH.nbytes / 1e9 / best(lambda: weight_NH @ vector_H)
    return {"rate": bandwidth * 1e9 / num_bytes, "read_gb_s": bandwidth, "matrix_vector_gb_s": product}


def write_work(model: str, folder: Path, kind: str, toy: bool, num_equal: int = 1) -> int:
    """Write the work of this kind ("equal": so many prompts of 64 tokens, 64 new); how many prompts it has."""
    from steersman import jsonl
    from steersman.models.load import load_card
    from steersman.text.tokenize import Encoder, load_tokenizer

    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer, load_card(model, tokenizer).template)
    texts = [tree["prompt"]["text"] for _, tree in jsonl.parse_each(inputs.TREES, dict)]
    texts += [reply["text"] for _, tree in jsonl.parse_each(inputs.TREES, dict) for reply in tree["prompt"]["replies"]]
    ids = encoder.encode("\n".join(texts)).ids
    choose, bos = random.Random(0), [encoder.bos_id] if encoder.bos_id is not None else []

    def prompt(length: int) -> list[int]:
        first = choose.randrange(len(ids) - length)
        return [*bos, *ids[first : first + length - len(bos)]]

    small = 8 if toy else 1
    if kind == "prefix":
        shared, num = prompt(1000 // small), 32 // small
        prompts, new = [[*shared, *prompt(32)[len(bos) :]] for _ in range(num)], [64 // small] * num
    elif kind == "mixed":
        num = 64 // small
        prompts = [prompt(choose.randint(20, 600 // small)) for _ in range(num)]
        new = [choose.randint(10, 200 // small) for _ in range(num)]
    elif kind == "equal":
        prompts, new = [prompt(64) for _ in range(num_equal)], [64 // small] * num_equal
    else:
        prompts, new = [prompt(64)], [128 // small]
    work = {"prompts": prompts, "new": new, "end_ids": list(encoder.eos_ids)}
    Path(folder, "work.json").write_text(json.dumps(work))
    return len(prompts)


def share_equal(one: Numbers, other: Numbers) -> float:
    """Share of requests with the same tokens."""
    pairs = list(zip(one["answers"], other["answers"], strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def compare(
    name: str, us: Callable[..., Numbers], peer: Callable[..., Numbers], version: str, runs: int, toy: bool, **more: Any
) -> None:
    """Check that both write the same in fp32, time them in bf16, and write the result."""
    equal = share_equal(us(precision="float32"), peer(precision="float32"))
    assert equal >= EQUAL, f"{name}: only {equal:.0%} of the answers are equal in fp32"
    ours_, theirs = sides.alternate(runs, partial(us, precision="bfloat16"), partial(peer, precision="bfloat16"))
    rates = ([run["rate"] for run in side] for side in (ours_, theirs))
    equal_bf16 = min(share_equal(a, b) for a, b in zip(ours_, theirs, strict=True))
    write(name, "tokens/s", *rates, version, toy=toy, equal_fp32=equal, equal_bf16=equal_bf16, **more)


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument(
        "--work", nargs="+", choices=("prefix", "mixed", "single"), default=["prefix", "mixed", "single"]
    )
    options.add_argument("--peers", nargs="+", choices=("transformers", "vllm"), default=["transformers", "vllm"])
    asked = options.parse_args()
    import transformers as peer_library

    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        common = {"model": model, "folder": folder}
        version = f"transformers {peer_library.__version__} generate"
        for kind in asked.work:
            num = write_work(model, Path(folder), kind, asked.toy)
            us = partial(sides.run, ours, **common, batch=num)
            ways = {
                f"batches of {batch} by {by}": partial(sides.run, transformers, **common, batch=batch, by=by)
                for batch in sorted({min(num, batch) for batch in (16, 32, 64)})
                for by in (("new", "prompt") if kind == "mixed" else ("new",))
            }
            if "transformers" in asked.peers:
                best, rates = sides.fastest({name: partial(way, precision="bfloat16") for name, way in ways.items()})
                compare(
                    f"generate_{kind}", us, ways[best], f"{version}, {best}", asked.runs, asked.toy,
                    model=Path(model).name, peer_rates=rates,
                )  # fmt: skip
            if kind != "prefix" and "vllm" in asked.peers:
                peer = partial(sides.run, vllm, python=peers.python("vllm"), **common, batch=num)
                ways = {name: partial(peer, environment=way) for name, way in peers.vllm_ways().items()}
                best, rates = sides.fastest({name: partial(way, precision="bfloat16") for name, way in ways.items()})
                compare(
                    f"generate_{kind}_vllm", us, ways[best], f"{peers.version('vllm')} {best}", asked.runs, asked.toy,
                    model=Path(model).name, peer_rates=rates,
                )  # fmt: skip
            if kind == "single":
                limit = partial(sides.run, read_rate, model=model, gigabytes=0.05 if asked.toy else 1.0)
                found, limits = sides.alternate(asked.runs, partial(us, precision="bfloat16"), limit)
                write(
                    "generate_single_limit", "tokens/s", *([run["rate"] for run in side] for side in (found, limits)),
                    "weight bytes over the measured read rate", toy=asked.toy, model=Path(model).name,
                    read_gb_s=[run["read_gb_s"] for run in limits],
                    matrix_vector_gb_s=[run["matrix_vector_gb_s"] for run in limits],
                )  # fmt: skip


if __name__ == "__main__":
    main()
