"""Training objectives: pure functions from tensors to a local `Loss`. Only the training loop reduces and divides."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """What an objective says of one micro-batch, as sums that add up over micro-batches and ranks.

    Attributes:
        sum: the loss summed over the `num` trained items, a scalar with a gradient.
        num: how many items (tokens, pairs) were summed.
        metrics: further sums over the same items, without gradients: name -> scalar.
    """

    sum: Tensor
    num: int
    metrics: dict[str, Tensor]
