"""How well a model obeys the attributes that a user asks for.

In: questions, a generator with its template, a scorer. Out: answers with what was requested and what was measured (one
point an answer), and from them per attribute the response curve, Spearman, error and cross-talk; intervals by
bootstrap over questions. An unconditioned model takes the same requests without seeing them.

Two designs. `sweep_each` moves one dial at a time while the others rest, as a user would. `sweep_combinations` asks
for whole combinations, so that every answer informs every attribute; it is how combinations never seen in training
are tested.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.evaluation import statistics
from steersman.evaluation.statistics import Array, Estimate
from steersman.generation.conditioned import answer_request, answer_text
from steersman.randomness import derive_seed, stream
from steersman.records import ASSISTANT, Conversation, Message
from steersman.seams import GenerationRequest, Generator, Progress, Sampling, Scorer
from steersman.text.template import Template

UNIT = 64


class Request(BaseModel):
    """One answer that is asked for.

    Attributes:
        id: unique among the requests.
        question: name of the question; the group that is resampled.
        conversation: up to the turn that wants an answer.
        attributes: every attribute that is requested.
        swept: those of which this request is a point.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    question: str
    conversation: Conversation
    attributes: dict[str, int]
    swept: list[str]


class Answer(Request):
    """A request and what the model said."""

    answer: str
    finish_reason: str

    def answered(self) -> Conversation:
        """The conversation with the answer as its last turn."""
        turn = Message(role=ASSISTANT, value=self.answer)
        turns = [*self.conversation.conversations, turn]
        return self.conversation.model_copy(update={"conversations": turns})


class Measured(Answer):
    """An answer and what the scorer expects each attribute of it to be."""

    measured: dict[str, float]


class CurvePoint(BaseModel):
    """Mean measured value at one requested value."""

    model_config = ConfigDict(extra="forbid")

    requested: int
    measured: Estimate
    num_answers: int


class AttributeResponse(BaseModel):
    """How one attribute obeys.

    Attributes:
        num_answers: points (requested, measured), one an answer.
        curve: mean measured value at each requested one.
        spearman: of requested and measured.
        mae: mean |requested - measured|.
        cross_talk: mean over the other attributes of |slope of their measured value on this one's requested value|.
        slopes: those slopes, and this attribute's own.
    """

    model_config = ConfigDict(extra="forbid")

    num_answers: int
    curve: list[CurvePoint]
    spearman: Estimate
    mae: Estimate
    cross_talk: Estimate
    slopes: dict[str, float]


class SteeringReport(BaseModel):
    """Responses of one model, by attribute."""

    model_config = ConfigDict(extra="forbid")

    num_answers: int
    num_questions: int
    attributes: dict[str, AttributeResponse]

    def figures(self) -> dict[str, float]:
        """Flat dotted keys -> numbers."""
        flat: dict[str, float] = {}
        for name, response in self.attributes.items():
            flat |= {
                f"spearman.{name}": response.spearman.value,
                f"mae.{name}": response.mae.value,
                f"cross_talk.{name}": response.cross_talk.value,
            }
        return flat


def sweep_each(
    questions: Mapping[str, Conversation],
    schema: AttributeSchema,
    rest: Mapping[str, int],
    swept: Sequence[str],
    values: Sequence[int] | None = None,
) -> list[Request]:
    """Every question at every value of each swept attribute, the others at `rest`.

    Args:
        values: what to request instead of each value of the scale.

    Raises:
        LabelError: an attribute or a value outside the schema.
    """
    requests = []
    for name in swept:
        for value in values if values is not None else schema[name].values:
            attributes = {**rest, name: value}
            schema.check(attributes)
            for question, conversation in questions.items():
                requests.append(
                    Request(
                        id=f"{question}/{name}:{value}",
                        question=question,
                        conversation=conversation,
                        attributes=attributes,
                        swept=[name],
                    )
                )
    return requests


def sweep_combinations(
    questions: Mapping[str, Conversation],
    schema: AttributeSchema,
    combinations: Sequence[Mapping[str, int]],
    per_question: int,
    seed: int,
) -> list[Request]:
    """`per_question` combinations for each question, drawn with replacement by (seed, question)."""
    requests = []
    for question, conversation in questions.items():
        for index, attributes in enumerate(
            stream(seed, question, "combinations").choices(combinations, k=per_question)
        ):
            schema.check(attributes)
            requests.append(
                Request(
                    id=f"{question}/{index}",
                    question=question,
                    conversation=conversation,
                    attributes=dict(attributes),
                    swept=list(attributes),
                )
            )
    return requests


def digest(requests: Sequence[Request]) -> str:
    """What tells one sweep from another, 16 hex digits."""
    return hashlib.sha256(b"".join(jsonl.dumps(request) for request in requests)).hexdigest()[:16]


def answer(
    requests: Sequence[Request],
    output: Path,
    generator: Generator,
    template: Template,
    schema: AttributeSchema | None,
    sampling: Sampling,
    *,
    seed: int,
    guidance_scale: float = 1.0,
    progress: Progress | None = None,
    forget: Callable[[], Any] = lambda: None,
) -> Path:
    """Generate an answer to each request, resumably, into a file of `Answer` lines.

    Args:
        template, schema: of the model's card. Without a schema the model is not told what is requested: the
            unconditioned baseline.
        sampling: its seed is replaced by one from (seed, request id).
        guidance_scale: of the contrast with the opposite of what is swept; 1 is none.
        forget: called before each unit; makes an embedded model drop what it keeps for reuse (`Engine.forget`).
    """

    def ask(request: Request) -> GenerationRequest:
        own = replace(sampling, seed=derive_seed(seed, request.id))
        if schema is None:
            return answer_request(request.conversation, template, None, {}, own)
        swept = {name: request.attributes[name] for name in request.swept}
        return answer_request(
            request.conversation, template, schema, swept, own, guidance_scale, rest=request.attributes
        )

    def work(unit: Sequence[Request]) -> Iterator[Answer]:
        forget()
        completions = generator.generate([ask(request) for request in unit])
        for request, completion in zip(unit, completions, strict=True):
            text = answer_text(completion)
            yield Answer(**dict(request), answer=text, finish_reason=completion.finish_reason)

    settings = {
        "requests": digest(requests),
        "sampling": asdict(sampling),
        "seed": seed,
        "guidance_scale": guidance_scale,
        "conditioned": schema is not None,
    }
    return jsonl.Journal(output, unit=UNIT, settings=settings).run(requests, work, progress)


def measure(
    answers: Path,
    output: Path,
    scorer: Scorer,
    *,
    progress: Progress | None = None,
    forget: Callable[[], Any] = lambda: None,
) -> Path:
    """Let the scorer judge every answer, resumably: a file of `Answer` lines to one of `Measured` lines."""

    def work(unit: Sequence[Answer]) -> Iterator[Measured]:
        forget()
        for answer, judgement in zip(unit, scorer.judge([answer.answered() for answer in unit]), strict=True):
            yield Measured(**dict(answer), measured=judgement.expected)

    settings = {"answers": jsonl.fingerprint(answers), "attributes": scorer.schema.names}
    journal = jsonl.Journal(output, unit=UNIT, settings=settings)
    return journal.run(list(jsonl.read(answers, Answer)), work, progress)


def summarise(answers: Sequence[Measured], names: Sequence[str]) -> SteeringReport:
    """The responses that answers show, for each of the named attributes that was swept and can be measured; questions
    are resampled for the intervals."""
    attributes = {}
    for name in names:
        points = [answer for answer in answers if name in answer.swept and name in answer.measured]
        if points:
            attributes[name] = _summarise_attribute(name, points)
    num_questions = len({answer.question for answer in answers})
    return SteeringReport(num_answers=len(answers), num_questions=num_questions, attributes=attributes)


def _summarise_attribute(name: str, points: Sequence[Measured]) -> AttributeResponse:
    requested_N = np.array([point.attributes[name] for point in points])
    measured_N = {other: np.array([point.measured[other] for point in points]) for other in points[0].measured}
    weights_RN = statistics.group_weights([point.question for point in points])

    def at(value: int) -> CurvePoint:
        here_N = requested_N == value
        own_N = measured_N[name][here_N]
        estimate = statistics.estimate(lambda w: statistics.mean(own_N, w), weights_RN[:, here_N])
        return CurvePoint(requested=value, measured=estimate, num_answers=int(here_N.sum()))

    def cross_talk(weights_RN: Array) -> Array:
        others = [values_N for other, values_N in measured_N.items() if other != name]
        slopes = [np.abs(statistics.slope(requested_N, values_N, weights_RN)) for values_N in others]
        return np.mean(slopes, axis=0) if slopes else np.zeros(len(weights_RN))

    def of_own(statistic: Callable[[ArrayLike, ArrayLike, Array], Array]) -> Estimate:
        return statistics.estimate(lambda w: statistic(requested_N, measured_N[name], w), weights_RN)

    ones_1N = np.ones((1, len(points)))
    return AttributeResponse(
        num_answers=len(points),
        curve=[at(int(value)) for value in np.unique(requested_N)],
        spearman=of_own(statistics.spearman),
        mae=of_own(statistics.mean_absolute_error),
        cross_talk=statistics.estimate(cross_talk, weights_RN),
        slopes={other: float(statistics.slope(requested_N, y_N, ones_1N)[0]) for other, y_N in measured_N.items()},
    )
