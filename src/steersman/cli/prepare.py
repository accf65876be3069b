"""`steersman prepare SOURCE`: raw data -> conversation or preference JSONL.

Every option is a field of the source's config record, which documents it; one that is not given (None) is left to the
record.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(help="Turn raw data (paths or hf://) into conversation or preference JSONL.")

Input = Annotated[
    list[str],
    typer.Option(
        metavar="F", help="A .jsonl, .jsonl.gz or .parquet file, here or at hf://datasets/OWNER/NAME/FILE. Repeatable."
    ),
]
OutputPrefix = Annotated[
    str, typer.Option(metavar="P", help="Writes P_train.jsonl, P_val.jsonl and P_schema.json (attributes, counts).")
]
ValInput = Annotated[
    list[str] | None, typer.Option(metavar="F", help="Validate on these files, train on all of --input. Repeatable.")
]
Type = Annotated[
    Literal["TEXT_TO_VALUE", "VALUE_TO_TEXT", "NONE"],
    typer.Option(help="Teach to predict the label after an answer, to obey the label before it, or neither."),
]
MaskRole = Annotated[str, typer.Option(metavar="ROLES", help="Roles that are never trained, comma-separated.")]
System = Annotated[str | None, typer.Option(help="System prompt of records that bring none; default: NeMo's.")]
SplitRatio = Annotated[float, typer.Option(help="Share of the trees (or prompts) that train.")]
Seed = Annotated[int, typer.Option(help="Of the shuffle before the split, and of the folds.")]
Fold = Annotated[str | None, typer.Option(metavar="K/N", help="Validate on the K-th of N folds, train on the others.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many lines, before the shuffle.")]
Derive = Annotated[
    list[str] | None,
    typer.Option(
        help="Append an attribute to each label: verbosity, the answer's length in fifths of training answers."
    ),
]
OnError = Annotated[
    Literal["stop", "skip"], typer.Option(help="At a bad line: stop, or skip it (kept in P_rejects.jsonl and counted).")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]


@app.command()
def oasst(
    input: Input,
    output_prefix: OutputPrefix,
    val_input: ValInput = None,
    type: Type = "TEXT_TO_VALUE",
    mask_role: MaskRole = "User",
    system: System = None,
    split_ratio: SplitRatio = 0.95,
    seed: Seed = 10,
    fold: Fold = None,
    limit: Limit = None,
    label_turns: Annotated[Literal["assistant", "all"], typer.Option(help="Whose labels to keep.")] = "assistant",
    attributes: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Attributes that labels keep; default: all. Repeatable.")
    ] = None,
    lang: Annotated[bool, typer.Option("--lang", help="End labels in lang:en.")] = False,
    derive: Derive = None,
    train_once: Annotated[
        bool, typer.Option("--train-once", help="Train a turn that several paths share in the first of them only.")
    ] = False,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="Write all pairs of differently ranked replies, not conversations.")
    ] = False,
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
) -> None:
    """OpenAssistant message trees, or the flat message rows that the hub publishes.

    Every path from a tree's first message to a leaf becomes a conversation.

    ```
    steersman prepare oasst --input 2023-04-12_oasst_all.trees.jsonl.gz --output-prefix data/oasst
    steersman prepare oasst --input trees.jsonl.gz --output-prefix data/v2t --type VALUE_TO_TEXT --derive verbosity
    steersman prepare oasst --input trees.jsonl.gz --output-prefix data/pairs --preferences
    ```
    """
    _prepare("oasst", locals())


@app.command()
def helpsteer(
    input: Input,
    output_prefix: OutputPrefix,
    val_input: ValInput = None,
    type: Type = "VALUE_TO_TEXT",
    mask_role: MaskRole = "User",
    system: System = None,
    split_ratio: SplitRatio = 0.95,
    seed: Seed = 10,
    fold: Fold = None,
    limit: Limit = None,
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
) -> None:
    """HelpSteer and HelpSteer2, JSONL or parquet as published.

    ```
    steersman prepare helpsteer --input hf://datasets/nvidia/HelpSteer2/train.jsonl.gz \\
        --val-input hf://datasets/nvidia/HelpSteer2/validation.jsonl.gz --output-prefix data/helpsteer2
    ```
    """
    _prepare("helpsteer", locals())


@app.command()
def messages(
    input: Input,
    output_prefix: OutputPrefix,
    val_input: ValInput = None,
    type: Type = "VALUE_TO_TEXT",
    mask_role: MaskRole = "User",
    system: System = None,
    split_ratio: SplitRatio = 0.95,
    seed: Seed = 10,
    fold: Fold = None,
    limit: Limit = None,
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
) -> None:
    """OpenAI-style rows: `{"messages": [{"role": "user", "content": "..."}, ...]}`.

    They have no labels: `steersman annotate` predicts them. What tools returned is never trained.

    ```
    steersman prepare messages --input chats.jsonl --output-prefix data/chats
    ```
    """
    _prepare("messages", locals())


@app.command()
def nemo(
    input: Input,
    output_prefix: OutputPrefix,
    val_input: ValInput = None,
    label_schema: Annotated[
        str, typer.Option("--schema", help="What labels name: oasst, helpsteer, merged, or an output prefix.")
    ] = "oasst",
    split_ratio: SplitRatio = 0.95,
    seed: Seed = 10,
    fold: Fold = None,
    limit: Limit = None,
    derive: Derive = None,
    on_error: OnError = "stop",
    overwrite: Overwrite = False,
) -> None:
    """Conversation JSONL of NeMo (and of steersman): checked, joined, split.

    ```
    steersman prepare nemo --input a.jsonl --input b.jsonl --output-prefix data/both
    ```
    """
    _prepare("nemo", locals())


def _prepare(source: str, options: Mapping[str, Any]) -> None:
    """Run a source with the options that were given."""
    from steersman import config
    from steersman.cli.output import print_table, wrote
    from steersman.cli.progress import progress_bar
    from steersman.sources.helpsteer import prepare_helpsteer
    from steersman.sources.messages import prepare_messages
    from steersman.sources.nemo import NemoConfig, prepare_nemo
    from steersman.sources.oasst import OasstConfig, prepare_oasst
    from steersman.sources.prepare import ConversationConfig

    given = {name: None if value == "NONE" else value for name, value in options.items() if value is not None}
    sources: dict[str, tuple[Any, Any]] = {
        "oasst": (prepare_oasst, OasstConfig),
        "helpsteer": (prepare_helpsteer, ConversationConfig),
        "messages": (prepare_messages, ConversationConfig),
        "nemo": (prepare_nemo, NemoConfig),
    }
    prepare, config_type = sources[source]
    summary = prepare(config.validate(given, config_type, f"prepare {source}"), progress_bar)

    prefix = options["output_prefix"]
    files = {f"{prefix}_train.jsonl": summary.train, f"{prefix}_val.jsonl": summary.val}
    print_table(
        "Prepared",
        [
            {
                "file": file,
                "trees or prompts": counts.groups,
                "records": counts.records,
                "turns": counts.turns,
                "labelled turns": counts.labelled_turns,
            }
            for file, counts in files.items()
        ],
    )
    for file, counts in files.items():
        wrote(file, f"{counts.records:,} records")
    wrote(f"{prefix}_schema.json", ", ".join(summary.attributes.names) if summary.attributes else "no labels")
    if summary.rejects:
        wrote(f"{prefix}_rejects.jsonl", f"{summary.rejects:,} skipped")
