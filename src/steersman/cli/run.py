"""`steersman run`: a whole pipeline from a recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from steersman.pipelines.running import Display, Result

ConfigT = TypeVar("ConfigT")

app = typer.Typer(help="Run a whole pipeline, stage by stage, up to its report; run it again to continue.")


@app.callback()
def _pipelines() -> None:
    """Run a whole pipeline, stage by stage, up to its report; run it again to continue."""


@app.command()
def steerlm(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, such as sft.steps=500.")
    ] = None,
) -> None:
    """SteerLM: predictor, annotation, attribute-conditioned fine-tuning, bootstrapping, evaluation, report.

    Each stage has a folder with a manifest below `output`. A stage that is done and unchanged is skipped, one that was
    cut continues, one whose settings or inputs changed runs again. Figures that the recipe bounds are checked in the
    end.

    ```
    steersman run steerlm recipes/steerlm-gemma-270m.yaml
    steersman run steerlm recipes/steerlm-gemma-270m.yaml data.labelled=[trees.jsonl.gz] sft.steps=500 output=runs/mine
    ```
    """
    from steersman import config
    from steersman.pipelines import steerlm
    from steersman.pipelines.steerlm_config import SteerLMConfig

    run_and_print(steerlm.run, config.load(recipe, SteerLMConfig, overrides or []))


@app.command()
def cai(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, such as revise.rounds=4."),
    ] = None,
) -> None:
    """Constitutional AI: critique and revision, SL-CAI, AI preferences, reward model, PPO or DPO, evaluation, report.

    Stages and targets are as for `run steerlm`.

    ```
    steersman run cai recipes/cai-gemma-270m.yaml
    steersman run cai recipes/cai-gemma-270m.yaml constitution=[my.yaml] revise.rounds=4 output=runs/mine
    steersman run cai recipes/cai-gemma-270m.yaml policy=dpo output=runs/dpo
    ```
    """
    from steersman import config
    from steersman.pipelines import cai
    from steersman.pipelines.cai_config import CaiConfig

    run_and_print(cai.run, config.load(recipe, CaiConfig, overrides or []))


def run_and_print(run: "Callable[[ConfigT, Display], Result]", config: ConfigT) -> "Result":
    """Run a pipeline with bars and print where its report lies and which targets are missed."""
    from steersman.cli.output import wrote
    from steersman.cli.progress import progress_bar
    from steersman.cli.train import training_progress
    from steersman.pipelines.running import Display

    result = run(config, Display(say=typer.echo, bar=progress_bar, training=training_progress))
    print_targets(result)
    wrote(result.page)
    wrote(result.page.with_suffix(".json"), f"{len(result.figures)} figures")
    return result


def print_targets(result: "Result") -> None:
    """A row a target: the figure, its bound, whether it is met."""
    from steersman.cli.output import print_table

    rows = [
        {
            "figure": target.name.removeprefix("steerlm."),
            "value": target.value,
            "target": target.bound,
            "": "met" if target.met else "MISSED",
        }
        for target in result.targets
    ]
    print_table("Targets", rows)
