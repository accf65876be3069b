"""Direct preference optimisation, by hand."""

import math

import pytest
import torch

from steersman.objectives.dpo import direct_preference
from steersman.objectives.logprobs import sequence_sums

LOG3 = math.log(3)


def loss_of(logprobs, sizes, reference, *, better=(1.0,), margin=(0.0,), beta=1.0):
    given = [torch.tensor(numbers) for numbers in (reference, better, margin)]
    return direct_preference(logprobs, sizes, *given, beta)


def test_sums_of_sequences():
    sums = sequence_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), [3, 0, 1])
    assert sums.tolist() == [7, 0, 8]
    assert sequence_sums(torch.zeros(0), []).shape == (0,)


def test_two_pairs_by_hand():
    """Against the reference, a first pair's odds have trebled; a second's have fallen to a third."""
    logprobs = torch.tensor([-1.0, -2.0, -3 - LOG3, -5.0, -1.0, -3.0 + LOG3], requires_grad=True)
    reference = [[-3.0, -3.0], [-5.0, -4.0]]
    loss = loss_of(logprobs, [2, 1, 1, 2], reference, better=[1.0, 1.0], margin=[0.0, 0.0])
    assert loss.sum.item() == pytest.approx(math.log(4 / 3) + math.log(4))  # 3 to 1 for it, and 1 to 3
    assert loss.num == 2
    assert {name: value.item() for name, value in loss.metrics.items()} == pytest.approx(
        {"accuracy": 1, "reward_chosen": 0, "reward_rejected": 0}, abs=1e-6
    )
    loss.sum.backward()  # each token of an answer by how much the pair is misjudged
    assert logprobs.grad.tolist() == pytest.approx([-1 / 4, -1 / 4, 1 / 4, -3 / 4, 3 / 4, 3 / 4])


def test_beta_is_what_a_nat_counts():
    logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)
    loss = loss_of(logprobs, [1, 1], [[-1 - 2 * LOG3, -3.0]], beta=0.5)
    assert loss.sum.item() == pytest.approx(math.log(4 / 3))
    assert loss.metrics["reward_chosen"].item() == pytest.approx(LOG3)
    loss.sum.backward()
    assert logprobs.grad.tolist() == pytest.approx([-1 / 8, 1 / 8])


def test_a_policy_that_has_not_moved_pays_log_2_whatever_the_label():
    logprobs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    for better, slope in ((1.0, 0.05), (0.5, 0.0), (0.2, -0.03)):
        loss = loss_of(logprobs, [2, 1], [[-3.0, -4.0]], better=[better], beta=0.1)
        assert loss.sum.item() == pytest.approx(math.log(2))
        (gradient,) = torch.autograd.grad(loss.sum, logprobs)  # beta (s - 1/2)
        assert gradient.tolist() == pytest.approx([-slope, -slope, slope])


def test_a_soft_label_is_met_and_not_exceeded():
    """A judge who says 3 to 1 is content at a reward difference of log 3, or of log 9 with a margin of log 3."""
    for margin in (0.0, LOG3):
        logprobs = torch.tensor([LOG3 + margin, 0.0], requires_grad=True)
        loss = loss_of(logprobs, [1, 1], [[0.0, 0.0]], better=[0.75], margin=[margin])
        assert loss.sum.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
        loss.sum.backward()
        assert logprobs.grad.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_nothing_costs_nothing():
    nothing = torch.zeros(0)
    loss = direct_preference(nothing.clone().requires_grad_(), [], torch.zeros(0, 2), nothing, nothing, 0.1)
    assert (loss.sum.item(), loss.num) == (0, 0)
    loss.sum.backward()
