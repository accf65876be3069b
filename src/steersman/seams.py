"""The four seams: what the packages above ask of a model, wherever it runs.

Each Protocol has several implementations (local engine, HTTP clients, fakes) and one contract test that all pass
(tests/contracts). Requests carry everything random about them, so an answer never depends on its neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from steersman.attributes import AttributeSchema
from steersman.errors import ConfigError
from steersman.records import Completion, Conversation, Judgement, Prompt


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw tokens.

    Attributes:
        max_tokens: budget of new tokens; what the window leaves is a further limit.
        temperature: divides the logits; > 0.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches this; 1 keeps all.
        greedy: take the likeliest token; temperature, top_k and top_p are ignored.
        repetition_penalty: 1 to 1000; divides positive (multiplies negative) logits of tokens already in prompt or
            answer.
        min_tokens: end tokens and stop strings do not count before this many tokens.
        stop: strings that end the answer; they are cut from `Completion.text`.
        seed: of this request's own random stream; None draws a fresh one.
        logprobs: ask for the log-probability of each token.
        top_logprobs: with `logprobs`: ask for those of so many likeliest tokens in its place, too.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "temperature must lie in (0, 100]": 0 < self.temperature <= 100,
            "top_k must be 0 or more": self.top_k >= 0,
            "top_p must lie in [0, 1]": 0 <= self.top_p <= 1,
            "repetition_penalty must lie in [1, 1000]": 1 <= self.repetition_penalty <= 1000,
            "min_tokens must be 0 or more": self.min_tokens >= 0,
            "stop strings must not be empty": all(self.stop),
            "top_logprobs must be 0 or more": self.top_logprobs >= 0,
        }
        for message, holds in checks.items():
            if not holds:
                raise ConfigError(f"sampling: {message}")


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Attribute guidance: logits = against + scale * (wanted - against), both given the same answer so far.

    `against` is the prompt with the opposite attributes; scale 1 is no guidance, 2 doubles the contrast.
    """

    against: Prompt
    scale: float


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt to complete."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    guidance: Guidance | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """One continuation to score.

    Attributes:
        prompt: what comes before.
        continuation: text that is scored, tokenised together with the prompt.
        alternatives: strings that could stand in the place of a span of the continuation: (start, end) character span
            of `continuation` -> candidate strings (the one in place among them).
        compare_only: all that is wanted is how the candidates of each span compare. `Scored.logprobs` may then be empty
            and the numbers of a span be off by a common constant, which spares a local model most of its head.
    """

    prompt: Prompt
    continuation: str
    alternatives: Mapping[tuple[int, int], Sequence[str]] = field(default_factory=dict)
    compare_only: bool = False


@dataclass(frozen=True, kw_only=True)
class TokenScoreRequest:
    """Tokens to score, each given all before it; the first has no probability.

    Attributes:
        token_ids: at least one.
        top: how many likeliest tokens in each one's place to name.
    """

    token_ids: tuple[int, ...]
    top: int = 0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Log-probabilities of a continuation.

    Attributes:
        token_ids: the continuation's tokens.
        logprobs: natural log-probability of each, given everything before it; may be empty under `compare_only`.
        alternatives: for each requested span, the log-probability of each candidate given everything before the span
            (not normalised over the candidates); see `ScoreRequest.compare_only`.
        top_logprobs: for each token, the likeliest tokens in its place -> their log-probabilities, when asked for.
    """

    token_ids: list[int]
    logprobs: list[float]
    alternatives: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Stands in the place of a result that could not be had, where failures are to be recorded.

    Attributes:
        reason: why, in the server's own words where it has any.
        kind: the same in one of a few words, to be counted.
    """

    reason: str
    kind: str


Progress = Callable[[int], Any]
"""Called with the number of further items done."""


@runtime_checkable
class Generator(Protocol):
    """Completes prompts."""

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order; an answer depends on its request alone (exactly so in fp32)."""
        ...


@runtime_checkable
class ContinuationScorer(Protocol):
    """Log-probabilities of given continuations."""

    def score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored]:
        """One result a request, in order."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Judges the last unmasked turn of conversations."""

    @property
    def schema(self) -> AttributeSchema:
        """The attributes that `judge` gives."""
        ...

    @property
    def reads_labels(self) -> bool:
        """Whether the labels of earlier turns are context to it; when not, all turns may be judged at once."""
        ...

    def judge(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> list[Judgement]:
        """One judgement a conversation, in order. The turn's own label is ignored."""
        ...


@runtime_checkable
class Critic(Protocol):
    """Values and rewards of tokens for PPO, in process or behind HTTP. Tensors are torch's, on the CPU.

    Shapes: B sequences, S tokens, padded on the right; T = S - 1 states, each before the token that follows it.
    """

    def steps(self) -> list[int]:
        """The steps at which it can stand, ascending: 0, the beginning, and those of its latest saves."""
        ...

    def start(self, step: int, num_updates: int) -> None:
        """Stand at this step, in a run of so many optimiser steps; later saves are forgotten."""
        ...

    def infer(self, tokens_BS: Any, lengths_B: Any, next_B: Any = None) -> tuple[Any, Any]:
        """(values f32[B, T], 0 beyond a sequence; rewards f32[B]). bool `next_B` says of which sequences it is to learn
        next, so that it may begin."""
        ...

    def train(self, tokens_BS: Any, returns_BT: Any, prev_values_BT: Any, mask_BT: Any) -> Mapping[str, float]:
        """One optimiser step; returns loss, clip_fraction, grad_norm, lr."""
        ...

    def save(self, step: int) -> str:
        """Commit the state of `step`; returns where."""
        ...
