"""Proximal policy optimisation of answers (arXiv 1707.06347, 2203.02155): everything between the models' numbers and
the two losses.

A response of tokens P .. L-1 after a prompt of P tokens is an episode. Its actions are its tokens; index t of a [B, T]
tensor is the state before token t + 1, so the actions lie at t = P-1 .. L-2, where `mask_BT` is True. The last one (the
end of turn, when there is one) ends the episode, and the value of what follows is 0.

    k_t = log pi(t) - log pi_ref(t)                  kl_t = k (k1), |k| (abs), k^2 / 2 (k2), e^-k - 1 + k (k3)
    r_t = R [t = L-2] - beta kl_t                    delta_t = r_t + gamma V_t+1 - V_t
    A_t = delta_t + gamma lambda A_t+1               return_t = A_t + V_t           (arXiv 1506.02438)

    policy: max(-A rho, -A clip(rho, 1 - eps, 1 + eps)) - c H,  rho = exp(log pi - log pi_old)
    value:  max((V - return)^2, (V_old + clip(V - V_old, -eps, eps) - return)^2) / 2

All are pure functions. Losses and `Moments` are sums, which add up over micro-batches and processes; nothing is divided
here but by numbers that were summed before.

Shapes: B responses, S tokens of the longest with its prompt, T = S - 1 states, M actions side by side.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from steersman.objectives import Loss

KLEstimator = Literal["k1", "abs", "k2", "k3"]


def response_mask(prompt_lengths_B: Tensor, lengths_B: Tensor) -> Tensor:
    """bool[B, T], True at the actions: from the state before the response's first token to that before its last."""
    states_T = torch.arange(int(lengths_B.max()) - 1, device=lengths_B.device)
    return (states_T >= prompt_lengths_B[:, None] - 1) & (states_T < lengths_B[:, None] - 1)


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: KLEstimator) -> Tensor:
    """Each token's estimate of KL(pi || reference), from a sample of pi; natural log-probabilities of any one shape.

    "k1" is unbiased and can be negative, "abs" is its size (NeMo's), "k2" and "k3" are positive and vary less
    (http://joschu.net/blog/kl-approx.html). As a penalty in the reward "k1" alone pulls the way it should: of the
    gradient of E[f(k)] a policy gradient leaves out E[f'(k) grad log pi], which is 0 where f' is constant.
    """
    difference = logprobs - reference
    match estimator:
        case "k1":
            return difference
        case "abs":
            return difference.abs()
        case "k2":
            return difference.square() / 2
        case "k3":
            return torch.expm1(-difference) + difference


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, penalty: float) -> Tensor:
    """[B, T]: minus `penalty` times the divergence at every action, and the response's score at its last one."""
    rewards_BT = -penalty * kl_BT * mask_BT
    last_B1 = mask_BT.shape[1] - 1 - mask_BT.int().flip(1).argmax(1, keepdim=True)
    return rewards_BT.scatter_add(1, last_B1, scores_B[:, None].to(rewards_BT.dtype))


def advantages_and_returns(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the critic is to predict; both [B, T], 0 off the mask."""
    rewards_BT, values_BT = rewards_BT * mask_BT, values_BT * mask_BT
    advantages_BT = torch.zeros_like(values_BT)
    advantage_B = next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * advantage_B
        advantages_BT[:, t], next_value_B = advantage_B, values_BT[:, t]
    advantages_BT *= mask_BT
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


class Moments(NamedTuple):
    """Sums over some numbers, in double precision; those of parts add up to those of the whole.

    Attributes:
        num: how many.
        sum, sum_squares: of them and of their squares.
    """

    num: float
    sum: float
    sum_squares: float

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        wide = values.double()
        return cls(values.numel(), float(wide.sum()), float(wide.square().sum()))

    @property
    def mean(self) -> float:
        return self.sum / self.num

    @property
    def variance(self) -> float:
        """Biased: the mean squared distance from the mean."""
        return max(0.0, self.sum_squares / self.num - self.mean**2)

    @property
    def std(self) -> float:
        return math.sqrt(self.variance)


def whiten(values_BT: Tensor, mask_BT: Tensor, moments: Moments) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-8) at the mask, 0 off it; the moments are those of the whole rollout."""
    return (values_BT - moments.mean) / math.sqrt(moments.variance + 1e-8) * mask_BT


def policy_loss(
    logprobs_M: Tensor, old_logprobs_M: Tensor, advantages_M: Tensor, entropy_M: Tensor, *, clip: float, entropy: float
) -> Loss:
    """The clipped surrogate, minus `entropy` times the entropy.

    Metrics: "ratio" and "entropy"; "clip_fraction", the actions whose gradient the clip takes away; "kl_old", the k3
    estimate of KL(pi_old || pi).
    """
    log_ratio_M = logprobs_M - old_logprobs_M
    ratio_M = log_ratio_M.exp()
    plain_M, clipped_M = -advantages_M * ratio_M, -advantages_M * ratio_M.clamp(1 - clip, 1 + clip)
    loss_M = torch.maximum(plain_M, clipped_M) - entropy * entropy_M
    metrics = {
        "ratio": ratio_M,
        "clip_fraction": clipped_M > plain_M,
        "kl_old": ratio_M - 1 - log_ratio_M,
        "entropy": entropy_M,
    }
    return _summed(loss_M, metrics)


def value_loss(values_M: Tensor, old_values_M: Tensor, returns_M: Tensor, *, clip: float) -> Loss:
    """Half the squared error, the worse of the value's and of the value clipped to within `clip` of the old one.

    Metrics: "clip_fraction", the states whose gradient the clip takes away.
    """
    clipped_M = old_values_M + (values_M - old_values_M).clamp(-clip, clip)
    plain_M, clipped_M = (values_M - returns_M).square(), (clipped_M - returns_M).square()
    return _summed(torch.maximum(plain_M, clipped_M) / 2, {"clip_fraction": clipped_M > plain_M})


def explained_variance(returns: Moments, errors: Moments) -> float:
    """1 - Var(return - V) / Var(return): 1 for a perfect critic, 0 for one that says a constant; 0 without variance."""
    return 1 - errors.variance / returns.variance if returns.variance > 0 else 0.0


def _summed(loss_M: Tensor, metrics: dict[str, Tensor]) -> Loss:
    return Loss(loss_M.sum(), len(loss_M), {name: value.detach().sum() for name, value in metrics.items()})
