"""Choosing tokens: each rule by hand, the draw's distribution, and its independence from everything else."""

import math
from dataclasses import replace

import pytest
import torch

from steersman.errors import NonFiniteError
from steersman.generation import sampling as module
from steersman.generation.sampling import BLOCK, Draw, choose, gumbel, largest, penalise
from steersman.randomness import derive_seed
from steersman.seams import Sampling


def draws(sampling: Sampling, count: int) -> list[Draw]:
    return [Draw(sampling, seed, 0) for seed in range(count)]


def frequencies(logits: list[float], sampling: Sampling, count: int = 4000) -> torch.Tensor:
    tokens = choose(torch.tensor([logits]).expand(count, -1), draws(sampling, count))
    return torch.bincount(tokens, minlength=len(logits)) / count


def assert_close_to(observed: torch.Tensor, expected: list[float], count: int = 4000) -> None:
    """Within four standard errors; impossible tokens never."""
    probability = torch.tensor(expected)
    assert (observed[probability == 0] == 0).all()
    error = 4 * (probability * (1 - probability) / count).sqrt()
    assert ((observed - probability).abs() <= error).all(), (observed, probability)


def test_greedy_takes_the_likeliest_and_ignores_the_rest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    greedy = Sampling(greedy=True, temperature=100.0, top_k=2)
    assert choose(logits, draws(greedy, 2)).tolist() == [1, 0]


def test_draws_follow_the_softmax():
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert_close_to(frequencies(logits, Sampling()), [0.5, 0.3, 0.15, 0.05])


def test_temperature_divides_the_logits():
    # p^(1/2), normalised: (0.8, 0.4, ...) for p = (0.64, 0.16, 0.16, 0.04) -> (0.4444, 0.2222, 0.2222, 0.1111)
    logits = [math.log(p) for p in (0.64, 0.16, 0.16, 0.04)]
    assert_close_to(frequencies(logits, Sampling(temperature=2.0)), [4 / 9, 2 / 9, 2 / 9, 1 / 9])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 10}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.75}, [0.625, 0.375, 0, 0]),  # 0.5 does not reach it, 0.5 + 0.3 does
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.0}, [1, 0, 0, 0]),
        # top-k first: of (0.5, 0.3, 0.15), renormalised, the first two have 0.842
        ({"top_k": 3, "top_p": 0.84}, [0.625, 0.375, 0, 0]),
        ({"top_k": 3, "top_p": 0.85}, [10 / 19, 6 / 19, 3 / 19, 0]),
    ],
)
def test_truncation_by_hand(rules, expected):
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    order = [2, 0, 3, 1]  # the result does not depend on where tokens stand in the vocabulary
    observed = frequencies([logits[i] for i in order], Sampling(**rules))
    assert_close_to(observed, [expected[i] for i in order])


def test_a_nucleus_wider_than_the_first_look_is_found(monkeypatch):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0)).expand(200, -1)
    rules = draws(Sampling(top_p=0.95), 200)
    wide = choose(logits, rules)
    monkeypatch.setattr(module, "NUCLEUS_GUESS", 4)
    assert choose(logits, rules).tolist() == wide.tolist()
    probabilities, order = logits[0].softmax(0).sort(descending=True)
    nucleus = order[: int((probabilities.cumsum(0) < 0.95).sum()) + 1]
    assert set(wide.tolist()) <= set(nucleus.tolist())
    assert len(set(wide.tolist())) > 50


def test_a_draw_is_two_argmaxes_written_out():
    vocabulary = 2 * BLOCK + 100  # the last block is a short one
    logits = 8 * torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(1))
    tokens = choose(logits, draws(Sampling(temperature=1.5), 50)).tolist()
    for seed, row in enumerate(logits / 1.5):
        blocks = row.split(BLOCK)
        noise = gumbel(torch.tensor(derive_seed(seed, 0)), torch.arange(vocabulary + len(blocks)))
        block = int((torch.stack([block.logsumexp(0) for block in blocks]) + noise[vocabulary:]).argmax())
        within = (blocks[block] + noise[:vocabulary].split(BLOCK)[block]).argmax()
        assert tokens[seed] == block * BLOCK + int(within)


@pytest.mark.parametrize("rules", [{}, {"top_k": 4}])
def test_tokens_of_all_blocks_are_drawn_as_often_as_they_are_likely(rules):
    logits = torch.full((2 * BLOCK + 100,), -30.0)
    kept = {3: 0.1, BLOCK - 1: 0.3, BLOCK: 0.2, 2 * BLOCK + 99: 0.4}
    for token, probability in kept.items():
        logits[token] = math.log(probability)
    drawn = choose(logits.expand(4000, -1), draws(Sampling(**rules), 4000))
    counts = {token: int((drawn == token).sum()) for token in kept}
    assert sum(counts.values()) == 4000
    for token, probability in kept.items():
        assert abs(counts[token] / 4000 - probability) < 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_gumbel_noise_has_its_distribution():
    noise = gumbel(torch.tensor(derive_seed(3, 7)), torch.arange(200_000))
    assert float(noise.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.03)
    neighbour = gumbel(torch.tensor(derive_seed(3, 8)), torch.arange(200_000))
    assert abs(float(torch.corrcoef(torch.stack([noise, neighbour]))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([noise[:-1], noise[1:]]))[0, 1])) < 0.01


def test_a_row_is_drawn_alike_in_any_company():
    logits = torch.randn(40, 97, generator=torch.Generator().manual_seed(2))
    rules = [Sampling(), Sampling(top_k=5), Sampling(top_p=0.7), Sampling(greedy=True), Sampling(temperature=3.0)]
    rows = [Draw(replace(rules[i % 5], repetition_penalty=1.0), 10 + i, i) for i in range(40)]
    together = choose(logits, rows).tolist()
    assert together == [int(choose(logits[i : i + 1], [row])) for i, row in enumerate(rows)]
    assert together[::-1] == choose(logits.flip(0), rows[::-1]).tolist()


def test_seed_and_step_change_the_draw():
    logits = torch.zeros(1, 1000)
    assert len({int(choose(logits, [Draw(Sampling(), seed, step)])) for seed in range(5) for step in range(5)}) > 20


def test_penalty_by_hand():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    penalise(logits, torch.tensor([0, 1, 1, 3]), 2.0)
    assert logits.tolist() == [1.0, -4.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_stop_the_run(bad):
    with pytest.raises(NonFiniteError, match="not finite"):
        choose(torch.tensor([[0.0, bad, 1.0]]), draws(Sampling(greedy=True), 1))


def test_a_forbidden_token_never_wins():
    assert_close_to(frequencies([0.0, -math.inf, 0.0], Sampling(temperature=50.0)), [0.5, 0.0, 0.5])


@pytest.mark.parametrize("vocabulary", [3, 512, 1030])
def test_largest_is_what_max_finds(vocabulary):
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[1] = -math.inf
    logits[1, -1] = 0.0
    logits[2, [vocabulary // 2, vocabulary - 1]] = 9.0  # the first of equals
    logits[3, 0] = math.inf
    top, place = largest(logits)
    assert torch.equal(top, logits.amax(-1))
    assert place.tolist() == [int((row == row.max()).nonzero()[0]) for row in logits]
    assert place[2] == vocabulary // 2
    assert largest(torch.full((1, vocabulary), math.nan))[0].isnan().all()
