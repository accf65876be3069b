"""What is measured on: the command line of a benchmark, real data beside the repository, and a toy model."""

import argparse
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TREES = DATA / "oasst1_trees.jsonl.gz"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that benchmarks have in common."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="models/gemma-3-270m", help="model folder or id (%(default)s)")
    options.add_argument("--runs", type=int, default=3, help="of each side (%(default)s)")
    options.add_argument(
        "--toy", action="store_true", help="a tiny random model and little data: tries the script, measures nothing"
    )
    return options


def toy_model(folder: Path) -> str:
    """A tiny Llama with random weights, the sandbox's tokenizer and a window of 16,384 tokens."""
    from transformers import AutoConfig

    from steersman.models.load import load_model, save_model
    from steersman.sandbox.model import write_base

    base = write_base(folder / "toy-base")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_key_value_heads": 2}
    AutoConfig.from_pretrained(base, max_position_embeddings=16384, **sizes).save_pretrained(base)
    return str(save_model(load_model(base, precision="float32", from_scratch_seed=0), folder / "toy"))
