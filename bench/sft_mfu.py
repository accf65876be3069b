"""What share of this machine's bf16 rate fine-tuning uses: FLOPs a second of a step, over those of a matrix product.

    python bench/sft_mfu.py [--model models/gemma-3-270m] [--toy]

The FLOPs of a step are those that its loss needs: every weight matrix of the layers at every token and the head at the
trained ones, and attention between each token and those it sees; each once forwards and twice backwards. What is only
computed again, or at positions that no loss needs, does not count. The limit is the fastest of some square products.
"""

import tempfile
import time
from functools import partial
from pathlib import Path

import inputs
import sides
from result import write
from sft_rate import KINDS, ROWS, SEQ_LEN, ours, write_data
from sides import Numbers


def matmul_rate(sizes: list[int]) -> Numbers:
    """FLOPs a second of the best square bf16 product."""
    import torch

    def rate(size: int) -> float:
        a, b = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
        out = a @ b  # warms up
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - start)
        return 2 * size**3 / min(seconds)

    return {"rate": max(map(rate, sizes))}


def needed(model: str, folder: str) -> Numbers:
    """FLOPs a token of the layers and a trained token of the head, forwards and backwards; of attention in all."""
    import numpy as np
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from steersman.batches.sequences import tokenise
    from steersman.card import TemplateSpec
    from steersman.models.load import backbone
    from steersman.text.read import read_rendered
    from steersman.text.tokenize import Encoder, load_tokenizer

    config = AutoConfig.from_pretrained(model).get_text_config()
    weights = AutoModelForCausalLM.from_pretrained(model)
    layers = [module for module in backbone(weights).modules() if isinstance(module, nn.Linear)]
    spec = TemplateSpec.model_validate_json(Path(folder, "template.json").read_text())
    encoder = Encoder(load_tokenizer(model), spec)
    rendered = (item for _, item in read_rendered(Path(folder, "train.jsonl"), encoder.template))
    families = tokenise(rendered, encoder, SEQ_LEN - 1, ROWS * SEQ_LEN // 2)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    seen = 0  # pairs of a token and one that it attends to, over all layers
    for kind in kinds:
        window = config.sliding_window if kind == "sliding_attention" else SEQ_LEN
        seen += sum(int(np.minimum(families[f].positions_T + 1, window).sum()) for f in range(len(families)))
    return {
        "token": 6 * sum(layer.weight.numel() for layer in layers),
        "trained": 6 * weights.get_output_embeddings().weight.numel(),
        "attention": 3 * 4 * config.num_attention_heads * head_size * seen,
    }


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--steps", type=int, default=6, help="of an epoch, about (%(default)s)")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        write_data(model, Path(folder), asked.steps * ROWS * SEQ_LEN)
        flops = sides.run(needed, model=model, folder=folder)
        del flops["peak_gb"]
        settings = KINDS["master"]["ours"]
        found, limits = sides.alternate(
            asked.runs,
            partial(sides.run, ours, model=model, folder=folder, file="train.jsonl", settings=settings),
            partial(sides.run, matmul_rate, sizes=[512] if asked.toy else [1024, 2048, 4096]),
        )
        shares = []
        for run, limit in zip(found, limits, strict=True):
            tokens = sum(run["tokens"])
            each = [  # attention is shared out by tokens
                flops["token"] * num + flops["trained"] * num_trained + flops["attention"] * num / tokens
                for num, num_trained in zip(run["tokens"], run["trained"], strict=True)
            ]
            shares.append(sum(each[1:]) / sum(run["seconds"][1:]) / limit["rate"])
        write(
            "sft_mfu", "share of the bf16 matmul rate", shares, [1.0] * len(shares), "the measured matmul rate",
            toy=asked.toy, model=Path(model).name, matmul_gflops=[limit["rate"] / 1e9 for limit in limits], flops=flops,
        )  # fmt: skip


if __name__ == "__main__":
    main()
