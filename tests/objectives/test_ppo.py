"""PPO's arithmetic against numbers worked out by hand."""

import math

import pytest
import torch

from steersman.objectives.ppo import (
    Moments,
    advantages_and_returns,
    explained_variance,
    kl_estimate,
    policy_loss,
    response_mask,
    token_rewards,
    value_loss,
    whiten,
)


def floats(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_the_mask_runs_from_the_state_before_the_response_to_that_before_its_last_token():
    # Prompt of 3 and response of 2; prompt of 1 and response of 4; prompt of 2 and response of 1.
    mask = response_mask(torch.tensor([3, 1, 2]), torch.tensor([5, 5, 3]))
    assert mask.tolist() == [
        [False, False, True, True],
        [True, True, True, True],
        [False, True, False, False],
    ]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("k1", [math.log(2), -math.log(4)]),
        ("abs", [math.log(2), math.log(4)]),
        ("k2", [math.log(2) ** 2 / 2, math.log(4) ** 2 / 2]),
        ("k3", [0.5 - 1 + math.log(2), 4 - 1 - math.log(4)]),
    ],
)
def test_kl_estimators(estimator, expected):
    """pi = 1/2 where the reference has 1/4, and 1/8 where it has 1/2."""
    found = kl_estimate(floats(0.5, 0.125).log(), floats(0.25, 0.5).log(), estimator)
    torch.testing.assert_close(found, floats(*expected))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    p, q = floats(0.5, 0.3, 0.2), floats(0.2, 0.2, 0.6)
    mean = (p * kl_estimate(p.log(), q.log(), estimator)).sum()
    torch.testing.assert_close(mean, (p * (p / q).log()).sum())


@pytest.mark.parametrize(("estimator", "is_exact"), [("k1", True), ("abs", False), ("k2", False), ("k3", False)])
def test_as_a_penalty_k1_alone_has_the_gradient_of_the_divergence(estimator, is_exact):
    logits, q = floats(1.0, 0.5, -0.4).requires_grad_(), floats(0.2, 0.2, 0.6)
    log_p = logits.log_softmax(0)
    (of_divergence,) = torch.autograd.grad((log_p.exp() * (log_p - q.log())).sum(), logits, retain_graph=True)
    penalties = kl_estimate(log_p, q.log(), estimator).detach()  # a reward has no gradient
    (of_policy,) = torch.autograd.grad((log_p.exp().detach() * penalties * log_p).sum(), logits)
    assert torch.allclose(of_policy, of_divergence) == is_exact


def test_the_score_lies_on_the_last_action_and_the_divergence_on_every_one():
    mask = response_mask(torch.tensor([2, 1]), torch.tensor([5, 3]))
    kl = floats([9, 1, 2, 3], [4, 5, 9, 9])  # 9: not an action
    rewards = token_rewards(floats(10, 20), kl, mask, 0.1)
    torch.testing.assert_close(rewards, floats([0, -0.1, -0.2, 10 - 0.3], [-0.4, 20 - 0.5, 0, 0]))


def test_advantages_and_returns_by_hand():
    """gamma = lambda = 1/2, three actions after a prompt of two; values at other states must not matter.

    delta_3 = 8 - 4 = 4 (what follows is worth 0), delta_2 = 0 + 4/2 - 2 = 0, delta_1 = 0 + 2/2 - 6 = -5;
    A_3 = 4, A_2 = 0 + 4/4 = 1, A_1 = -5 + 1/4.
    """
    mask = response_mask(torch.tensor([2]), torch.tensor([5]))
    padded = torch.cat([mask, torch.zeros(1, 2, dtype=torch.bool)], 1)
    values, rewards = floats([7, 6, 2, 4, 99, 99]), floats([5, 0, 0, 8, 99, 99])
    advantages, returns = advantages_and_returns(rewards, values, padded, 0.5, 0.5)
    torch.testing.assert_close(advantages, floats([0, -4.75, 1, 4, 0, 0]))
    torch.testing.assert_close(returns, floats([0, 1.25, 3, 8, 0, 0]))


def test_without_discount_and_decay_the_return_is_the_sum_of_what_follows():
    mask = response_mask(torch.tensor([1]), torch.tensor([4]))
    _, returns = advantages_and_returns(floats([1, 2, 3]), floats([0.3, -4, 2]), mask, 1.0, 1.0)
    torch.testing.assert_close(returns, floats([6, 5, 3]))
    advantages, _ = advantages_and_returns(floats([1, 2, 3]), floats([10, 20, 30]), mask, 1.0, 0.0)
    torch.testing.assert_close(advantages, floats([1 + 20 - 10, 2 + 30 - 20, 3 - 30]))


def test_whitening_is_over_the_mask_alone_and_moments_add_up():
    """1, 3, 5, 7: mean 4, biased variance 5."""
    values, mask = floats([1, 3, 100], [5, 7, -100]), torch.tensor([[True, True, False]] * 2)
    parts = [Moments.of(row[row_mask]) for row, row_mask in zip(values, mask, strict=True)]
    whole = Moments(*map(sum, zip(*parts, strict=True)))
    assert whole == Moments.of(values[mask])
    assert (whole.mean, whole.variance) == (4, 5)
    root = math.sqrt(5 + 1e-8)
    torch.testing.assert_close(whiten(values, mask, whole), floats([-3, -1, 0], [1, 3, 0]) / root)


def test_equal_advantages_are_whitened_to_nothing():
    values, mask = floats([2, 2]), torch.ones(1, 2, dtype=torch.bool)
    assert whiten(values, mask, Moments.of(values)).tolist() == [[0, 0]]


def test_policy_loss_by_hand():
    """Ratios 1, 3/2, 3/2, 1/2, 1/2 with clip 1/5. The clip acts where it makes the loss larger: on a ratio that has
    risen under a positive advantage, and on one that has fallen under a negative one."""
    ratio = floats(1, 1.5, 1.5, 0.5, 0.5)
    old = floats(0.1, 0.2, 0.2, 0.4, 0.4).log()
    new = (old + ratio.log()).requires_grad_()
    advantages, entropy = floats(2, 1, -1, 1, -1), floats(1, 0, 2, 0, 1)
    loss = policy_loss(new, old, advantages, entropy, clip=0.2, entropy=0.5)
    assert loss.num == 5
    assert loss.sum.item() == pytest.approx(-2 - 1.2 + 1.5 - 0.5 + 0.8 - 0.5 * 4)
    assert loss.metrics["clip_fraction"] == 2
    assert loss.metrics["ratio"].item() == pytest.approx(5.0)
    assert loss.metrics["entropy"] == 4
    kl = 2 * (0.5 - math.log(1.5)) + 2 * (-0.5 - math.log(0.5))
    assert loss.metrics["kl_old"].item() == pytest.approx(kl)
    (gradient,) = torch.autograd.grad(loss.sum, new)
    torch.testing.assert_close(gradient, floats(-2, 0, 1.5, -0.5, 0))


def test_the_entropy_bonus_has_a_gradient():
    entropy = floats(1, 2).requires_grad_()
    loss = policy_loss(floats(0, 0), floats(0, 0), floats(1, 1), entropy, clip=0.2, entropy=0.5)
    assert torch.autograd.grad(loss.sum, entropy)[0].tolist() == [-0.5, -0.5]


def test_value_loss_by_hand():
    """Old value 0, clip 1/5. V = 1/10: not clipped. V = 1 under return 2: clipped to 1/5, which is further off, so no
    gradient. V = 1 under return -1: clipped to 1/5, but the value itself is further off."""
    values = floats(0.1, 1, 1).requires_grad_()
    loss = value_loss(values, floats(0, 0, 0), floats(1, 2, -1), clip=0.2)
    assert loss.num == 3
    assert loss.sum.item() == pytest.approx((0.9**2 + 1.8**2 + 2**2) / 2)
    assert loss.metrics["clip_fraction"] == 1
    torch.testing.assert_close(torch.autograd.grad(loss.sum, values)[0], floats(-0.9, 0, 2))


def test_explained_variance():
    """Returns 0, 2, 4 have variance 8/3; errors -1, 0, 1 have 2/3."""
    returns, values = floats(0, 2, 4), floats(1, 2, 3)
    errors = Moments.of(returns - values)
    assert explained_variance(Moments.of(returns), errors) == pytest.approx(0.75)
    assert explained_variance(Moments.of(returns), Moments.of(returns - 7)) == pytest.approx(0)
    assert explained_variance(Moments.of(floats(1, 1)), errors) == 0
