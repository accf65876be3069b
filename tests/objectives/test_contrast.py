"""Answers under their own label and another's, by hand."""

import math

import pytest
import torch

from steersman.objectives.contrast import label_contrast


def test_answers_under_two_labels_by_hand():
    """Under its own label the first answer is 3 times as likely as under the other's, the second a third as likely."""
    log = math.log
    logprobs = torch.tensor([log(1 / 6), log(1 / 2), log(1 / 4), log(1), log(3 / 4), log(1 / 4)], requires_grad=True)
    loss = label_contrast(logprobs, sizes=[2, 2, 1, 1], weight=10.0)
    nll = log(4) + log(4)
    assert loss.sum.item() == pytest.approx(nll - 10 * (log(3 / 4) + log(1 / 4)))
    assert loss.num == 3
    assert loss.metrics["nll"].item() == pytest.approx(nll)
    assert loss.metrics["gain"].item() == pytest.approx(log(3) - log(3), abs=1e-6)
    loss.sum.backward()  # 10 (1 - P) for each token under the other's label; the opposite and -1 under its own
    assert logprobs.grad.tolist() == pytest.approx([2.5, 2.5, -3.5, -3.5, 7.5, -8.5])


def test_weight_0_is_supervised_fine_tuning():
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    loss = label_contrast(logprobs, sizes=[2, 2], weight=0.0)
    assert loss.sum.item() == 12
    loss.sum.backward()
    assert logprobs.grad.tolist() == [0, 0, -1, -1]


def test_a_label_that_says_nothing_costs_log_2():
    loss = label_contrast(torch.tensor([-1.0, -2.0, -1.0, -2.0]), sizes=[2, 2], weight=1.0)
    assert loss.sum.item() == pytest.approx(3 + math.log(2))


def test_nothing_costs_nothing():
    loss = label_contrast(torch.zeros(0, requires_grad=True), sizes=[], weight=1.0)
    assert (loss.sum.item(), loss.num) == (0, 0)
    loss.sum.backward()
