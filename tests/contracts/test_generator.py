"""What every Generator does."""

from dataclasses import replace

import pytest

from steersman.generation.engine import Engine
from steersman.records import Prompt
from steersman.seams import GenerationRequest, Generator, Sampling

GREEDY = Sampling(max_tokens=6, greedy=True)
SAMPLED = Sampling(max_tokens=6, temperature=1.5, seed=3)


@pytest.fixture(params=["engine", "openai_client", "generate_client"])
def generator(request: pytest.FixtureRequest) -> Generator:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Generator)
    return found


def requests(sampling: Sampling) -> list[GenerationRequest]:
    texts = ["The capital of", "Tell me a joke about the sea and the moon", "How many"]
    return [
        GenerationRequest(prompt=Prompt(text=f"<extra_id_1>User\n{text}\n<extra_id_1>Assistant\n"), sampling=sampling)
        for text in texts
    ]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_an_answer_depends_on_its_request_alone(generator: Generator, sampling: Sampling) -> None:
    asked = requests(sampling)
    together = [answer.text for answer in generator.generate(asked)]
    assert [answer.text for answer in generator.generate(asked[::-1])] == together[::-1]
    assert [generator.generate([one])[0].text for one in asked] == together
    assert len(set(together)) == 3


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_all_agree_with_the_engine(generator: Generator, engine: Engine, sampling: Sampling) -> None:
    asked = requests(replace(sampling, logprobs=True))
    for answer, own in zip(generator.generate(asked), engine.generate(asked), strict=True):
        assert (answer.text, answer.token_ids, answer.finish_reason) == (own.text, own.token_ids, own.finish_reason)
        assert answer.logprobs == pytest.approx(own.logprobs, abs=1e-4)


def test_seeds_differ_and_repeat(generator: Generator) -> None:
    asked = [replace(requests(SAMPLED)[0], sampling=replace(SAMPLED, seed=seed)) for seed in (1, 2, 1)]
    first, second, again = (answer.token_ids for answer in generator.generate(asked))
    assert first == again != second


def test_a_budget_cuts_and_a_stop_string_ends(generator: Generator) -> None:
    (asked, *_) = requests(GREEDY)
    (cut,) = generator.generate([asked])
    assert (cut.finish_reason, cut.stop, len(cut.token_ids)) == ("length", None, 6)
    stop = cut.text[2:4]
    (ended,) = generator.generate([replace(asked, sampling=replace(GREEDY, stop=("@@@", stop)))])
    assert (ended.finish_reason, ended.stop) == ("stop", stop)
    assert ended.text == cut.text.partition(stop)[0]
    assert len(ended.token_ids) <= 6


def test_logprobs_come_when_asked_for(generator: Generator) -> None:
    (plain,) = generator.generate(requests(GREEDY)[:1])
    assert plain.logprobs is None
    (scored,) = generator.generate(requests(replace(GREEDY, logprobs=True))[:1])
    assert scored.logprobs is not None
    assert len(scored.logprobs) == len(scored.token_ids)
    assert max(scored.logprobs) < 0


def test_progress_counts_requests_and_nothing_is_nothing(generator: Generator) -> None:
    done: list[int] = []
    generator.generate(requests(GREEDY), done.append)
    assert sum(done) == 3
    assert generator.generate([]) == []
