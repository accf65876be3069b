"""The output folder of a training run: whose it is, and of what it was made."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from steersman import config as configs
from steersman import jsonl
from steersman.card import Parent
from steersman.config import Config
from steersman.errors import OutputError
from steersman.locks import LOCK

SAME = ("output", "log", "critic.url", "critic.timeout", "rollout_server.url", "rollout_server.timeout")
"""What a run may change when it is run again: none of these changes a result."""


def parents(models: Iterable[str], files: Iterable[str]) -> tuple[Parent, ...]:
    """The models and files of a run, with fingerprints; a hub id is its own."""

    def fingerprint(model: str) -> str:
        return jsonl.fingerprint(model) if Path(model).exists() else "hub"

    return (
        *(Parent(kind="model", name=model, fingerprint=fingerprint(model)) for model in models),
        *(Parent(kind="data", name=path, fingerprint=jsonl.fingerprint(path)) for path in files),
    )


def claim(config: Config, folder: Path, made_of: Sequence[Parent]) -> None:
    """Make the output folder this run's, or check that it is; clear what a killed run left half-written.

    Raises:
        OutputError: it is another run's, or holds something else.
    """
    ours = {
        "config.yaml": configs.dump(config).encode(),
        "inputs.json": orjson.dumps([parent.model_dump() for parent in made_of], option=orjson.OPT_INDENT_2),
    }
    if any(path.name != LOCK for path in folder.glob("*")):
        if not all((folder / name).exists() for name in ours):
            raise OutputError(f"{folder} exists and is not a training run; choose another output")
        before, now = _essence(configs.load(folder / "config.yaml", type(config))), _essence(config)
        changed = [name for name in now if before[name] != now[name]]
        if changed:
            raise OutputError(
                f"{folder} holds a run with other {', '.join(changed)}; choose another output, or delete that folder"
            )
        if (folder / "inputs.json").read_bytes() != ours["inputs.json"]:
            raise OutputError(f"{folder} holds a run on other contents of the model or data; choose another output")
        for leftover in [*folder.glob("**/.*.tmp"), *folder.glob("**/.*.old")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    for name, content in reversed(ours.items()):
        jsonl.write_bytes(folder / name, content)


def _essence(config: Config) -> dict[str, Any]:
    """A recipe without what may change."""
    data = config.model_dump()
    for path in SAME:
        *parents, name = path.split(".")
        section = data
        for parent in parents:
            section = section.get(parent) or {}
        section.pop(name, None)
    return data
