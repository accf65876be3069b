"""`steersman show`: conversations as the loss sees them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from steersman.cli import flags

TokenizerOption = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        metavar="T",
        help="Model folder or id, tokenizer.json or SentencePiece .model; a trained model's card governs the template.",
    ),
]
TemplateOption = Annotated[
    Literal["extra_id", "chatml", "chat"] | None,
    typer.Option("--template", help="extra_id (the default), chatml, or chat: the tokenizer's own chat template."),
]
BosOption = Annotated[bool | None, typer.Option("--bos/--no-bos", help="Begin sequences with BOS (default: no).")]
ControlOption = Annotated[
    Literal["special", "text"] | None,
    typer.Option("--control", help="Control strings are special tokens, added if absent (the default), or plain text."),
]


def command(
    input: Annotated[Path, typer.Argument(metavar="F", help="Conversation JSONL (.jsonl or .jsonl.gz).")],
    tokenizer: TokenizerOption,
    json: Annotated[
        bool, typer.Option("--json", help='Print {"input_ids": […], "loss_mask": [0, 1, …]} a record, in order.')
    ] = False,
    limit: flags.Limit = None,
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", min=1, help="Cut to this many tokens plus one, as training.")
    ] = None,
    template: TemplateOption = None,
    bos: BosOption = None,
    control: ControlOption = None,
) -> None:
    """Print conversations with the trained tokens coloured.

    Control tokens that the tokenizer lacks are added, as training does, so the ids are those of training.

    ```
    steersman show data_train.jsonl --tokenizer google/gemma-3-270m --bos --limit 3
    ```
    """
    from rich.console import Console

    from steersman import jsonl
    from steersman.text.read import read_rendered
    from steersman.text.show import colour
    from steersman.text.tokenize import open_encoder

    encoder, schema = open_encoder(tokenizer, kind=template, bos=bos, control=control)
    console = Console(highlight=False)
    for number, (conversation, rendered) in enumerate(
        read_rendered(input, encoder.template, schema, limit=limit), start=1
    ):
        if json:
            (tokenized,) = encoder.encode_rendered([rendered], seq_len)
            record = {"input_ids": tokenized.input_ids, "loss_mask": [int(trained) for trained in tokenized.loss_mask]}
            typer.echo(jsonl.dumps(record), nl=False)
        else:
            console.rule(f"record {number}: {conversation.type or 'no type'}")
            console.print(colour(rendered, encoder, seq_len), soft_wrap=True)
