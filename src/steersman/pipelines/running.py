"""What the runs of all pipelines share: how they show themselves, training jobs as stages, figures held to bounds."""

import contextlib
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from steersman.attributes import AttributeSchema
from steersman.card import TemplateSpec
from steersman.evaluation.page import StageTime, Target
from steersman.evaluation.pictures import LossCurve
from steersman.pipelines.jobs import DataConfig, TrainConfig, TrainFile, TrainSettings, run_training
from steersman.pipelines.run_config import Bound
from steersman.pipelines.stages import Stages
from steersman.sources.prepare import Bar, no_bar
from steersman.training import metrics
from steersman.training.loop import Report as StepReport

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "steersman")

OnStep = Callable[[StepReport], Any]


@contextlib.contextmanager
def _no_training_bar(description: str) -> Iterator[OnStep]:
    yield lambda report: None


@dataclass(frozen=True)
class Display:
    """How a run shows what it does: lines, bars of long jobs, bars of training."""

    say: Callable[[str], Any] = print
    bar: Bar = no_bar
    training: Callable[[str], AbstractContextManager[OnStep]] = _no_training_bar


@dataclass(frozen=True)
class Result:
    """What a run found.

    Attributes:
        figures: the contents of `report.json`.
        targets: the recipe's bounds, and whether they are met.
        page: `report.html`.
    """

    figures: Mapping[str, float]
    targets: Sequence[Target]
    page: Path


class TrainingStages:
    """Training jobs as stages of a run.

    Args:
        stages: of the run.
        template: how conversations are written, in every job.
        display: shows their bars.

    Attributes:
        curves: losses of every job so far, by its name.
    """

    def __init__(self, stages: Stages, template: TemplateSpec, display: Display) -> None:
        self.curves: dict[str, LossCurve] = {}
        self._stages = stages
        self._template = template
        self._display = display

    def train(
        self,
        name: str,
        settings: TrainSettings,
        model: str,
        files: Sequence[TrainFile],
        validation: Path,
        *,
        schema: AttributeSchema | None = None,
        role: Literal["sft", "attributes", "reward", "dpo"] = "sft",
        from_scratch: bool = False,
    ) -> str:
        """One training job as a stage; the folder of its best model."""

        def work(folder: Path) -> Mapping[str, Any]:
            job = TrainConfig(
                **dict(settings),
                model=model,
                from_scratch=from_scratch,
                output=folder / "run",
                role=role,
                template=self._template,
                attributes=schema,
                data=DataConfig(train=tuple(files), validation={"validation": str(validation)}),
            )
            with self._display.training(name) as on_step:
                return run_training(job, on_step, self._display.bar).metrics

        config = {
            **settings.model_dump(mode="json", exclude={"log"}),
            "template": self._template.model_dump(mode="json"),
            "attributes": schema and schema.model_dump(mode="json"),
            "weights": [file.weight for file in files],
        }
        inputs = {"model": model, "validation": str(validation)}
        inputs |= {f"train-{number}": file.path for number, file in enumerate(files, start=1)}
        folder = self._stages.run(name, work, config=config, inputs=inputs)
        self.curves[name] = _loss_curve(folder / "run")
        return str(trained(folder))


def trained(folder: Path) -> Path:
    """The best model of a training stage's folder."""
    best = folder / "run" / "best"
    return best if best.exists() else folder / "run" / "last"


def _loss_curve(run: Path) -> LossCurve:
    """Losses from a training run's `metrics.jsonl`."""
    rows = metrics.read(run)
    key = "validation.validation.loss"
    return LossCurve(
        train=[(row["step"], row["loss"]) for row in rows],
        validation={"validation": [(row["step"], row[key]) for row in rows if key in row]},
    )


def stage_times(stages: Stages) -> list[StageTime]:
    """What ran, for the report."""
    return [
        StageTime(name=name, seconds=manifest.seconds, attempts=manifest.attempts, version=manifest.version)
        for name, manifest in stages.manifests.items()
    ]


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def check(bounds: Mapping[str, Bound], figures: Mapping[str, float]) -> list[Target]:
    """The bound on each figure that a name covers; on none, a missed target that says so."""
    targets = []
    for name, bound in bounds.items():
        covered = [figure for figure in figures if figure == name or figure.startswith(f"{name}.")]
        for figure in covered or [name]:
            value = figures.get(figure, math.nan)
            targets.append(Target(figure, value, bound.low, bound.high, bound.magnitude))
    return targets
