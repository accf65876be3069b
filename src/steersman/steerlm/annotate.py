"""SteerLM's step 2: label every turn of a data set with a Scorer's judgements.

Conversation JSONL goes in, the same records come out with each turn's `label` replaced. Turns advance one at a time, so
that a label is predicted with the labels predicted before it in context, and the conversations of a unit advance
together in batches; a scorer that reads no labels judges all their turns at once. Beside a label stand `label_probs`
and `label_expected` (attribute -> probability of each value; mean), and `gt_label`, the human label that was there
before. A turn that cannot be labelled has none and says why in `label_error`.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from steersman import jsonl
from steersman.attributes import SCHEMAS, AttributeSchema
from steersman.errors import LabelError
from steersman.generation.window import TOO_LONG
from steersman.jsonl import Journal, OnError, Rejects
from steersman.records import Conversation, Judgement, Message
from steersman.scoring.attributes import posterior_median
from steersman.seams import Progress, Scorer

Turns = Literal["unmasked", "all"]
_OURS = {"label_probs", "label_expected", "label_error"}


@dataclass(frozen=True)
class Agreement:
    """How labels agree with human ones, for one attribute.

    Attributes:
        num: turns where both exist.
        exact: share of equal values.
        mae: mean absolute error of the posterior median (of the value itself when the scorer is exact).
    """

    num: int
    exact: float
    mae: float


@dataclass(frozen=True)
class AnnotationReport:
    """What `annotate` did.

    Attributes:
        output: the file.
        num_conversations, num_labelled: written records; turns with a new label.
        unlabelled: why turns have none -> how many.
        agreement: attribute -> agreement with the human labels that were there before.
        num_foreign: human labels of no known schema, left out of `agreement`.
        num_rejected: input lines skipped.
    """

    output: Path
    num_conversations: int
    num_labelled: int
    unlabelled: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    num_foreign: int = 0
    num_rejected: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "output": str(self.output)}


def turns_to_label(conversation: Conversation, turns: Turns) -> list[int]:
    """Indices of the turns that get a label."""
    return list(range(len(conversation.conversations)) if turns == "all" else conversation.spoken_turns())


def _asking_for(conversation: Conversation, turn: int) -> Conversation:
    """The conversation up to a turn, whose role counts as unmasked: what a Scorer judges."""
    role = conversation.conversations[turn].role
    mask = ",".join(sorted(conversation.masked_roles - {role}))
    return conversation.model_copy(update={"conversations": conversation.conversations[: turn + 1], "mask": mask})


def with_judgement(turn: Message, judgement: Judgement | str, schema: AttributeSchema) -> Message:
    """The turn under its predicted label, or, given a reason instead, without one."""
    if isinstance(judgement, str):
        new: dict[str, Any] = {"label": None, "label_error": judgement}
    else:
        new = {
            "label": schema.encode(judgement.values),
            "label_probs": {name: [round(p, 6) for p in probs] for name, probs in judgement.probabilities.items()},
            "label_expected": {name: round(mean, 6) for name, mean in judgement.expected.items()},
        }
    carried = turn.model_extra or {}
    if turn.label is not None and "gt_label" not in carried:
        new["gt_label"] = turn.label
    labelled = turn.model_copy(update=new)
    for stale in _OURS - new.keys():
        (labelled.model_extra or {}).pop(stale, None)
    return labelled


def annotate_unit(
    conversations: Sequence[Conversation],
    scorer: Scorer,
    *,
    turns: Turns = "unmasked",
    fits: Callable[[Conversation], bool] | None = None,
    progress: Progress | None = None,
) -> list[Conversation]:
    """The conversations with labels, turn by turn; see `annotate`."""
    labelled = [
        conversation.model_copy(
            update={"conversations": list(conversation.conversations), "type": conversation.type or "VALUE_TO_TEXT"}
        )
        for conversation in conversations
    ]
    queues = [[(conversation, turn) for turn in turns_to_label(conversation, turns)] for conversation in labelled]
    rounds: Iterable[Sequence[tuple[Conversation, int] | None]] = itertools.zip_longest(*queues)
    if not scorer.reads_labels:
        rounds = [list(itertools.chain.from_iterable(queues))]
    for together in rounds:
        due = [one for one in together if one is not None]
        asked = [_asking_for(conversation, turn) for conversation, turn in due]
        fitting = [fits is None or fits(one) for one in asked]
        judgements = iter(scorer.judge([one for one, fit in zip(asked, fitting, strict=True) if fit], progress))
        for (conversation, turn), fit in zip(due, fitting, strict=True):
            message = conversation.conversations[turn]
            outcome = next(judgements) if fit else TOO_LONG
            conversation.conversations[turn] = with_judgement(message, outcome, scorer.schema)
        if progress:
            progress(fitting.count(False))
    return labelled


def annotate(
    input: str | Path,
    output: str | Path,
    scorer: Scorer,
    *,
    identity: Any,
    turns: Turns = "unmasked",
    unit: int = 64,
    fits: Callable[[Conversation], bool] | None = None,
    forget: Callable[[], Any] | None = None,
    on_error: OnError = "stop",
    limit: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AnnotationReport:
    """Label a file of conversations; an interrupted job continues, and ends with the same bytes.

    A record keeps its `type`; one without gets VALUE_TO_TEXT, or the labels would never be rendered.

    Args:
        identity: what, beside the input, decides the labels (anything JSON: the model's fingerprint, precision).
        turns: "unmasked": of the roles that the mask leaves; "all": every turn.
        unit: conversations that are batched and committed together.
        fits: whether the scorer's window holds a conversation and the label of its last turn; raises DataError for one
            that cannot be rendered.
        forget: called before each unit; makes an embedded model drop what it keeps for reuse, so that a unit's numbers
            depend on it alone (`Engine.forget`).
        on_error: "skip" writes bad lines to `<output>.rejects.jsonl` and counts them.
        limit: the first so many lines only.
        progress: called with the number of further turns done.

    Raises:
        DataError: a bad line, under on_error="stop".
        OutputError: the output exists, or another job's unfinished work lies there.
    """
    output = jsonl.check_absent(output, overwrite)
    rejects = Rejects(output.with_name(output.name + ".rejects.jsonl"))

    def parse(line: dict[str, Any]) -> Conversation:
        conversation = Conversation.model_validate(line)
        if fits:  # one that cannot be rendered is refused here, where its line is known
            fits(_asking_for(conversation, len(conversation.conversations) - 1))
        return conversation

    conversations = [c for _, c in jsonl.parse_each(input, parse, on_error=on_error, rejects=rejects, limit=limit)]
    rejects.close()
    settings = {"verb": "annotate", "input": jsonl.fingerprint(input), "limit": limit, "turns": turns, "by": identity}
    journal = Journal(output, unit=unit, settings=settings, overwrite=overwrite)
    if progress:
        done = (c for i, c in enumerate(conversations) if journal.done(i // unit))
        progress(sum(len(turns_to_label(c, turns)) for c in done))

    def work(batch: Sequence[Conversation]) -> list[Conversation]:
        if forget:
            forget()
        return annotate_unit(batch, scorer, turns=turns, fits=fits, progress=progress)

    journal.run(conversations, work)
    return summarize(output, scorer.schema, turns=turns, num_rejected=rejects.count)


def _with_known(schema: AttributeSchema) -> AttributeSchema:
    """The schema with every other attribute that is known: human labels often name more than a scorer gives."""
    others = {attribute.name: attribute for known in SCHEMAS.values() for attribute in known.attributes}
    more = (attribute for name, attribute in others.items() if name not in schema)
    return schema.extend(*more).model_copy(update={"language": True})


def summarize(
    path: str | Path, schema: AttributeSchema, *, turns: Turns = "unmasked", num_rejected: int = 0
) -> AnnotationReport:
    """Count the labels of an annotated file and compare them with the human ones kept in it."""
    num_conversations = num_labelled = num_foreign = 0
    unlabelled: Counter[str] = Counter()
    human_schema = _with_known(schema)
    pairs: dict[str, list[tuple[int, int, int]]] = {name: [] for name in schema.names}
    for conversation in jsonl.read(path, Conversation):
        num_conversations += 1
        for index in turns_to_label(conversation, turns):
            turn = conversation.conversations[index]
            extra = turn.model_extra or {}
            if turn.label is None:
                unlabelled[extra["label_error"]] += 1
                continue
            num_labelled += 1
            if "gt_label" not in extra:
                continue
            try:
                human = human_schema.parse(extra["gt_label"])
            except LabelError:
                num_foreign += 1
                continue
            for name, value in schema.parse(turn.label).items():
                if name in human:
                    probabilities = extra["label_probs"].get(name)
                    median = posterior_median(probabilities, schema[name].low) if probabilities else value
                    pairs[name].append((human[name], value, median))
    agreement = {
        name: Agreement(
            num=len(triples),
            exact=sum(human == value for human, value, _ in triples) / len(triples),
            mae=sum(abs(human - median) for human, _, median in triples) / len(triples),
        )
        for name, triples in pairs.items()
        if triples
    }
    return AnnotationReport(
        Path(path), num_conversations, num_labelled, dict(unlabelled), agreement, num_foreign, num_rejected
    )
