"""Cross-entropy over attribute scales, by hand."""

import math

import pytest
import torch

from steersman.objectives.values import value_cross_entropy

NAN = math.nan


def test_hand_worked():
    # Two attributes of 2 and 3 values. First answer: p = (1/4, 3/4) at value 1, and uniform thirds at value 0.
    # Second answer: nobody gave the first attribute, and p = (1/2, 1/4, 1/4) at value 0.
    logits = torch.tensor([[0.0, math.log(3), 5.0, 5.0, 5.0], [9.0, -9.0, math.log(2), 0.0, 0.0]], requires_grad=True)
    loss = value_cross_entropy(logits, torch.tensor([[1.0, 0.0], [NAN, 0.0]]), [2, 3])
    assert loss.sum.item() == pytest.approx(math.log(4 / 3) + math.log(3) + math.log(2))
    assert loss.num == 3
    assert loss.metrics["accuracy"].item() == 3  # in a tie the first of the likeliest counts

    loss.sum.backward()  # softmax - onehot, and nothing for the value that is not known
    third = 1 / 3
    expected = [[0.25, -0.25, third - 1, third, third], [0, 0, -0.5, 0.25, 0.25]]
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_no_answers_cost_nothing():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = value_cross_entropy(logits, torch.zeros(0, 2), [2, 3])
    assert (loss.sum.item(), loss.num) == (0, 0)
    loss.sum.backward()
