"""How much knowing the true labels helps a model predict an answer: the conditioning gain.

In: labelled validation conversations and the log-probabilities of their last answers, once under the true label line
and once under another record's. Out: loss with permuted labels minus loss with true ones, in nats a trained token
(the answer and what ends it); the interval by bootstrap over groups. A model that ignores its label line gains 0.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from steersman import jsonl
from steersman.errors import DataError
from steersman.evaluation import statistics
from steersman.evaluation.statistics import Estimate
from steersman.randomness import stream
from steersman.records import Conversation, Message
from steersman.seams import ContinuationScorer, Progress, ScoreRequest
from steersman.text.template import Template

UNIT = 32


class LabelledAnswer(BaseModel):
    """An answer to be scored under its own label and another record's.

    Attributes:
        group: what it shares with others (its tree); resampled whole.
        conversation: ends with the answer, which carries its true label.
        permuted: the label of another record.
    """

    model_config = ConfigDict(extra="forbid")

    group: str
    conversation: Conversation
    permuted: str


class Loss(BaseModel):
    """Negative log-likelihoods of one answer, in nats, summed over its tokens."""

    model_config = ConfigDict(extra="forbid")

    group: str
    num_tokens: int
    true: float
    permuted: float


def permute_labels(conversations: Sequence[Conversation], groups: Sequence[str], seed: int) -> list[LabelledAnswer]:
    """Each conversation, cut after its last labelled turn, with the label of another: a random cycle through all.

    Raises:
        DataError: records with a labelled turn are of fewer than two groups.
    """
    cut = []
    for conversation, group in zip(conversations, groups, strict=True):
        labelled = [i for i in conversation.spoken_turns() if conversation.conversations[i].label is not None]
        if labelled:
            turns = conversation.conversations[: labelled[-1] + 1]
            cut.append((group, conversation.model_copy(update={"conversations": turns})))
    if len({group for group, _ in cut}) < 2:
        raise DataError("the conditioning gain needs labelled records of at least two trees; hold out more")
    cycle = list(range(len(cut)))
    stream(seed, "permute labels").shuffle(cycle)
    successor = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    return [
        LabelledAnswer(group=group, conversation=conversation, permuted=_last(cut[successor[index]][1]).label or "")
        for index, (group, conversation) in enumerate(cut)
    ]


def _last(conversation: Conversation) -> Message:
    return conversation.conversations[-1]


def score(
    answers: Sequence[LabelledAnswer],
    output: Path,
    scorer: ContinuationScorer,
    template: Template,
    *,
    progress: Progress | None = None,
    forget: Callable[[], Any] = lambda: None,
) -> Path:
    """Score every answer under both labels, resumably, into a file of `Loss` lines."""

    def ask(answer: LabelledAnswer, label: str | None) -> ScoreRequest:
        last = _last(answer.conversation)
        before = answer.conversation.model_copy(update={"conversations": answer.conversation.conversations[:-1]})
        prompt = template.prompt_for_answer(before, role=last.role, label=label)
        return ScoreRequest(prompt=prompt, continuation=last.value + template.answer_end)

    def work(unit: Sequence[LabelledAnswer]) -> Iterator[Loss]:
        asked = [ask(a, label) for a in unit for label in (_last(a.conversation).label, a.permuted)]
        forget()
        scored = scorer.score(asked)
        for answer, true, permuted in zip(unit, scored[::2], scored[1::2], strict=True):
            yield Loss(
                group=answer.group,
                num_tokens=len(true.logprobs),
                true=-sum(true.logprobs),
                permuted=-sum(permuted.logprobs),
            )

    job = jsonl.Journal(output, unit=UNIT, settings=[answer.model_dump(by_alias=True) for answer in answers])
    return job.run(answers, work, progress)


def gain(losses: Sequence[Loss]) -> Estimate:
    """Nats a token that the true labels save."""
    saved_N = [loss.permuted - loss.true for loss in losses]
    tokens_N = [loss.num_tokens for loss in losses]
    weights_RN = statistics.group_weights([loss.group for loss in losses])
    return statistics.estimate(lambda w: statistics.ratio(saved_N, tokens_N, w), weights_RN)
