"""One home for what a benchmark writes: `bench/results/<name>.json`, medians of both and the spread of their ratio."""

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TOYS = Path(__file__).parent / "toys"


def machine() -> str:
    """Processor, cores and the precision that is fast on it."""
    import torch  # here, so that a side which needs no torch is not charged for it

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    bf16 = ", AVX-512 bf16" if torch.cpu._is_avx512_bf16_supported() else ""
    return f"{name}, {torch.get_num_threads()} threads{bf16}"


def folder_of(toy: bool) -> Path:
    """Where figures go; those of a toy have a folder of their own, which git ignores."""
    folder = TOYS if toy else RESULTS
    folder.mkdir(exist_ok=True)
    return folder


def write(
    name: str,
    unit: str,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_version: str,
    *,
    toy: bool = False,
    **further: Any,
) -> Path:
    """Medians of paired runs, and the ratio ours / peer: its median, least and greatest over the pairs.

    What else was measured stands beside them.
    """
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    path = folder_of(toy) / f"{name}.json"
    result = {
        "name": name,
        "unit": unit,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_version": peer_version,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "runs": len(ratios),
        "machine": machine(),
        "commit": commit.stdout.strip(),
        **further,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{name}: {result['ours']:.3f} against {result['peer']:.3f} {unit}, ratio {result['ratio']:.2f}")
    return path
