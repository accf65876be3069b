"""Where a run's numbers go: `metrics.jsonl` always, one line a step; TensorBoard and Weights & Biases on request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steersman import jsonl
from steersman.config import Config
from steersman.errors import ConfigError, named_errors

FILE_NAME = "metrics.jsonl"

Row = Mapping[str, float]


class LogConfig(Config):
    """Where numbers go beside `metrics.jsonl`.

    Attributes:
        tensorboard: write event files below `tensorboard/`.
        wandb: Weights & Biases project to log to.
    """

    tensorboard: bool = False
    wandb: str | None = None


def read(folder: Path, name: str = FILE_NAME) -> list[dict[str, Any]]:
    """The rows of a run so far; a last line that was cut short is left out."""
    path = folder / name
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [jsonl.parse_json(line) for line in lines]


class StepFile:
    """Appends rows, each with its `step`; rows after `step`, which a resumed run will do again, are dropped first."""

    def __init__(self, folder: Path, name: str, step: int) -> None:
        self._path = folder / name
        kept = (jsonl.dumps(row) for row in read(folder, name) if row["step"] <= step)
        jsonl.write_bytes(self._path, b"".join(kept))
        self._file = self._path.open("ab")

    def write(self, row: Mapping[str, Any]) -> None:
        with named_errors(self._path):
            self._file.write(jsonl.dumps(dict(row)))
            self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricsLog:
    """The rows of `metrics.jsonl`, in TensorBoard and Weights & Biases too where the config says so."""

    def __init__(self, folder: Path, config: LogConfig, step: int, run: Mapping[str, Any]) -> None:
        self._file = StepFile(folder, FILE_NAME, step)
        self._tensorboard: Any = None
        self._wandb: Any = None
        try:
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
            if config.wandb:
                import wandb

                name = folder.resolve().name
                self._wandb = wandb.init(
                    project=config.wandb, name=name, id=name, dir=str(folder), config=dict(run), resume="allow"
                )
        except ImportError as error:
            raise ConfigError(f"log: {error.name} is not installed; pip install 'steersman[tracking]'") from None

    def write(self, row: Row) -> None:
        self._file.write(row)
        numbers = {name: number for name, number in row.items() if name != "step"}
        if self._tensorboard is not None:
            for name, number in numbers.items():
                self._tensorboard.add_scalar(name, number, int(row["step"]))
        if self._wandb is not None:
            self._wandb.log(numbers, step=int(row["step"]))

    def close(self) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
