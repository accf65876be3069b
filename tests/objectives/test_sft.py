"""Cross-entropy by hand, and against plain cross-entropy through the whole head."""

import math

import pytest
import torch
import torch.nn.functional as F

from steersman.objectives.logprobs import token_scores
from steersman.objectives.sft import cross_entropy


def test_hand_worked():
    # Logits are ln 1, ln 3 for the first token and ln 1, ln 1 for the second: p = 3/4 and 1/2.
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    loss = cross_entropy(token_scores(hidden, weight, torch.tensor([1, 0])))
    assert loss.sum.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert loss.num == 2
    assert loss.metrics["accuracy"] == 2  # a tie counts as right
    loss.sum.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.25, -0.5], [-0.25, 0.5]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.25, 0.0], [0.5, 0.0]]) * math.log(3))


def test_accuracy_counts_right_predictions():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 5, generator=generator) for size in (50, 11))
    targets = (hidden @ weight.T).argmax(-1)
    targets[:20] = (targets[:20] + 1) % 11
    loss = cross_entropy(token_scores(hidden, weight, targets))
    assert loss.metrics["accuracy"] == 30
    torch.testing.assert_close(loss.sum, F.cross_entropy(hidden @ weight.T, targets, reduction="sum"))


def test_no_trained_token_is_a_loss_of_zero():
    hidden, weight = torch.randn(0, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    loss = cross_entropy(token_scores(hidden, weight, torch.tensor([], dtype=torch.int64)))
    loss.sum.backward()
    assert (loss.sum.item(), loss.num) == (0.0, 0)
