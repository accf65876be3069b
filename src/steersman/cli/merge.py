"""`steersman merge`: LoRA adapter -> plain model folder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder with a LoRA adapter.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Add a LoRA adapter to its base model's weights.

    Example: steersman merge runs/sft/best models/steered
    """
    from steersman.cli.output import wrote
    from steersman.models.convert import merge

    wrote(merge(model, output, overwrite=overwrite))
