"""`steersman chat`: talk to a model in the terminal and steer it."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from steersman.card import ModelCard
from steersman.cli import flags
from steersman.cli.start import loading
from steersman.errors import ConfigError, SteersmanError
from steersman.generation.conditioned import answer_request, fill_attributes
from steersman.randomness import derive_seed
from steersman.records import ASSISTANT, USER, Conversation, Message
from steersman.seams import GenerationRequest, Sampling
from steersman.text.template import Template

HELP = """\
/set humor=4         ask for attributes from now on; several: /set humor=4,quality=3
/attributes          show what is asked for
/guidance 2          contrast with the opposite attributes; 1 is none
/reset               forget the conversation
/help                show this
/quit                leave"""


@dataclass
class Session:
    """One conversation and its dials.

    Attributes:
        stream: a request's answer, piece by piece.
        template, card: how the model is addressed.
        sampling: how answers are drawn; each has a stream of its own, from the seed and its place.
        requested: attributes asked for; the others take the card's defaults.
        turns: what was said.
    """

    stream: Callable[[GenerationRequest], Iterator[str]]
    template: Template
    card: ModelCard
    sampling: Sampling
    requested: dict[str, int] = field(default_factory=dict)
    guidance: float = 1.0
    turns: list[Message] = field(default_factory=list)

    def command(self, line: str) -> str:
        """Obey a line that begins with a slash; what there is to say about it.

        Raises:
            ConfigError, LabelError: an unknown command, or a value that is not valid; nothing has changed.
        """
        name, _, argument = line.partition(" ")
        match name:
            case "/set":
                self.set(flags.parse_attributes(argument))
                return self.describe()
            case "/attributes":
                return self.describe()
            case "/guidance":
                try:
                    self.guidance = float(argument)
                except ValueError:
                    raise ConfigError(f"/guidance takes a number, not {argument!r}") from None
                return f"guidance {self.guidance:g}"
            case "/reset":
                self.turns.clear()
                return "the conversation is forgotten"
            case "/help":
                return HELP
        raise ConfigError(f"unknown command {name}; /help lists them")

    def set(self, attributes: dict[str, int]) -> None:
        """Ask for attributes from now on."""
        fill_attributes(attributes, self.card.attributes)
        self.requested |= attributes

    def describe(self) -> str:
        """Every attribute with its scale and what is asked for."""
        if self.card.attributes is None:
            return "this model has no attributes"
        lines = []
        for attribute in self.card.attributes.attributes:
            value = self.requested.get(attribute.name, attribute.default)
            asked = "" if attribute.name in self.requested or value is None else " (default)"
            lines.append(
                f"{attribute.name:20}{'-' if value is None else value}  of {attribute.low}-{attribute.high}{asked}"
            )
        return "\n".join(lines)

    def answer(self, question: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Stopped early, what was said so far stays in the conversation."""
        schema = self.card.attributes
        turns = [*self.turns, Message(role=USER, value=question)]
        seed = None if self.sampling.seed is None else derive_seed(self.sampling.seed, "chat", len(self.turns))
        request = answer_request(
            Conversation(system=self.card.system, conversations=turns),
            self.template,
            schema,
            self.requested,
            replace(self.sampling, seed=seed),
            self.guidance,
        )
        pieces: list[str] = []
        try:
            for piece in self.stream(request):
                pieces.append(piece)
                yield piece
        finally:
            said = "".join(pieces).strip()
            if said:
                values = fill_attributes(self.requested, schema)
                label = schema.encode(values) if schema and values else None
                self.turns = [*turns, Message(role=ASSISTANT, value=said, label=label)]


def command(
    model: flags.Model,
    attributes: flags.Attributes = "",
    guidance: flags.GuidanceScale = 1.0,
    max_tokens: flags.MaxTokens = 512,
    temperature: flags.Temperature = 0.7,
    top_k: flags.TopK = 0,
    top_p: flags.TopP = 0.9,
    greedy: flags.Greedy = False,
    repetition_penalty: flags.RepetitionPenalty = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes a chat repeatable.")] = None,
    precision: flags.Precision = "auto",
) -> None:
    """Talk to a model in the terminal; `/set humor=4` steers it, `/help` lists the other commands.

    ```
    steersman chat runs/steerlm/best --attributes quality=4
    ```
    """
    with loading():
        from steersman.generation.engine import Engine
        from steersman.models.load import load_model

    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        greedy=greedy,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    asked = flags.parse_attributes(attributes)
    loaded = load_model(model, precision=precision)
    session = Session(Engine(loaded).stream, loaded.encoder.template, loaded.card, sampling, guidance=guidance)
    session.set(asked)
    typer.echo(f"{model}\n{session.describe()}\n/help lists the commands, /quit leaves")
    while (line := _read_line()) is not None:
        try:
            if line.startswith("/"):
                typer.echo(session.command(line))
            elif line:
                _print_answer(session.answer(line))
        except SteersmanError as error:
            typer.secho(str(error), fg="red")


def _read_line() -> str | None:
    """What the user says next; None when they leave."""
    try:
        line = input(f"{USER}> ").strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None
    return None if line == "/quit" else line


def _print_answer(pieces: Generator[str, None, None]) -> None:
    """Print an answer as it comes; Ctrl-C cuts it off."""
    typer.echo(f"{ASSISTANT}> ", nl=False)
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
    except KeyboardInterrupt:
        pieces.close()
    typer.echo()
