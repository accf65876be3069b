"""Requests under way: the sequences that each computes, what is known of them, and what it adds up to.

A `Generation` grows one sequence by the tokens drawn (two under guidance). A `Scoring` asks for the log-probability of
given tokens at given positions: its `targets`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steersman.generation.answer_text import AnswerText
from steersman.generation.cache import Slot
from steersman.generation.continuations import TokenisedContinuation
from steersman.records import Completion, Span
from steersman.seams import Sampling, Scored

Targets = dict[int, set[int]]
"""Position -> tokens whose log-probability right after it is asked for."""


def targets_of(*runs: tuple[int, Sequence[int]]) -> Targets:
    """What must be known to score runs of tokens, each given by the index of its first one."""
    targets: Targets = {}
    for start, tokens in runs:
        for position, token in enumerate(tokens, start=start - 1):
            targets.setdefault(position, set()).add(token)
    return targets


@dataclass(eq=False)
class TokenSequence:
    """Tokens that one slot computes.

    Attributes:
        ids: the tokens; what is drawn is appended.
        targets: position -> tokens whose log-probability right after it is asked for.
        compare_only: their logits will do.
        top: how many likeliest tokens to name beside each target.
        logprobs: (position, token) -> that log-probability, or logit.
        top_logprobs: position -> the likeliest tokens right after it, with their log-probabilities.
        slot: None before it starts and after it ends.
        num_cached: leading tokens that were not computed again.
        hidden_H: hidden state at the last token computed.
    """

    ids: list[int]
    targets: Targets = field(default_factory=dict)
    compare_only: bool = False
    top: int = 0
    logprobs: dict[tuple[int, int], float] = field(default_factory=dict)
    top_logprobs: dict[int, dict[int, float]] = field(default_factory=dict)
    slot: Slot | None = None
    num_cached: int = 0
    hidden_H: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def num_missing(self) -> int:
        """Tokens not computed yet."""
        return len(self.ids) - (self.slot.length if self.slot else 0)

    @property
    def num_reusable(self) -> int:
        """Leading tokens whose hidden states nobody asks for."""
        return min(self.targets, default=len(self.ids) - 1)


@dataclass(frozen=True)
class DrawnToken:
    """A token of an answer.

    Attributes:
        id: the token.
        logprob: its natural log-probability under the untempered model.
        top_logprobs: the likeliest tokens in its place -> theirs; as many as were asked for.
    """

    id: int
    logprob: float
    top_logprobs: dict[int, float]


@dataclass(eq=False)
class Generation:
    """A generation request.

    Attributes:
        handle: names it to whoever submitted it.
        sampling: its rules.
        sequences: the prompt's and, under guidance, the one it is contrasted with.
        scale: of the guidance.
        seed: of its random stream.
        budget: most tokens it may draw.
        num_prompt: tokens of the prompt.
        text: of the answer so far.
        drawn: the tokens drawn, when their log-probabilities are asked for.
        num_told: how many of them events have told of.
    """

    handle: int
    sampling: Sampling
    sequences: list[TokenSequence]
    scale: float
    seed: int
    budget: int
    num_prompt: int
    text: AnswerText
    drawn: list[DrawnToken] = field(default_factory=list)
    num_told: int = 0

    @property
    def num_drawn(self) -> int:
        return len(self.sequences[0].ids) - self.num_prompt

    @property
    def may_end(self) -> bool:
        """Whether end tokens and stop strings count yet."""
        return self.num_drawn >= self.sampling.min_tokens

    @property
    def alters_logits(self) -> bool:
        """Whether the next token is drawn from other logits than the model's."""
        return not self.may_end or self.sampling.repetition_penalty != 1.0

    @property
    def is_argmax(self) -> bool:
        """Whether the next token is the one with the largest logit, and nothing more is asked of the logits."""
        return self.sampling.greedy and not self.sampling.logprobs and self.sampling.repetition_penalty == 1.0

    @property
    def is_ready(self) -> bool:
        """Whether the next token can be drawn."""
        return all(sequence.num_missing == 0 for sequence in self.sequences)

    def take_drawn(self) -> tuple[DrawnToken, ...]:
        """The tokens drawn since the last call."""
        drawn, self.num_told = self.drawn[self.num_told :], len(self.drawn)
        return tuple(drawn)

    def completion(self, ended: bool) -> Completion:
        sampling = self.sampling
        return Completion(
            text=self.text.text,
            token_ids=self.sequences[0].ids[self.num_prompt :],
            finish_reason="stop" if ended else "length",
            stop=self.text.stop,
            logprobs=[token.logprob for token in self.drawn] if sampling.logprobs else None,
            top_logprobs=[token.top_logprobs for token in self.drawn] if sampling.top_logprobs else None,
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.sequences[0].num_cached,
        )


class Scoring:
    """A scoring request: its own tokens in one sequence, which also knows each candidate's first token; the rest of a
    candidate of several tokens, unless it is the one in place, in a sequence of its own."""

    def __init__(self, handle: int, request: TokenisedContinuation) -> None:
        self.handle, self.request = handle, request
        self._carriers: dict[tuple[Span, int], TokenSequence] = {}
        ids = request.ids
        runs: list[tuple[int, Sequence[int]]] = [] if request.compare_only else [(request.first, ids[request.first :])]
        for span, alternatives in request.alternatives.items():
            start = alternatives.start
            for index, candidate in enumerate(alternatives.token_ids):
                in_place = ids[start : start + len(candidate)] == candidate
                runs.append((start, candidate if in_place else candidate[:1]))
                if len(candidate) > 1 and not in_place:
                    own = TokenSequence([*ids[:start], *candidate[:-1]], targets_of((start + 1, candidate[1:])))
                    self._carriers[span, index] = own
        targets = targets_of(*runs)
        self._main = TokenSequence(ids[: max(targets, default=-1) + 1], targets, request.compare_only, request.top)
        self.sequences = [self._main, *self._carriers.values()] if targets else []
        self.num_open = len(self.sequences)

    def scored(self) -> Scored:
        ids, first = self.request.ids, self.request.first
        return Scored(
            token_ids=ids[first:],
            logprobs=[
                self._main.logprobs[position - 1, ids[position]]
                for position in range(first, first if self.request.compare_only else len(ids))
            ],
            alternatives={
                span: [
                    self._logprob(alternatives.start, candidate, self._carriers.get((span, index), self._main))
                    for index, candidate in enumerate(alternatives.token_ids)
                ]
                for span, alternatives in self.request.alternatives.items()
            },
            top_logprobs=[self._main.top_logprobs[position] for position in sorted(self._main.top_logprobs)],
        )

    def _logprob(self, start: int, candidate: Sequence[int], carrier: TokenSequence) -> float:
        first = sum(self._main.logprobs[start - 1, token] for token in candidate[:1])
        return first + sum(carrier.logprobs[position, token] for position, token in enumerate(candidate[1:], start))
