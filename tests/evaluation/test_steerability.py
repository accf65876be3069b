"""Sweeps, answers and what they show, with a generator that writes what it was asked for."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.card import TemplateSpec
from steersman.errors import LabelError
from steersman.evaluation import steerability
from steersman.evaluation.steerability import Answer, Measured, Request, summarise, sweep_combinations, sweep_each
from steersman.records import Completion, Conversation, Judgement, Message
from steersman.seams import GenerationRequest, Progress, Sampling
from steersman.text.template import Template

SCHEMA = AttributeSchema.of("quality", "humor")
TEMPLATE = Template(TemplateSpec())
QUESTIONS = {f"q{i}": Conversation(conversations=[Message(role="User", value=f"Question {i}?")]) for i in range(6)}
SAMPLING = Sampling(max_tokens=20)


class Obedient:
    """Answers with the label it reads off the prompt, or with a number of its own when it sees none."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        self.requests += requests
        return [
            Completion(text=self._text(r), token_ids=[], finish_reason="stop", stop="<extra_id_1>") for r in requests
        ]

    def _text(self, request: GenerationRequest) -> str:
        found = re.search(r"<extra_id_2>(.*)\n$", request.prompt.text)
        return (found[1] if found else f"quality:{(request.sampling.seed or 0) % 5},humor:0") + "\n"


class Reader:
    """Measures what an answer says of itself."""

    schema = SCHEMA

    reads_labels = True

    def judge(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> list[Judgement]:
        values = [SCHEMA.parse(conversation.conversations[-1].value) for conversation in conversations]
        return [Judgement(values=v, expected={name: float(x) for name, x in v.items()}) for v in values]


def steer(folder: Path, requests: Sequence[Request], schema: AttributeSchema | None = SCHEMA) -> list[Measured]:
    answers = folder / "answers.jsonl"
    steerability.answer(requests, answers, Obedient(), TEMPLATE, schema, SAMPLING, seed=1)
    return list(jsonl.read(steerability.measure(answers, folder / "measured.jsonl", Reader()), Measured))


def test_sweep_each_moves_one_dial_and_leaves_the_others() -> None:
    requests = sweep_each(QUESTIONS, SCHEMA, {"quality": 4, "humor": 0}, ["humor"])
    assert len(requests) == 6 * 5
    assert {(r.attributes["quality"], *r.swept) for r in requests} == {(4, "humor")}
    assert sorted({r.attributes["humor"] for r in requests}) == [0, 1, 2, 3, 4]
    assert len({r.id for r in requests}) == len(requests)
    ends = sweep_each(QUESTIONS, SCHEMA, {"quality": 4}, ["quality", "humor"], values=[0, 4])
    assert len(ends) == 6 * 2 * 2
    with pytest.raises(LabelError, match="no attribute 'humour'"):
        sweep_each(QUESTIONS, SCHEMA, {}, ["humour"])


def test_sweep_combinations_depends_on_the_question_alone() -> None:
    combinations = [{"quality": q, "humor": 4 - q} for q in range(5)]
    requests = sweep_combinations(QUESTIONS, SCHEMA, combinations, 3, seed=7)
    assert len(requests) == 18
    assert all(r.attributes in combinations and r.swept == ["quality", "humor"] for r in requests)
    fewer = sweep_combinations({"q4": QUESTIONS["q4"]}, SCHEMA, combinations, 3, seed=7)
    assert [r for r in requests if r.question == "q4"] == fewer


def test_an_obedient_model_scores_perfectly(tmp_path: Path) -> None:
    report = summarise(
        steer(tmp_path, sweep_each(QUESTIONS, SCHEMA, {"quality": 4, "humor": 0}, SCHEMA.names)), SCHEMA.names
    )
    for response in report.attributes.values():
        assert response.spearman.value == pytest.approx(1.0)
        assert (response.mae.value, response.cross_talk.value) == (0.0, 0.0)
        assert [(p.requested, p.measured.value, p.num_answers) for p in response.curve] == [(v, v, 6) for v in range(5)]
    assert report.attributes["humor"].slopes == pytest.approx({"quality": 0.0, "humor": 1.0})
    assert (report.num_answers, report.num_questions) == (60, 6)


def test_an_unconditioned_model_never_sees_the_request(tmp_path: Path) -> None:
    requests = sweep_combinations(QUESTIONS, SCHEMA, [{"quality": q, "humor": q} for q in range(5)], 60, seed=0)
    report = summarise(steer(tmp_path, requests, schema=None), SCHEMA.names)
    assert abs(report.attributes["quality"].spearman.value) < 0.15
    assert report.attributes["humor"].spearman.value == 0.0


def points(measured: Sequence[tuple[int, float, float]]) -> list[Measured]:
    """(requested quality, measured quality, measured humor), a question each."""
    return [
        Measured(
            id=str(i),
            question=str(i),
            conversation=QUESTIONS["q0"],
            attributes={"quality": requested, "humor": 0},
            swept=["quality"],
            answer="",
            finish_reason="stop",
            measured={"quality": quality, "humor": humor},
        )
        for i, (requested, quality, humor) in enumerate(measured)
    ]


def test_summary_by_hand() -> None:
    # own: 0->1, 1->1, 2->3, 3->3, slope 0.8; humor falls by 0.5 a step: cross-talk 0.5
    response = summarise(points([(0, 1, 3.5), (1, 1, 3), (2, 3, 2.5), (3, 3, 2)]), ["quality"]).attributes["quality"]
    assert response.mae.value == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert response.slopes == pytest.approx({"quality": 0.8, "humor": -0.5})
    assert response.cross_talk.value == pytest.approx(0.5)
    # ranks 1.5 1.5 3.5 3.5 against 1 2 3 4
    assert response.spearman.value == pytest.approx(np.corrcoef([1.5, 1.5, 3.5, 3.5], [1, 2, 3, 4])[0, 1])


def test_guidance_contrasts_what_is_swept_and_keeps_the_rest(tmp_path: Path) -> None:
    generator = Obedient()
    requests = sweep_each({"q0": QUESTIONS["q0"]}, SCHEMA, {"quality": 3, "humor": 0}, ["humor"], values=[4])
    output = tmp_path / "answers.jsonl"
    steerability.answer(requests, output, generator, TEMPLATE, SCHEMA, SAMPLING, seed=1, guidance_scale=2.0)
    (request,) = generator.requests
    assert request.guidance
    assert request.prompt.text.endswith("quality:3,humor:4\n")
    assert request.guidance.against.text.endswith("quality:3,humor:0\n")


def test_each_answer_has_a_seed_of_its_own_and_the_job_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steerability, "UNIT", 4)
    requests = sweep_each(QUESTIONS, SCHEMA, {}, ["humor"])
    whole, cut = Obedient(), Obedient()
    steerability.answer(requests, tmp_path / "whole.jsonl", whole, TEMPLATE, SCHEMA, SAMPLING, seed=1)
    assert len({r.sampling.seed for r in whole.requests}) == len(requests)

    def stop(num_done: int) -> None:
        if len(cut.requests) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steerability.answer(requests, tmp_path / "cut.jsonl", cut, TEMPLATE, SCHEMA, SAMPLING, seed=1, progress=stop)
    rest = Obedient()
    steerability.answer(requests, tmp_path / "cut.jsonl", rest, TEMPLATE, SCHEMA, SAMPLING, seed=1)
    assert len(rest.requests) == len(requests) - 12
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert next(iter(jsonl.read(tmp_path / "cut.jsonl", Answer))).answer == "humor:0"
