"""Direct preference optimisation (arXiv 2305.18290): a policy learns from pairs of answers, without a reward model.

In: the log-probabilities of both answers of each pair under the policy, and under the reference that it started as.
Out: sums over pairs. The policy that is best for a reward at a price of beta a nat of divergence from the reference
(eq. 4) says itself what that reward is, up to a number that the answers to one prompt share (eq. 5):

    r(x, y) = beta [log p(y | x) - log p_ref(y | x)]

so that the loss of a reward model, Bradley and Terry's, on these r trains the policy (eq. 7). As there, the label may
be soft, the probability s that the chosen answer is better (conservative DPO):

    L = sum over pairs: - s log sigma(r_c - r_r) - (1 - s) log sigma(r_r - r_c)

which is least where p(y_c) / p(y_r) is the reference's times (s / (1 - s))^(1 / beta): a judge that is not sure moves
the policy so far and no further.

Shapes: M trained tokens, P pairs.
"""

from collections.abc import Sequence

from torch import Tensor

from steersman.objectives import Loss
from steersman.objectives.logprobs import sequence_sums
from steersman.objectives.reward import bradley_terry


def direct_preference(
    logprobs_M: Tensor, sizes: Sequence[int], reference_P2: Tensor, better_P: Tensor, margin_P: Tensor, beta: float
) -> Loss:
    """The cross-entropy of which answer of each pair is better, by the rewards that the policy implies.

    Args:
        logprobs_M: of all trained tokens: a pair's chosen answer, its rejected one, the next pair.
        sizes: number of trained tokens of each of these 2 P.
        reference_P2: the answers' log-probabilities under the reference.
        better_P, margin_P: see `reward.bradley_terry`.
        beta: what a nat of divergence from the reference costs.

    Returns:
        As `reward.bradley_terry`: the sum in nats, the number of pairs, and metrics "accuracy", "reward_chosen" and
        "reward_rejected", of the r above: nats times beta.
    """
    rewards_P2 = beta * (sequence_sums(logprobs_M, sizes).view(-1, 2) - reference_P2)
    return bradley_terry(rewards_P2, better_P, margin_P)
