"""200 clients at once: our server beside vLLM's on the same machine, the same real model in bf16.

    python bench/serve_rate_vllm.py [MODEL]

MODEL is `models/gemma-3-270m` by default. The two servers run one after the other, never at once.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import peers
from generate_rate import VLLM_MEMORY
from result import write
from serve_rate import BATCH, CLIENTS, STEERSMAN, TOKENS, load, percentiles, requests, wait_until_ready
from sides import free_port

from steersman.seams import GenerationRequest

RUNS = 3
NAME = "served"


def rates(
    command: Sequence[str], asked: Sequence[GenerationRequest], environment: Mapping[str, str] | None = None
) -> tuple[list[float], dict[str, float]]:
    """Tokens a second of each run but a first one that warms up, and the quantiles of the time to the first token."""
    port = free_port()
    server = subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
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
    model = sys.argv[1] if len(sys.argv) > 1 else "models/gemma-3-270m"
    asked = requests(TOKENS)
    entry = [str(Path(peers.python("vllm")).with_name("vllm")), "serve", model]
    peer_command = [*entry, "--served-model-name", NAME, "--dtype", "bfloat16", "--max-num-seqs", str(BATCH),
                    "--max-model-len", "2048", "--gpu-memory-utilization", str(VLLM_MEMORY)]  # fmt: skip
    ways = {name: rates(peer_command, asked, way) for name, way in peers.vllm_ways().items()}
    best = max(ways, key=lambda name: median(ways[name][0]))
    peer, peer_first = ways[best]
    ours, first = rates([str(STEERSMAN), "serve", model, "--name", NAME, "--precision", "bfloat16",
                         "--batch", str(BATCH)], asked)  # fmt: skip
    write(
        "serve_rate_vllm", "tokens/s", ours, peer, f"{peers.version('vllm')} {best}",
        peer_rates={name: median(found) for name, (found, _) in ways.items()},
        first_token_seconds=first, peer_first_token_seconds=peer_first, clients=CLIENTS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
