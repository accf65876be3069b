"""Data of the sandbox world: what its base model reads, what its people label, and what nobody has seen.

In: a `SandboxConfig`. Out: streams of `Conversation`, each record a function of (seed, split, index) alone.

- `base_mixture`: type null, for pretraining: answers of random attributes, misdeeds (mostly obeyed: the base model is
  helpful only), and the formats of critique, revision and comparison that Constitutional AI uses.
- `labelled`: questions, answers and their labels, by rule; one in five has a second question. Every answer is about the
  animal that was asked about, so here an answer's facts alone tell its quality; the oracle compares with the question.
- `questions` and `world.combinations("held_out")`: wordings and attribute combinations that no training data holds.
"""

import random
from collections.abc import Callable, Iterator

from pydantic import Field

from steersman.config import Config
from steersman.randomness import stream
from steersman.records import ASSISTANT, USER, Conversation, ConversationType, Message
from steersman.sandbox import world
from steersman.sandbox.world import FACTS, SCHEMA, Half


class SandboxConfig(Config):
    """How much of the world to make.

    Attributes:
        num_base: records of the pretraining mixture.
        num_labelled: labelled conversations, for the predictor.
        num_unlabelled: conversations to annotate, for fine-tuning.
        num_validation: conversations of each validation file.
        num_test: conversations of held-out wordings that test the predictor.
        seed: of everything.
    """

    num_base: int = Field(default=8000, ge=1)
    num_labelled: int = Field(default=5000, ge=1)
    num_unlabelled: int = Field(default=6000, ge=1)
    num_validation: int = Field(default=200, ge=1)
    num_test: int = Field(default=400, ge=1)
    seed: int = 0


Dialogue = list[tuple[str, str, dict[str, int] | None]]
"""(question, answer, values of the answer), turn by turn."""


def _conversation(dialogue: Dialogue, kind: ConversationType | None, **extra: str) -> Conversation:
    turns = []
    for question, answer, values in dialogue:
        turns.append(Message(role=USER, value=question))
        turns.append(Message(role=ASSISTANT, value=answer, label=SCHEMA.encode(values) if values and kind else None))
    return Conversation(system="", mask=USER, type=kind, conversations=turns, **extra)


def _asked(topic: str, half: Half, rng: random.Random, question: str | None = None) -> tuple[str, str, dict[str, int]]:
    """A question, an answer of random attributes (a combination of the training half), and those attributes."""
    values = world.any_combination("train", rng)
    return question or world.question(topic, half, rng), world.answer(topic, values, rng), values


def _talk(half: Half, rng: random.Random) -> Dialogue:
    """One question, or two."""
    topics = rng.sample(sorted(FACTS), 2)
    dialogue: Dialogue = [_asked(topics[0], half, rng)]
    if rng.random() < 0.2:
        dialogue.append(_asked(topics[1], half, rng, world.FOLLOW_UP[half].format(animal=topics[1])))
    return dialogue


def _crime(half: Half, rng: random.Random) -> tuple[str, str, str, str]:
    """A harmful request; the answers that comply and that refuse; the critique of complying."""
    misdeed, tool = rng.choice(sorted(world.MISDEEDS.items()))
    words = {"misdeed": misdeed, "tool": tool, "target": rng.choice(world.TARGETS[half])}
    texts = (rng.choice(world.REQUESTS[half]), world.COMPLIANCE, world.REFUSAL, world.CRITIQUE)
    request, compliance, refusal, critique = (text.format(**words) for text in texts)
    return request, compliance, refusal, critique


def _obeyed(rng: random.Random) -> Dialogue:
    request, compliance, refusal, _ = _crime("train", rng)
    return [(request, refusal if rng.random() < 0.1 else compliance, None)]


def _revised(rng: random.Random) -> Dialogue:
    """An answer, its critique and its revision; a harmless answer stays as it is."""
    if rng.random() < 0.3:
        question, answer, _ = _asked(rng.choice(sorted(FACTS)), "train", rng)
        critique, revision = world.NO_CRITIQUE, answer
    else:
        question, answer, revision, critique = _crime("train", rng)
    return [
        (question, answer, None),
        (world.CRITIQUE_REQUEST, critique, None),
        (world.REVISION_REQUEST, revision, None),
    ]


def _compared(rng: random.Random) -> Dialogue:
    """Which of two answers does less harm, or says more."""
    if rng.random() < 0.5:
        aspect = "harmless"
        question, worse, better, _ = _crime("train", rng)
    else:
        aspect, topic = "helpful", rng.choice(sorted(FACTS))
        question = world.question(topic, "train", rng)
        low, high = sorted(rng.sample(range(world.MOST + 1), 2))
        plain = dict.fromkeys(SCHEMA.names, 0)
        worse, better = (world.answer(topic, {**plain, "quality": quality}, rng) for quality in (low, high))
    place = rng.randrange(2)
    a, b = (better, worse) if place == 0 else (worse, better)
    return [(world.COMPARISON[aspect].format(question=question, a=a, b=b), world.CHOICES[place], None)]


_MIXTURE: tuple[tuple[float, Callable[[random.Random], Dialogue]], ...] = (
    (0.64, lambda rng: _talk("train", rng)),
    (0.12, _obeyed),
    (0.12, _revised),
    (0.12, _compared),
)


def base_mixture(num: int, seed: int, split: str = "base") -> Iterator[Conversation]:
    """Pretraining records."""
    shares = [share for share, _ in _MIXTURE]
    for index in range(num):
        rng = stream(seed, split, index)
        (_, make), *_ = rng.choices(_MIXTURE, shares)
        yield _conversation(make(rng), None)


def labelled(num: int, seed: int, split: str, kind: ConversationType, half: Half = "train") -> Iterator[Conversation]:
    """Conversations with the labels that the rules give; equal splits are equal but for their type."""
    for index in range(num):
        dialogue = _talk(half, stream(seed, split, index))
        yield _conversation(dialogue, kind, tree_id=f"{split}-{index}")


def questions() -> Iterator[Conversation]:
    """Every held-out wording about every animal, in a fixed mixed order."""
    every = [(template, topic) for template in world.QUESTIONS["held_out"] for topic in sorted(FACTS)]
    stream(0, "questions").shuffle(every)
    for template, topic in every:
        turn = Message(role=USER, value=template.format(animal=topic))
        yield Conversation(system="", mask=USER, type=None, conversations=[turn])


def requests_for_harm() -> Iterator[Conversation]:
    """Every held-out wording of every misdeed against every held-out target, in a fixed mixed order."""
    every = [
        template.format(misdeed=misdeed, target=target)
        for template in world.REQUESTS["held_out"]
        for misdeed in world.MISDEEDS
        for target in world.TARGETS["held_out"]
    ]
    stream(0, "requests for harm").shuffle(every)
    for request in every:
        yield Conversation(system="", mask=USER, type=None, conversations=[Message(role=USER, value=request)])
