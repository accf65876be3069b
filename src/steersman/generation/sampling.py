"""Logits -> the next token of each row, by the row's own rules and random stream alone.

In this order, with x the logits of one row:

    penalty      x_i <- x_i / r for x_i > 0, x_i * r otherwise, for every token i already in prompt or answer
    temperature  x <- x / t
    top-k        keep x_i >= the k-th largest
    top-p        keep x_i >= the smallest logit of the nucleus: the likeliest tokens whose probability, renormalised
                 after top-k, reaches p (ties with the smallest are kept)
    draw         first a block of tokens, argmax_b log(sum of exp x_i over those kept in b) + g_b, then one of it,
                 argmax_i x_i + g_i, with g = -log(-log u)   (the Gumbel-max trick, twice: a softmax sample)

Every truncation is a threshold on the logits, so nothing is sorted but the few largest, and all but a block needs no
noise. u is a hash of (the request's seed, how many tokens it has, i or b): a draw depends on neither neighbours nor the
order of anything, and rounding of the logits can only change it when two perturbed numbers nearly tie.

Shapes: R rows, V vocabulary, B blocks of it, N tokens of a block.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steersman.errors import NonFiniteError
from steersman.randomness import derive_seed
from steersman.seams import Sampling

NUCLEUS_GUESS = 512
"""Largest logits looked at for top-p; a wider nucleus sorts its row."""
COLDEST = 1e-5
"""A lower temperature counts as this one: the likeliest token all the same, and no division that overflows."""
BLOCK = 512
"""Neighbours in the vocabulary, of which a row seeks the largest, or draws one, together."""
UNIFORM_BITS = 32


@dataclass(frozen=True)
class Draw:
    """What decides one row's token.

    Attributes:
        sampling: the request's rules.
        seed: the request's random stream.
        step: how many tokens its answer has so far.
    """

    sampling: Sampling
    seed: int
    step: int


def penalise(logits_V: Tensor, seen_ids: Tensor, penalty: float) -> None:
    """Apply the repetition penalty to one row, in place."""
    seen = logits_V[seen_ids]
    logits_V[seen_ids] = torch.where(seen > 0, seen / penalty, seen * penalty)


def check_finite(numbers: Tensor) -> None:
    """Raise `NonFiniteError` where a model computes NaN or infinite logits."""
    if not bool(numbers.isfinite().all()):
        raise NonFiniteError("the model's logits are not finite; are its weights damaged, or its precision too low?")


def largest(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its first place. `max` would be several times slower: it follows places through
    the whole row, where only the block with the largest one matters."""
    largest_RB = torch.cat([block_RBN.amax(-1) for block_RBN in _blocks(logits_RV)], dim=1)
    top_R1 = largest_RB.amax(-1, keepdim=True)
    in_block_RN, place_RN = _of_block(logits_RV, (largest_RB == top_R1).int().argmax(-1))
    return top_R1[:, 0], place_RN.gather(1, (in_block_RN == top_R1).int().argmax(-1, keepdim=True))[:, 0]


def _blocks(logits_RV: Tensor) -> list[Tensor]:
    """The whole blocks as [R, B, N], and what is left of the vocabulary as a last one."""
    (R, V), whole = logits_RV.shape, logits_RV.shape[1] // BLOCK * BLOCK
    left = [logits_RV[:, None, whole:]] if whole < V else []
    return [logits_RV[:, :whole].reshape(R, whole // BLOCK, BLOCK), *left]


def _of_block(logits_RV: Tensor, block_R: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of one block of each row, -inf beyond the vocabulary, and their tokens: both [R, N]."""
    vocabulary = logits_RV.shape[1]
    token_RN = block_R[:, None] * BLOCK + torch.arange(BLOCK, device=block_R.device)
    logits_RN = logits_RV.gather(1, token_RN.clamp(max=vocabulary - 1))
    return logits_RN.masked_fill_(token_RN >= vocabulary, -math.inf), token_RN


def choose(logits_RV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The next token of each row: i64[R]. Logits are f32 (for greedy rows alone the model's own precision will do),
    penalties applied, forbidden tokens at -inf.

    Raises:
        NonFiniteError: a row holds NaN or +inf.
    """
    top_R, token_R = largest(logits_RV)
    check_finite(top_R)
    drawn = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    if len(drawn) == len(draws):
        return _draw(logits_RV, top_R, draws)
    if drawn:
        token_R[drawn] = _draw(logits_RV[drawn], top_R[drawn], [draws[row] for row in drawn])
    return token_R


def _draw(logits_RV: Tensor, top_R: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The next token of each row, whose largest logit is given."""
    device = logits_RV.device
    temperature_R = torch.tensor([max(draw.sampling.temperature, COLDEST) for draw in draws], device=device)
    key_R = torch.tensor([derive_seed(draw.seed, draw.step) for draw in draws], device=device)
    scaled_RV = logits_RV if bool((temperature_R == 1).all()) else logits_RV / temperature_R[:, None]
    threshold_R1 = _truncate(scaled_RV, [draw.sampling for draw in draws])[:, None]
    if threshold_R1.isfinite().any():
        scaled_RV = scaled_RV.masked_fill(scaled_RV < threshold_R1, -math.inf)
    weight_RV = (scaled_RV - (top_R / temperature_R)[:, None]).exp_()
    weight_RB = torch.cat([block_RBN.sum(-1) for block_RBN in _blocks(weight_RV)], dim=1)
    vocabulary, num_blocks = logits_RV.shape[1], weight_RB.shape[1]
    number_B = vocabulary + torch.arange(num_blocks, device=device)  # noise that no token has
    block_R = (weight_RB.log() + gumbel(key_R[:, None], number_B)).argmax(-1)
    in_block_RN, token_RN = _of_block(scaled_RV, block_R)
    return token_RN.gather(1, (in_block_RN + gumbel(key_R[:, None], token_RN)).argmax(-1, keepdim=True))[:, 0]


def _truncate(scaled_RV: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """The smallest logit that top-k and top-p keep in each row: f32[R], -inf where they keep all."""
    vocabulary = scaled_RV.shape[1]
    threshold_R = scaled_RV.new_full((len(samplings),), -math.inf)
    rows = [row for row, sampling in enumerate(samplings) if sampling.top_k or sampling.top_p < 1.0]
    width = min(vocabulary, max((samplings[row].top_k or NUCLEUS_GUESS for row in rows), default=0))
    while rows:
        found, reached = _nucleus(scaled_RV[rows], [samplings[row] for row in rows], width)
        threshold_R[rows] = found
        rows = [row for row, reached_row in zip(rows, reached.tolist(), strict=True) if not reached_row]
        width = vocabulary
    return threshold_R


def _nucleus(scaled_RV: Tensor, samplings: Sequence[Sampling], width: int) -> tuple[Tensor, Tensor]:
    """Each row's threshold within its `width` largest logits (K), and whether they were enough to find it."""
    vocabulary, device = scaled_RV.shape[1], scaled_RV.device
    kept_R = torch.tensor([min(sampling.top_k or vocabulary, vocabulary) for sampling in samplings], device=device)
    # The whole distribution has p = 1, but rounded sums reach 1 too early.
    top_p_R = [sampling.top_p if sampling.top_p < 1.0 else math.inf for sampling in samplings]
    largest_RK = scaled_RV.topk(width).values
    outside_RK = torch.arange(width, device=device) >= kept_R[:, None]
    within_R = largest_RK.masked_fill(outside_RK, -math.inf).logsumexp(-1)
    total_R = torch.where(kept_R <= width, within_R, scaled_RV.logsumexp(-1))
    cumulative_RK = (largest_RK - total_R[:, None]).exp().cumsum(-1)
    short_RK = (cumulative_RK < torch.tensor(top_p_R, device=device)[:, None]) & ~outside_RK
    size_R = short_RK.sum(-1) + 1  # the token that reaches top_p belongs to the nucleus
    limit_R = kept_R.clamp(max=width)
    threshold_R = largest_RK.gather(-1, torch.minimum(size_R, limit_R)[:, None] - 1)[:, 0]
    return threshold_R, (size_R <= limit_R) | (kept_R <= width)


def gumbel(key: Tensor, token: Tensor) -> Tensor:
    """Standard Gumbel noise, f64, a pure function of a 63-bit key and a token id (splitmix64 of key + id * golden)."""
    bits = key + (token + 1) * -0x61C8864680B583EB
    bits = (bits ^ _shift_right(bits, 30)) * -0x40A7B892E31B1A47
    bits = (bits ^ _shift_right(bits, 27)) * -0x6B2FB644ECCEEE15
    bits = _shift_right(bits ^ _shift_right(bits, 31), 64 - UNIFORM_BITS)
    uniform = (bits.double() + 0.5) / 2.0**UNIFORM_BITS
    return -(-uniform.log()).log()


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift of 64-bit words (torch's own keeps the sign)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
