"""The conditioning gain of scorers that use, ignore and distrust the label."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from steersman import jsonl
from steersman.card import TemplateSpec
from steersman.errors import DataError
from steersman.evaluation import conditioning
from steersman.evaluation.conditioning import Loss, gain, permute_labels
from steersman.evaluation.statistics import Estimate
from steersman.records import Conversation, Message
from steersman.seams import Progress, Scored, ScoreRequest
from steersman.text.template import Template


def conversation(index: int, label: str | None) -> Conversation:
    turns = [
        Message(role="User", value=f"Question {index}?"),
        Message(role="Assistant", value=f"jokes:{index % 5}", label=label),
    ]
    return Conversation(conversations=[*turns, Message(role="User", value="Thanks")], type="VALUE_TO_TEXT")


CONVERSATIONS = [conversation(i, f"humor:{i % 5}") for i in range(20)]
GROUPS = [f"tree {i // 2}" for i in range(20)]


class Knowing:
    """Gives a token 1 nat when the label says what the answer does, and 1 + `surprise` when it does not."""

    def __init__(self, surprise: float) -> None:
        self.surprise = surprise
        self.continuations: list[str] = []

    def score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored]:
        scored = []
        for request in requests:
            found = re.search(r"<extra_id_2>humor:(\d)\n$", request.prompt.text)
            assert found
            right = found[1] == request.continuation[6]
            self.continuations.append(request.continuation)
            scored.append(Scored(token_ids=[1, 2, 3], logprobs=[-1.0 if right else -1.0 - self.surprise] * 3))
        return scored


def measure(folder: Path, scorer: Knowing) -> Estimate:
    answers = permute_labels(CONVERSATIONS, GROUPS, seed=3)
    path = conditioning.score(answers, folder / "losses.jsonl", scorer, Template(TemplateSpec()))
    return gain(list(jsonl.read(path, Loss)))


def test_permutation_gives_every_record_anothers_label() -> None:
    answers = permute_labels([conversation(i, f"humor:{i % 5},n:{i}") for i in range(20)], GROUPS, seed=3)
    own = [answer.conversation.conversations[-1].label for answer in answers]
    permuted = [answer.permuted for answer in answers]
    assert sorted(permuted) == sorted(str(label) for label in own)
    assert all(a != b for a, b in zip(own, permuted, strict=True))
    assert answers[0].conversation.conversations[-1].role == "Assistant", "cut after the labelled turn"


def test_a_model_that_knows_gains(tmp_path: Path) -> None:
    scorer = Knowing(surprise=0.5)
    estimate = measure(tmp_path, scorer)
    answers = permute_labels(CONVERSATIONS, GROUPS, seed=3)
    share = sum(a.permuted != a.conversation.conversations[-1].label for a in answers) / 20
    assert estimate.value == pytest.approx(0.5 * share)
    assert 0 < estimate.low < estimate.value < estimate.high
    assert scorer.continuations[0] == "jokes:0\n<extra_id_1>", "what ends the turn counts"


def test_a_model_that_ignores_labels_gains_nothing(tmp_path: Path) -> None:
    assert measure(tmp_path, Knowing(surprise=0.0)) == Estimate(value=0.0, low=0.0, high=0.0)


def test_gain_weighs_tokens_by_hand() -> None:
    losses = [
        Loss(group="a", num_tokens=1, true=1.0, permuted=2.0),
        Loss(group="b", num_tokens=9, true=9.0, permuted=9.0),
    ]
    assert gain(losses).value == pytest.approx(0.1), "1 nat over 10 tokens, not the mean of 1 and 0"


def test_too_few_labels_is_an_error() -> None:
    with pytest.raises(DataError, match="at least two"):
        permute_labels([conversation(0, "humor:0"), conversation(1, None)], ["a", "b"], seed=0)
