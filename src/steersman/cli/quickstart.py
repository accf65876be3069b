"""`steersman quickstart`: SteerLM on the sandbox world, from nothing to a report."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Folder of the run.")] = Path(
        "runs/quickstart"
    ),
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys to change, such as seed=1.")
    ] = None,
) -> None:
    """Run SteerLM on the sandbox world: no download, a few minutes on two cores.

    A small Llama learns a synthetic language, predicts attributes, is conditioned on them and bootstraps from its best
    answers; an exact oracle measures how well it obeys. Prints each figure beside its target and exits with status 1
    when one is missed.

    ```
    steersman quickstart
    steersman quickstart --output runs/second-seed seed=2
    ```
    """
    from steersman import config
    from steersman.cli.run import run_and_print
    from steersman.pipelines.steerlm_config import SteerLMConfig

    recipe = find_recipe("steerlm-sandbox.yaml")
    result = run_and_print(config.load(recipe, SteerLMConfig, [f"output={output}", *(overrides or [])]))
    typer.echo(f"SteerLM took {result.figures['steerlm.seconds']:.0f} s")
    if not all(target.met for target in result.targets):
        raise typer.Exit(1)


def find_recipe(name: str) -> Path:
    """A recipe that steersman ships: inside the installed package, or in the source tree."""
    import steersman

    package = Path(steersman.__file__).parent
    installed = package / "recipes" / name
    return installed if installed.exists() else package.parents[1] / "recipes" / name
