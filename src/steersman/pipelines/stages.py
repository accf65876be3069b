"""Stages of a pipeline: each has a folder and a manifest, and runs again only when what it came from has changed.

In: a stage's work, its resolved config, its inputs. Out: its folder, filled, with `manifest.json`: inputs'
fingerprints, config, metrics, version, seconds. A stage that is done and unchanged is skipped; one that was cut
continues in its folder (its work resumes by itself); one whose config or inputs differ starts afresh.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from steersman import __version__, jsonl
from steersman.locks import hold

Work = Callable[[Path], Mapping[str, Any]]
"""Fills the stage's folder, continuing what lies there, and returns its metrics."""


class Manifest(BaseModel):
    """What a stage's folder came from.

    Attributes:
        config: resolved settings.
        inputs: name -> fingerprint of a file or folder, or the name itself of what lies elsewhere (a hub id).
        version: of steersman.
        attempts: how often the work was started; more than one when it was cut and resumed.
        finished: the folder is complete.
        seconds: of the attempt that finished it.
        metrics: what the work returned.
    """

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any]
    inputs: dict[str, str]
    version: str = __version__
    attempts: int = 1
    finished: bool = False
    seconds: float = 0.0
    metrics: dict[str, Any] = {}

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """The manifest of a folder; None when it has none that can be read."""
        try:
            return cls.model_validate_json((folder / "manifest.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, folder: Path) -> None:
        jsonl.write_bytes(folder / "manifest.json", orjson.dumps(self.model_dump(), option=orjson.OPT_INDENT_2))

    def changes(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
        """What differs from another config and other inputs, in words."""
        old, new = _flatten(self.config), _flatten(config)
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        changes = [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys]
        names = {**self.inputs, **inputs}
        return changes + [f"input {name} changed" for name in names if self.inputs.get(name) != inputs.get(name)]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def once(path: Path, make: Callable[[Path], Any]) -> Path:
    """A file that appears whole: made, or kept when an earlier attempt of the stage made it."""
    if not path.exists():
        make(path)
    return path


class Stages:
    """Runs stages below one folder.

    Args:
        folder: of the whole run; a stage's folder is below it.
        say: prints a line about each stage.
    """

    def __init__(self, folder: str | Path, say: Callable[[str], Any] = print) -> None:
        self.folder = Path(folder)
        self.manifests: dict[str, Manifest] = {}
        self._say = say
        self._fingerprints: dict[str, str] = {}
        self._start = time.monotonic()
        self._seconds_working = 0.0

    @property
    def seconds(self) -> float:
        """What all stages took when they were done, and what this run spent between them."""
        between = time.monotonic() - self._start - self._seconds_working
        return sum(manifest.seconds for manifest in self.manifests.values()) + between

    def run(self, name: str, work: Work, *, config: Mapping[str, Any], inputs: Mapping[str, str | Path]) -> Path:
        """The stage's folder, complete.

        Args:
            config: everything else that decides the result, as plain data.
            inputs: name -> file, folder or hub id that the work reads.

        Raises:
            OutputError: another process runs a stage below the same folder.
        """
        with hold(self.folder):
            return self._run(name, work, config, inputs)

    def _run(self, name: str, work: Work, config: Mapping[str, Any], inputs: Mapping[str, str | Path]) -> Path:
        folder = self.folder / name
        plain = orjson.loads(orjson.dumps(config))  # as a manifest gives it back
        fingerprints = {key: self._fingerprint(str(source)) for key, source in inputs.items()}
        manifest = Manifest.load(folder)
        changes = manifest.changes(plain, fingerprints) if manifest else []
        if manifest and not changes and manifest.finished:
            self._say(f"{name}: done and unchanged, skipped")
            self.manifests[name] = manifest
            return folder
        if manifest and not changes:
            self._say(f"{name}: was cut, continues")
            manifest = manifest.model_copy(update={"attempts": manifest.attempts + 1})
        else:
            self._say(f"{name}: runs again, since {'; '.join(changes[:3])}" if changes else f"{name}: runs")
            shutil.rmtree(folder, ignore_errors=True)
            manifest = Manifest(config=plain, inputs=fingerprints)
        manifest.save(folder)
        start = time.monotonic()
        metrics = dict(work(folder))
        seconds = time.monotonic() - start
        self._seconds_working += seconds
        manifest = manifest.model_copy(update={"finished": True, "seconds": seconds, "metrics": metrics})
        manifest.save(folder)
        self._say(f"{name}: finished in {seconds:.0f} s")
        self.manifests[name] = manifest
        return folder

    def _fingerprint(self, source: str) -> str:
        """Computed once a run: a stage's inputs are complete before it starts, and stay as they are."""
        if source not in self._fingerprints:
            self._fingerprints[source] = jsonl.fingerprint(source) if Path(source).exists() else source
        return self._fingerprints[source]
