from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from steersman.attributes import Attribute, AttributeSchema
from steersman.card import ModelCard, TemplateSpec
from steersman.errors import DataError, LabelError
from steersman.generation.batch import BatchReport, complete_file
from steersman.records import Completion
from steersman.seams import GenerationRequest, Progress, Sampling
from steersman.text.template import Template

CARD = ModelCard(attributes=AttributeSchema(attributes=(Attribute(name="quality", default=4), Attribute(name="humor"))))


class LabelReader:
    """Answers with the label line it was given."""

    def __init__(self, fail_at_call: int | None = None) -> None:
        self.requests: list[GenerationRequest] = []
        self.fail_at_call = fail_at_call

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        if self.fail_at_call == 0:
            raise KeyboardInterrupt
        if self.fail_at_call:
            self.fail_at_call -= 1
        self.requests += requests
        if progress:
            progress(len(requests))
        labels = [request.prompt.text.rpartition("<extra_id_2>")[2] for request in requests]
        return [Completion(text=label, token_ids=[7, 8], finish_reason="length") for label in labels]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., BatchReport]:
    def run_on(prompts: Sequence[dict[str, Any]], generator: LabelReader, name: str = "out", **options: Any) -> Any:
        source = tmp_path / "in.jsonl"
        source.write_bytes(b"".join(orjson.dumps(prompt) + b"\n" for prompt in prompts))
        given = {"attributes": {}, "identity": "reader", **options}
        template = Template(TemplateSpec())
        return complete_file(source, tmp_path / f"{name}.jsonl", generator, template, CARD, Sampling(), **given)

    return run_on


def lines(report: BatchReport) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in report.output.read_bytes().splitlines()]


def test_lines_come_back_with_their_answers(run: Callable[..., BatchReport]) -> None:
    prompts = [{"prompt": "a", "id": 7}, {"turns": ["b"], "attributes": {"humor": 1}}]
    done: list[int] = []
    report = run(prompts, LabelReader(), attributes={"humor": 3}, progress=done.append)
    first, second = lines(report)
    assert first == {
        "prompt": "a",
        "id": 7,
        "attributes": {"quality": 4, "humor": 3},
        "answer": "quality:4,humor:3",
        "finish_reason": "length",
        "num_tokens": 2,
        "seed": first["seed"],
    }
    assert second["answer"] == "quality:4,humor:1"  # a line's own attributes go first
    assert first["seed"] != second["seed"]
    assert sum(done) == 2
    assert (report.num_prompts, report.num_tokens, report.finish_reasons) == (2, 4, {"length": 2})


def test_prompts_use_the_cards_system_prompt_unless_they_bring_one(run: Callable[..., BatchReport]) -> None:
    reader = LabelReader()
    run([{"prompt": "a"}, {"system": "own", "conversations": [{"from": "User", "value": "b"}]}], reader)
    assert [request.prompt.text.partition("<extra_id_1>")[0] for request in reader.requests] == [
        f"<extra_id_0>System\n{CARD.system}\n",
        "<extra_id_0>System\nown\n",
    ]


@pytest.mark.parametrize("call", [0, 2])
def test_an_interrupted_run_continues_to_the_same_bytes(run: Callable[..., BatchReport], call: int) -> None:
    prompts = [{"prompt": str(i)} for i in range(7)]
    whole = run(prompts, LabelReader(), name="whole", unit=2)
    with pytest.raises(KeyboardInterrupt):
        run(prompts, LabelReader(fail_at_call=call), unit=2)
    again, done = LabelReader(), list[int]()
    report = run(prompts, again, unit=2, progress=done.append)
    assert report.output.read_bytes() == whole.output.read_bytes()
    assert len(again.requests) == 7 - 2 * call
    assert sum(done) == 7


class Narrow:
    size = 10

    def holds(self, prompt: Any, room: int = 1) -> bool:
        return "long" not in prompt.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"question": "a"}, "no prompt"),
        ({"prompt": "a", "attributes": {"humour": 4}}, "did you mean 'humor'"),
        ({"prompt": "long"}, "longer than the model's window of 10 tokens"),
    ],
)
def test_bad_lines_are_met_before_anything_is_generated(
    run: Callable[..., BatchReport], line: dict[str, Any], words: str
) -> None:
    reader = LabelReader()
    with pytest.raises(DataError, match=rf"in\.jsonl:2: .*{words}"):
        run([{"prompt": "a"}, line], reader, window=Narrow())
    assert reader.requests == []
    assert run([{"prompt": "a"}, line], reader, window=Narrow(), on_error="skip").num_rejected == 1


def test_attributes_that_the_model_does_not_have(run: Callable[..., BatchReport]) -> None:
    with pytest.raises(LabelError, match="no attribute 'wit'"):
        run([{"prompt": "a"}], LabelReader(), attributes={"wit": 4})
