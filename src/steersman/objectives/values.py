"""Attribute values read off one hidden state: cross-entropy over each attribute's scale.

In: for each judged answer, the logits of all attributes' values side by side, and the values that people gave. Out: the
sum over all given values. With z_a the logits of attribute a and y_a its value, counted from the scale's lowest:

    L = sum over answers, attributes with a value: log sum_v exp z_a,v - z_a,y_a

Expected values sum_v v softmax(z_a)_v are the predictions; unlike a regressed number, a distribution has a median too.

Shapes: M answers, A attributes, K = sum of the scales' sizes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from steersman.objectives import Loss


def value_cross_entropy(logits_MK: Tensor, values_MA: Tensor, sizes: Sequence[int]) -> Loss:
    """The cross-entropy of each attribute's value, summed over those that are given.

    Args:
        logits_MK: of the values of each attribute, one block after another.
        values_MA: floating point; counted from 0, NaN where nobody gave one.
        sizes: number of values of each attribute's scale; they add up to K.

    Returns:
        The sum in nats, the number of given values, and metric "accuracy": how many of them are the likeliest.
    """
    given_MA = ~values_MA.isnan()
    index_MA = torch.where(given_MA, values_MA, 0.0).long()
    loss = logits_MK.new_zeros(())
    num_correct = torch.zeros((), device=logits_MK.device)
    for attribute, logits_MV in enumerate(torch.split(logits_MK, list(sizes), dim=1)):
        given_M, index_M = given_MA[:, attribute], index_MA[:, attribute]
        losses_M = F.cross_entropy(logits_MV, index_M, reduction="none")
        loss = loss + (losses_M * given_M).sum()
        num_correct += ((logits_MV.argmax(1) == index_M) & given_M).sum()
    return Loss(sum=loss, num=int(given_MA.sum()), metrics={"accuracy": num_correct})
