"""The command line: `steersman VERB …`.

A verb lives in `cli/<verb>.py`: a function called `command` or, when it has verbs of its own, a `typer.Typer` called
`app`. That module is imported when its verb runs, so `steersman --help` loads neither torch nor transformers. Help
texts are Markdown; each shows an example in a fenced block.

Exit status: 0 done, 1 failed (a `SteersmanError`'s message, or the traceback of a bug), 2 bad usage (a wrong flag, or
`ConfigError`), 130 interrupted.
"""

import atexit
import gc
import importlib
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import MarkupMode, TyperGroup
from typer.main import get_command, get_group

from steersman import __version__
from steersman.errors import ConfigError, SteersmanError

VERBS = {
    "prepare": "Turn raw data (paths or hf://) into conversation or preference JSONL.",
    "clean": "Drop records with nothing left to train on after truncation.",
    "show": "Print conversations with the trained tokens coloured.",
    "train": "Run one training job from a recipe.",
    "annotate": "Predict attribute labels for the turns of conversations.",
    "bootstrap": "Sample answers at maximum quality, annotate them, keep the best.",
    "revise": "Let a model criticise and revise its answers under a constitution.",
    "prefer": "Sample answers, let a judge compare them under a constitution: RL-CAI preferences.",
    "generate": "Complete a file of prompts.",
    "chat": "Talk to a model in the terminal and steer it.",
    "serve": "Serve a model: NeMo's and OpenAI's HTTP APIs, with dials.",
    "serve-critic": "Serve PPO's critic and reward model to an actor elsewhere.",
    "evaluate": "Measure a predictor, how well a model obeys, or which answers are better.",
    "run": "Run a whole pipeline, stage by stage, up to its report.",
    "convert": "Turn a GGUF file into a Hugging Face folder.",
    "merge": "Merge an adapter into its base model.",
    "quickstart": "Run both pipelines on the sandbox world: minutes, two cores, no download.",
}
"""Verb -> what it does, in the order in which work flows."""

MARKUP: MarkupMode = "markdown"


def load_verb(verb: str) -> Any:
    """Import a verb's module and return its click command."""
    module = importlib.import_module(f"{__name__}.{verb.replace('-', '_')}")
    if hasattr(module, "app"):
        module.app.rich_markup_mode = MARKUP
        command: Any = get_group(module.app)
        command.help = command.help or VERBS[verb]
        command.no_args_is_help = True
    else:
        single = typer.Typer(rich_markup_mode=MARKUP, add_completion=False)
        single.command(verb)(module.command)
        command = get_command(single)
    command.name = verb
    return command


class Verbs(TyperGroup):
    """Lists verbs from the table, imports the one that runs, and turns its end into an exit status."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_verb(name) if name else None, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SteersmanError as error:
            _print_failure("Error", str(error))
            raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
        except KeyboardInterrupt:
            _print_failure("Interrupted", "what was committed is kept; run the same command again to continue")
            raise typer.Exit(130) from None


def _print_failure(title: str, message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble((f"{title}: ", "bold red"), message), soft_wrap=True)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"steersman {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=Verbs, rich_markup_mode=MARKUP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def steersman(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Align open language models: SteerLM (attributes that you dial at inference) and Constitutional AI."""


for _verb, _summary in VERBS.items():
    app.command(_verb, help=_summary)(lambda: None)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    atexit.register(gc.freeze)  # or the interpreter, ending, looks for garbage in torch and transformers for a second
    app(args, prog_name="steersman")
