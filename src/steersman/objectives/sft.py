"""Supervised fine-tuning: the cross-entropy of the trained tokens, L = -sum_m log p(token m).

Shapes: M trained tokens.
"""

from steersman.objectives import Loss
from steersman.objectives.logprobs import TokenScores


def cross_entropy(scores: TokenScores) -> Loss:
    """The loss in nats, with metric "accuracy": how many tokens were the likeliest (a tie counts)."""
    accuracy = scores.likeliest_M.sum()
    return Loss(sum=-scores.logprobs_M.sum(), num=len(scores.logprobs_M), metrics={"accuracy": accuracy})
