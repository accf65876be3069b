"""Label contrast: an answer is to be told from its label, not only written under it.

In: the log-probabilities of answers, each once under a label of another record and once under its own. Out: the
supervised loss of the second plus how badly the label could be guessed from the answer. With a the own label, b the
other one, x the answer, and both labels as likely beforehand, Bayes' rule gives

    D = log p(x | a) - log p(x | b)        P(a | x) = sigma(D)
    L = sum over answers: - log p(x | a) - w log sigma(D)

the generative-discriminative hybrid of GeDi (arXiv 2009.06367), with sums where that has means over tokens. What the
answer's words owe to the question alone cancels in D, so a model learns to read its labels from fewer answers than the
first term by itself needs.

Shapes: M trained tokens, P answers.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from steersman.objectives import Loss
from steersman.objectives.logprobs import sequence_sums


def label_contrast(logprobs_M: Tensor, sizes: Sequence[int], weight: float) -> Loss:
    """The loss of answers under two labels.

    Args:
        logprobs_M: of all trained tokens: an answer under another's label, the same under its own, the next answer.
        sizes: number of trained tokens of each of these 2 P, which two and two are the same.
        weight: w, in trained tokens: how many of them a label counts for.

    Returns:
        The sum in nats, the number of trained tokens under their own labels, and metrics "nll", -log p(x | a), and
        "gain", D: how much the own label helps, as the conditioning gain has it.
    """
    other_P, own_P = sequence_sums(logprobs_M, sizes).view(-1, 2).unbind(1)
    difference_P = own_P - other_P
    loss = -own_P.sum() - weight * F.logsigmoid(difference_P).sum()
    metrics = {"nll": -own_P.detach().sum(), "gain": difference_P.detach().sum()}
    return Loss(sum=loss, num=sum(sizes[1::2]), metrics=metrics)
