"""A file of prompts -> a file of answers.

Each output line is the input line with `attributes` (all that were requested), `answer`, `finish_reason`, `num_tokens`
and `seed`. Lines are answered in units that are committed whole: an interrupted job continues and ends with the same
bytes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steersman import jsonl
from steersman.card import ModelCard
from steersman.errors import DataError, LabelError
from steersman.generation.conditioned import answer_request, answer_text, fill_attributes
from steersman.generation.window import Window
from steersman.jsonl import Journal, OnError, Rejects
from steersman.randomness import derive_seed
from steersman.seams import GenerationRequest, Generator, Progress, Sampling
from steersman.sources.prompts import parse_prompt
from steersman.text.template import Template


@dataclass(frozen=True)
class BatchReport:
    """What `complete_file` did.

    Attributes:
        output: the file.
        num_prompts, num_tokens: lines answered, and tokens generated for them, in this run and those it continues.
        finish_reasons: "stop" or "length" -> how many lines.
        num_rejected: input lines skipped.
    """

    output: Path
    num_prompts: int
    num_tokens: int
    finish_reasons: dict[str, int]
    num_rejected: int


@dataclass(frozen=True)
class _Asked:
    """A line that is copied to the output, and the request that answers it."""

    line: dict[str, Any]
    request: GenerationRequest

    def with_seed(self, seed: int) -> "_Asked":
        request = self.request
        return replace(self, request=replace(request, sampling=replace(request.sampling, seed=seed)))


def complete_file(
    input: str | Path,
    output: str | Path,
    generator: Generator,
    template: Template,
    card: ModelCard,
    sampling: Sampling,
    *,
    identity: Any,
    attributes: Mapping[str, int],
    guidance: float = 1.0,
    seed: int = 0,
    unit: int = 64,
    window: Window | None = None,
    forget: Callable[[], Any] | None = None,
    on_error: OnError = "stop",
    limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BatchReport:
    """Answer every prompt of a file (see sources.prompts for its forms).

    Args:
        template, card: of the model; the card's system prompt serves lines that bring none.
        sampling: its seed is replaced by one from (seed, number of the prompt).
        identity: what, beside the input and these arguments, decides the answers (anything JSON).
        attributes: asked for of every prompt; a line's own go first.
        unit: prompts that are batched and committed together.
        window: the model's, if known: a prompt that it does not hold is a bad line.
        forget: called before each unit; makes an embedded model drop what it keeps for reuse, so that a unit's answers
            depend on it alone (`Engine.forget`).
        on_error: "skip" writes bad lines to `<output>.rejects.jsonl` and counts them.
        progress: called with the number of further prompts done.

    Raises:
        DataError: a bad line, under on_error="stop".
        LabelError: `attributes` that the card does not list.
        OutputError: the output exists, or another job's unfinished work lies there.
    """
    output = jsonl.check_absent(output, overwrite)
    fill_attributes(attributes, card.attributes)

    def parse(line: dict[str, Any]) -> _Asked:
        prompt = parse_prompt(line, card.system)
        wanted = {**attributes, **prompt.attributes}
        try:
            filled = fill_attributes(wanted, card.attributes)
        except LabelError as error:
            raise DataError(str(error)) from None
        request = answer_request(
            prompt.conversation, template, card.attributes, wanted, sampling, guidance, role=prompt.role
        )
        if window and not window.holds(request.prompt):
            raise DataError(f"the prompt is longer than the model's window of {window.size:,} tokens")
        return _Asked({**line, "attributes": filled}, request)

    rejects = Rejects(output.with_name(output.name + ".rejects.jsonl"))
    asked = [one for _, one in jsonl.parse_each(input, parse, on_error=on_error, rejects=rejects, limit=limit)]
    rejects.close()
    seeded = [one.with_seed(derive_seed(seed, "generate", number)) for number, one in enumerate(asked)]

    def work(batch: Sequence[_Asked]) -> list[dict[str, Any]]:
        if forget:
            forget()
        completions = generator.generate([one.request for one in batch], progress)
        return [
            {
                **one.line,
                "answer": answer_text(completion),
                "finish_reason": completion.finish_reason,
                "num_tokens": len(completion.token_ids),
                "seed": one.request.sampling.seed,
            }
            for one, completion in zip(batch, completions, strict=True)
        ]

    settings = {
        "verb": "generate",
        "input": jsonl.fingerprint(input),
        "limit": limit,
        "by": identity,
        "attributes": dict(attributes),
        "sampling": asdict(sampling),
        "guidance": guidance,
        "seed": seed,
    }
    journal = Journal(output, unit=unit, settings=settings, overwrite=overwrite)
    if progress:
        progress(sum(journal.done(number // unit) for number in range(len(seeded))))
    journal.run(seeded, work)
    lines = [line for _, line in jsonl.parse_each(output, dict)]
    return BatchReport(
        output=output,
        num_prompts=len(lines),
        num_tokens=sum(line["num_tokens"] for line in lines),
        finish_reasons=dict(Counter(line["finish_reason"] for line in lines)),
        num_rejected=rejects.count,
    )
