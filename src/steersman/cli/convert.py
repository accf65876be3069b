"""`steersman convert`: GGUF -> Hugging Face folder."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[str, typer.Argument(metavar="IN", help="A .gguf file, or sample-model (Gemma 3 270M).")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
) -> None:
    """Turn a GGUF file into a Hugging Face folder (bf16 safetensors).

    Example: steersman convert sample-model models/gemma-3-270m
    """
    from steersman.cli.output import wrote
    from steersman.models.convert import convert_gguf

    wrote(convert_gguf(source, output, overwrite=overwrite))
