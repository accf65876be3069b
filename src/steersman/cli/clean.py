"""`steersman clean`: conversations -> those worth training on."""

from typing import Annotated

import typer

from steersman.cli import flags
from steersman.cli.show import BosOption, ControlOption, TemplateOption, TokenizerOption


def command(
    input: flags.Input,
    output: flags.Output,
    tokenizer: TokenizerOption,
    seq_len: Annotated[int, typer.Option("--seq-len", min=1, help="Longest sequence of the training, in tokens.")],
    template: TemplateOption = None,
    bos: BosOption = None,
    control: ControlOption = None,
    on_error: flags.OnError = "stop",
    overwrite: flags.Overwrite = False,
) -> None:
    """Drop records with nothing left to train on after truncation, and those whose masked role never speaks.

    The records that are kept are written unchanged, in order. The output appears whole or not at all.

    ```
    steersman clean --input data_train.jsonl --output data_clean.jsonl --tokenizer google/gemma-3-270m --seq-len 4096
    ```
    """
    from steersman import jsonl
    from steersman.cli.output import wrote
    from steersman.cli.progress import progress_bar
    from steersman.text.clean import clean_rendered
    from steersman.text.read import read_rendered
    from steersman.text.tokenize import open_encoder

    jsonl.check_absent(output, overwrite)
    encoder, schema = open_encoder(tokenizer, kind=template, bos=bos, control=control)
    rejects_path = output.with_name(f"{output.name}.rejects.jsonl")
    rejects = jsonl.Rejects(rejects_path)
    with progress_bar("clean", total=None, unit="records") as advance:
        records = read_rendered(input, encoder.template, schema, on_error=on_error, rejects=rejects)
        kept, dropped = clean_rendered(records, encoder, seq_len, advance)
        unchanged = (record.model_dump(by_alias=True, exclude_unset=True) for record in kept)
        num_kept = jsonl.write(output, unchanged, overwrite=overwrite)
    rejects.close()
    wrote(output, f"{num_kept:,} records kept, {sum(dropped.values()):,} dropped")
    for reason, count in dropped.most_common():
        typer.echo(f"dropped {count:,}: {reason}")
    if rejects.count:
        wrote(rejects_path, f"{rejects.count:,} bad records skipped")
