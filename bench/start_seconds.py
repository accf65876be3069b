"""How long `steersman --help` takes, beside the bare interpreter's start."""

import platform
import subprocess
import sys
import time
from pathlib import Path

from result import write

RUNS = 11
STEERSMAN = Path(sys.executable).with_name("steersman")


def seconds(*command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    seconds(str(STEERSMAN), "--help")  # warms the file cache
    pairs = [(seconds(str(STEERSMAN), "--help"), seconds(sys.executable, "-c", "pass")) for _ in range(RUNS)]
    write(
        "start_seconds", "s", [a for a, _ in pairs], [b for _, b in pairs], f"Python {platform.python_version()}, bare"
    )


if __name__ == "__main__":
    main()
