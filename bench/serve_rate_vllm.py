"""200 clients at once: our server beside vLLM's on the same machine, the same real model in bf16.

    python bench/serve_rate_vllm.py [MODEL] [RUNS] [TOKENS]

MODEL is `models/gemma-3-270m` by default; answers have a tenth of TOKENS up to TOKENS. The two servers run one after
the other, never at once, both on tcmalloc's heap. A run of vLLM in each of its ways (`peers.vllm_ways`) says which one
it is compared in.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import peers
from generate_rate import VLLM_MEMORY
from result import write
from serve_rate import BATCH, CLIENTS, STEERSMAN, TOKENS, load, num_tokens, percentiles, requests, wait_until_ready
from sides import free_port

RUNS = 3
NAME = "served"


def rates(
    command: Sequence[str], most: int, runs: int, environment: Mapping[str, str] | None = None
) -> tuple[list[float], dict[str, float]]:
    """Tokens a second of each run, and the quantiles of the time to the first token. A request of each client warms
    up."""
    asked = [requests(most, seed) for seed in range(runs)]
    port = free_port()
    server = subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_ready(port, server)
        asyncio.run(load(port, requests(most, runs)[:CLIENTS], model=NAME))
        found = [asyncio.run(load(port, each, model=NAME)) for each in asked]
    finally:
        server.terminate()
        server.wait(120)
    firsts = percentiles([one.first for answers, _ in found for one in answers])
    return [num_tokens(each) / seconds for each, (_, seconds) in zip(asked, found, strict=True)], firsts


def main(model: str = "models/gemma-3-270m", runs: int = RUNS, most: int = TOKENS) -> None:
    entry = [peers.python("vllm"), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    peer_command = [*entry, "--served-model-name", NAME, "--dtype", "bfloat16", "--max-num-seqs", str(BATCH),
                    "--max-model-len", "2048", "--gpu-memory-utilization", str(VLLM_MEMORY)]  # fmt: skip
    ways = peers.vllm_ways()
    found = {name: rates(peer_command, most, 1, way)[0][0] for name, way in ways.items()}
    best = max(found, key=lambda name: found[name])
    peer, peer_first = rates(peer_command, most, runs, ways[best])
    ours, first = rates([str(STEERSMAN), "serve", model, "--name", NAME, "--precision", "bfloat16",
                         "--batch", str(BATCH)], most, runs, {"LD_PRELOAD": peers.tcmalloc()})  # fmt: skip
    write(
        "serve_rate_vllm", "tokens/s", ours, peer, f"{peers.version('vllm')} {best}",
        peer_rates=found, longest_answer=most,
        first_token_seconds=first, peer_first_token_seconds=peer_first, clients=CLIENTS,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
