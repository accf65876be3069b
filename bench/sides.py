"""Both sides of a comparison, turn by turn, each in a process of its own: neither finds the machine warmer or its
memory fuller than the other, and a peer can have a Python of its own.

In: functions of a benchmark script that return what they measured, as a dict of JSON values. Out: these dicts, with
`peak_gb`, the peak memory of the process, added.
"""

import inspect
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]
STDERR = 2  # where a side's own words go: vLLM's workers have some after the last of ours


def run(
    measure: Callable[..., Numbers],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Numbers:
    """What `measure(**settings)` returns in a new process of this Python, with these variables beside our own.

    The script that defines it is loaded there anew, so what it imports at its top must be installed there.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "numbers.json")
        command = [python, __file__, inspect.getfile(measure), measure.__name__, json.dumps(settings), str(path)]
        subprocess.run(command, stdout=STDERR, check=True, env={**os.environ, **(environment or {})})
        found: Numbers = json.loads(path.read_text())
    return found


def alternate(runs: int, *sides: Callable[[], Numbers]) -> list[list[Numbers]]:
    """What each side measured in each of its runs."""
    rounds = [[side() for side in sides] for _ in range(runs)]
    return [list(found) for found in zip(*rounds, strict=True)]


def fastest(ways: Mapping[str, Callable[[], Numbers]]) -> tuple[str, dict[str, float]]:
    """The way with the highest `rate` of a run each, and all their rates: a peer is measured at its best settings."""
    rates = {name: way()["rate"] for name, way in ways.items()}
    return max(rates, key=lambda name: rates[name]), rates


def free_port() -> int:
    """For a server that is one of the sides."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def peak_gb() -> float:
    """Most memory that this process has held at once, in GB (2^30 bytes).

    Linux's own figure of this very program; `ru_maxrss` would count what the parent held before it started us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


if __name__ == "__main__":
    script, name, settings, path = sys.argv[1:]
    numbers = runpy.run_path(script)[name](**json.loads(settings))
    Path(path).write_text(json.dumps({**numbers, "peak_gb": peak_gb()}))
