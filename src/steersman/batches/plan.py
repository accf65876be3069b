"""Which families of sequences a training step has: a pure function of (seed, step), whatever the number of processes.

In: how long each data set's families are, its weight, a `BatchConfig`. Out: for each step, the (data set, family) pairs
it trains on. Steps are counted by going through lengths alone, so a resumed run needs nothing but its number.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from steersman import randomness
from steersman.batches.sequences import Ints
from steersman.config import Config


class BatchConfig(Config):
    """How much one optimiser step takes; exactly one of `sequences`, `pairs` and `tokens`.

    Attributes:
        sequences: whole sequences a step (NeMo's global_batch_size).
        pairs: pairs of answers a step, where they are compared (NeMo's global_batch_size).
        tokens: input tokens a step: as many whole sequences as fit, at least one. Neighbours in a file that begin
            alike (branches of a tree) come together, and what they share is computed once.
        micro_tokens: most input tokens of one forward pass; a longer sequence goes alone.
    """

    sequences: int | None = Field(default=None, ge=1)
    pairs: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    micro_tokens: int = Field(default=2048, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "BatchConfig":
        if [self.sequences, self.pairs, self.tokens].count(None) != 2:
            raise ValueError("give exactly one of sequences, pairs and tokens")
        return self

    @property
    def families(self) -> int | None:
        """Families a step, where they are what is counted: single sequences, or pairs."""
        return self.sequences or self.pairs

    @property
    def max_family(self) -> int:
        """Most inputs of sequences that come together: at most half a step, and none where they are counted."""
        return 0 if self.tokens is None else min(self.tokens // 2, self.micro_tokens)

    def several_micro_batches(self, seq_len: int) -> bool:
        """Whether a step of sequences of at most `seq_len` inputs may need more than one forward pass."""
        num_sequences = self.sequences or 2 * (self.pairs or 0)
        return (self.tokens or num_sequences * seq_len) > self.micro_tokens


class Draw(NamedTuple):
    """One family of the plan: its data set, and its place there."""

    dataset: int
    family: int


def mix(sizes: Sequence[Ints], weights: Sequence[float] | None, seed: int) -> Iterator[Draw]:
    """An endless mixture of data sets, each passed through in a fresh random order every time it is used up.

    Every draw goes to the data set that lags most behind its share. With weights, proportions of sequences hold at
    every moment to within one draw; without, each run of as many draws as there are families has every family once.

    Args:
        sizes: number of sequences of each family of each data set.
        weights: share of each data set, in any unit.
        seed: of the orders.
    """
    shares = np.asarray([len(dataset) for dataset in sizes] if weights is None else weights, np.float64)
    shares = shares / shares.sum()
    orders = [_endless_order(len(dataset), seed, number) for number, dataset in enumerate(sizes)]
    num_drawn = np.zeros(len(sizes), np.int64)
    while True:
        dataset = int(np.argmax(shares * (num_drawn.sum() + 1) - num_drawn))
        draw = Draw(dataset, next(orders[dataset]))
        num_drawn[dataset] += 1 if weights is None else sizes[dataset][draw.family]
        yield draw


def _endless_order(size: int, seed: int, dataset: int) -> Iterator[int]:
    for epoch in itertools.count():
        order = list(range(size))
        randomness.stream(seed, "order", dataset, epoch).shuffle(order)
        yield from order


def plan_steps(
    lengths: Sequence[Ints],
    sizes: Sequence[Ints],
    weights: Sequence[float] | None,
    batch: BatchConfig,
    seed: int,
    epochs: int | None = None,
) -> Iterator[list[Draw]]:
    """The draws of each step from the first on: endless, or `epochs` times as many draws as there are families.

    Args:
        lengths: inputs of each family of each data set.
        sizes, weights, seed: see `mix`.
        batch: what a step takes.
        epochs: after which the plan ends.
    """
    num_families = sum(len(dataset) for dataset in lengths)
    draws = itertools.islice(mix(sizes, weights, seed), epochs * num_families if epochs is not None else None)
    if batch.families is not None:
        while step := list(itertools.islice(draws, batch.families)):
            yield step
        return
    assert batch.tokens is not None
    step, num_tokens = [], 0
    for draw in draws:
        length = int(lengths[draw.dataset][draw.family])
        if step and num_tokens + length > batch.tokens:
            yield step
            step, num_tokens = [], 0
        step.append(draw)
        num_tokens += length
    yield step


def share(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Indices of a step's families by rank, with nearly equal numbers of tokens: the longest first, each to the rank
    that has least. Within a rank the order is kept."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        rank = loads.index(min(loads))
        shares[rank].append(index)
        loads[rank] += lengths[index]
    return [sorted(indices) for indices in shares]
