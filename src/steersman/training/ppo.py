"""Proximal policy optimisation (arXiv 1707.06347) of a language model's answers, in one loop that reads from top to
bottom: 1 rollout, 2 score, 3 advantage, 4 update, 5 log and commit. The equations are in `objectives.ppo`.

In: a `PPOJob`: the actor, what it samples with (a Generator on the same weights), the reference that it is not to leave
(itself without its adapter, or a frozen copy), a Critic that values states and rewards responses, further reward
functions, questions. Out: checkpoints of actor and critic that belong together, metrics, samples, the best and the last
model.

The critic may run elsewhere: its calls go through `job.executor`, in order, beside the actor's own work, and all of
them are awaited, so that its failure stops the run. pi_old is computed by the actor as it is trained, not by the
sampler, at the sampling temperature: the policy that is improved is the one that was sampled. Responses that did not
end teach the critic, not the actor.

Shapes: B responses, S tokens of the longest with its prompt, T = S - 1 states, M actions of a micro-batch.
"""

import contextlib
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from peft import PeftModel
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from steersman.batches.packing import PackedBatch, Places, pack_padded
from steersman.config import Config
from steersman.errors import NonFiniteError
from steersman.models.adapters import frozen
from steersman.objectives.logprobs import TokenScores
from steersman.objectives.ppo import (
    KLEstimator,
    Moments,
    advantages_and_returns,
    explained_variance,
    kl_estimate,
    policy_loss,
    response_mask,
    token_rewards,
    whiten,
)
from steersman.randomness import derive_seed, stream
from steersman.records import Completion, Conversation
from steersman.seams import Critic, GenerationRequest, Generator
from steersman.training import checkpoint
from steersman.training.checkpoint import CheckpointConfig, TrainingState
from steersman.training.optim import AdamW, OptimConfig, clip_factor, learning_rate
from steersman.training.tasks import predictions

logger = logging.getLogger(__name__)

NUM_SAMPLES = 4
"""Responses of a rollout that its report shows."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class RolloutConfig(Config):
    """What a rollout is.

    Attributes:
        samples: responses of a rollout, each to a prompt of its own.
        micro_batch: responses that are sampled together; each such part goes to the critic while the next is sampled.
        max_tokens: longest response.
        temperature: divides the logits; the policy that is trained is the one at this temperature.
        top_k, top_p: truncate what is sampled from, which the log-probabilities do not know of: leave them at 0 and 1.
    """

    samples: int = Field(default=512, ge=1)
    micro_batch: int = Field(default=8, ge=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)


class PPOConfig(Config):
    """The algorithm's numbers; defaults are NeMo-Aligner's.

    Attributes:
        steps: rollouts of the run.
        rollout: what a rollout is.
        global_batch: responses of an optimiser step; divides the rollout.
        micro_tokens: most input tokens of one forward pass of the actor; a longer sequence goes alone.
        epochs: how often a rollout is gone through.
        kl, kl_penalty: estimator of the divergence from the reference at each token, and its weight in the reward. The
            gradient of "k1" is that of the divergence; see `objectives.ppo.kl_estimate`.
        gamma, lam: discount, and decay of the advantage estimate.
        clip: how far a token's probability ratio counts.
        entropy: weight of the entropy in the actor's loss.
        critic_warmup: first steps, in which the critic alone learns.
        reward_mean, reward_std: a response's score is standardised by these.
    """

    steps: int = Field(ge=1)
    rollout: RolloutConfig
    global_batch: int = Field(default=64, ge=1)
    micro_tokens: int = Field(default=2048, ge=1)
    epochs: int = Field(default=1, ge=1)
    kl: KLEstimator = "abs"
    kl_penalty: float = Field(default=0.01, ge=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0)
    entropy: float = Field(default=0.0, ge=0)
    critic_warmup: int = Field(default=0, ge=0)
    reward_mean: float = 0.0
    reward_std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "PPOConfig":
        if self.rollout.samples % self.global_batch:
            raise ValueError(
                f"global_batch {self.global_batch} must divide the rollout's {self.rollout.samples} samples"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimiser steps that follow a rollout."""
        return self.epochs * self.rollout.samples // self.global_batch

    def actor_updates(self, step: int) -> int:
        """Optimiser steps that the actor has done after so many steps."""
        return max(0, step - self.critic_warmup) * self.updates_per_step


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt that wants an answer.

    Attributes:
        conversation: up to where the answer stands.
        role: who answers.
        request: what the generator is asked; its prompt has its tokens, its seed is replaced.
    """

    conversation: Conversation
    role: str
    request: GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Response:
    """A question with what the actor said."""

    question: Question
    completion: Completion

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        ids = self.question.request.prompt.token_ids
        assert ids, "a question's prompt has its tokens"
        return ids

    @property
    def ended(self) -> bool:
        """Whether the actor ended it, rather than the token budget."""
        return self.completion.finish_reason == "stop"


@dataclass(frozen=True, kw_only=True)
class RewardFunction:
    """A further source of reward.

    Attributes:
        weight: in a response's score.
        score: one number a response, in order.
    """

    weight: float
    score: Callable[[Sequence[Response]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class PPOJob:
    """What to train, with what, on what.

    Attributes:
        actor: the policy, in evaluation mode but for updates; it has no dropout.
        reference: a frozen copy of it, or None for the actor with its adapter off.
        optimizer, optim: of the actor's trainable parameters.
        generator: samples from the actor as it is at each call.
        critic: values states, rewards responses.
        critic_weight: of the critic's rewards in a response's score.
        rewards: name -> further rewards.
        executor: runs the critic's calls, in order: a thread of its own for one that is elsewhere, or `Inline`.
        questions: those of a step.
        config: the algorithm's numbers.
        validation: questions that are answered now and then.
        validate_every, checkpoints: how often.
        folder: where checkpoints go.
        seed: of everything random.
        save_best: writes the model as the best so far, by mean validation score.
    """

    actor: PreTrainedModel | PeftModel
    reference: PreTrainedModel | PeftModel | None
    optimizer: AdamW
    optim: OptimConfig
    generator: Generator
    critic: Critic
    critic_weight: float
    rewards: Mapping[str, RewardFunction]
    executor: Executor
    questions: Callable[[int], Sequence[Question]]
    config: PPOConfig
    validation: Sequence[Question]
    validate_every: int
    checkpoints: CheckpointConfig
    folder: Path
    seed: int
    save_best: Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One step's numbers.

    Attributes:
        step, num_steps: how far the run is.
        metrics: name -> number; see docs/formats.md.
        samples: some responses of the rollout, each with prompt, response, score and divergence.
    """

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """As one flat line of the metrics file."""
        return {"step": self.step, **self.metrics}


class Inline(Executor):
    """Runs what is submitted at once: for a critic that shares this process's processors and memory."""

    def submit(
        self, fn: Callable[Parameters, Result], /, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Clock:
    """Seconds spent, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def train(
    job: PPOJob,
    state: TrainingState,
    log: Callable[[Report], Any] = lambda report: None,
    on_step: Callable[[Report], Any] = lambda report: None,
) -> TrainingState:
    """Run the steps that `state` leaves to do; returns the state in the end.

    `log` hears of a step before it is committed, `on_step` after.

    Raises:
        NonFiniteError: a score, a loss or a gradient is NaN or infinite.
        RemoteError: the critic, or what else runs elsewhere, failed; in its own words.
        OutputError: a checkpoint or the best model cannot be written.
    """
    num_steps = job.config.steps
    for step in range(state.step + 1, num_steps + 1):
        report = train_step(job, step)

        # 5. Log and commit. A step counts when the actor's checkpoint stands; the critic's is there by then.
        last, best_loss = step == num_steps, state.best_loss
        if job.validation and (last or step % job.validate_every == 0):
            validation = validate(job)
            report = replace(report, metrics={**report.metrics, **validation})
            if best_loss is None or -validation["validation.rewards"] < best_loss:
                best_loss = -validation["validation.rewards"]
                job.save_best()
        state = TrainingState(step=step, best_loss=best_loss)
        log(report)
        if last or (job.checkpoints.every and step % job.checkpoints.every == 0):
            job.executor.submit(job.critic.save, step).result()
            checkpoint.save(job.folder, state, checkpoint.counted(job.optimizer), job.checkpoints.keep)
        on_step(report)
    return state


def train_step(job: PPOJob, step: int) -> Report:
    """One rollout and what is learnt from it."""
    config, clock = job.config, Clock()

    # 1. Rollout: the actor answers. Each part goes to the critic as soon as it is there.
    batches = list(minibatches(job, step))
    responses, judging = rollout(job, job.questions(step), f"rollout-{step}", clock, next_rows=batches[0])
    tokens_BS, lengths_B, mask_BT = pad(responses)
    ended_B = torch.tensor([response.ended for response in responses])
    if not ended_B.any():
        logger.warning("step %d: no response ended, so the actor learns nothing; raise rollout.max_tokens", step)

    # 2. Score: how likely the actor and the reference find it, how good the critic and the reward functions. What the
    # first update reads first is read here, and kept for it: until then the actor is the same.
    actions_BT = mask_BT & ended_B[:, None]
    with clock.time("logprobs"):
        ahead = read_ahead(job, tokens_BS, actions_BT, batches[0]) if step > config.critic_warmup else None
        rest_BT = mask_BT.clone()
        if ahead:
            rest_BT[ahead.places] = False
        logprobs_BT = logprobs(job.actor, tokens_BS, rest_BT, config)
        if ahead:
            logprobs_BT[ahead.places] = ahead.said.logprobs_M.detach().float().cpu()
    with clock.time("ref_logprobs"), frozen(job.actor, job.reference) as reference:
        reference_BT = logprobs(reference, tokens_BS, mask_BT, config)
    values_BT, scores_B, score_means = scores(job, responses, judging, clock)

    # 3. Advantage: of each token, over what the critic expected; whitened over the whole rollout.
    kl_BT = kl_estimate(logprobs_BT, reference_BT, config.kl)
    standard_B = (scores_B - config.reward_mean) / config.reward_std
    rewards_BT = token_rewards(standard_B, kl_BT, mask_BT, config.kl_penalty)
    advantages_BT, returns_BT = advantages_and_returns(rewards_BT, values_BT, mask_BT, config.gamma, config.lam)
    advantages = Moments.of(advantages_BT[mask_BT])
    whitened_BT = whiten(advantages_BT, mask_BT, advantages)

    # 4. Update: the critic learns the returns while the actor learns from those of its responses that ended.
    learning, updates = [], []
    number = config.actor_updates(step - 1)
    with clock.time("train"):
        for rows in batches:
            told = (tokens_BS[rows], returns_BT[rows], values_BT[rows], mask_BT[rows])
            learning.append(job.executor.submit(job.critic.train, *told))
            if step > config.critic_warmup:
                number += 1
                given = (tokens_BS[rows], actions_BT[rows], logprobs_BT[rows], whitened_BT[rows])
                updates.append(update(job, number, *given, ahead.said if ahead else None))
                ahead = None
            raise_failure(learning)
        critic_updates = [future.result() for future in learning]

    returns, values = Moments.of(returns_BT[mask_BT]), Moments.of(values_BT[mask_BT])
    num_responses, num_actions = len(responses), int(mask_BT.sum())
    response_kl_B = (logprobs_BT - reference_BT).sum(1)
    metrics = {
        **score_means,
        "rewards_with_kl": float(rewards_BT.sum()) / num_responses,
        "init_policy_kl": float(kl_BT.sum()) / num_actions,
        "response_kl": float(response_kl_B.mean()),
        "prompt_length": float(lengths_B.sum() - num_actions) / num_responses,
        "response_length": num_actions / num_responses,
        "fraction_ended": float(ended_B.float().mean()),
        **{f"advantages.{name}": getattr(advantages, name) for name in ("mean", "std")},
        **{f"returns.{name}": getattr(returns, name) for name in ("mean", "std")},
        **{f"values.{name}": getattr(values, name) for name in ("mean", "std")},
        "explained_variance": explained_variance(returns, advantages),  # an advantage is return - value
        **{f"actor.{name}": value for name, value in _means([row for row in updates if row]).items()},
        **{f"critic.{name}": value for name, value in _means(critic_updates).items()},
        **{f"seconds.{name}": value for name, value in clock.seconds.items()},
    }
    if (sampled := [x for one in responses for x in one.completion.logprobs or ()]) and len(sampled) == num_actions:
        metrics["sampler_kl"] = float((torch.tensor(sampled) - logprobs_BT[mask_BT]).mean())
    samples = [
        {
            "prompt": response.question.request.prompt.text,
            "response": response.completion.text,
            "score": float(score),
            "kl": float(kl),
            "ended": response.ended,
        }
        for response, score, kl in itertools.islice(zip(responses, scores_B, response_kl_B, strict=True), NUM_SAMPLES)
    ]
    return Report(step=step, num_steps=config.steps, metrics=metrics, samples=samples)


Judging = Future[tuple[Tensor, Tensor]]


def rollout(
    job: PPOJob, questions: Sequence[Question], purpose: str, clock: Clock, next_rows: Tensor | None = None
) -> tuple[list[Response], list[Judging]]:
    """A response to each question, and the critic's values and rewards of each part of them, to be awaited. Of the
    responses in `next_rows` it learns next."""
    next_B = torch.zeros(len(questions), dtype=torch.bool)
    if next_rows is not None:
        next_B[next_rows] = True
    responses: list[Response] = []
    judging: list[Judging] = []
    size = job.config.rollout.micro_batch
    for first in range(0, len(questions), size):
        asked = questions[first : first + size]
        requests = [
            replace(one.request, sampling=replace(one.request.sampling, seed=derive_seed(job.seed, purpose, number)))
            for number, one in enumerate(asked, start=first)
        ]
        with clock.time("generate"):
            completions = job.generator.generate(requests)
        part = [Response(question=q, completion=c) for q, c in zip(asked, completions, strict=True)]
        tokens_BS, lengths_B, _ = pad(part)
        with clock.time("critic_wait"):
            judging.append(job.executor.submit(job.critic.infer, tokens_BS, lengths_B, next_B[first : first + size]))
        responses += part
        raise_failure(judging)
    return responses, judging


def scores(
    job: PPOJob, responses: Sequence[Response], judging: Sequence[Judging], clock: Clock
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """The critic's values [B, T] (0 beyond a sequence), each response's score [B], and the mean of every reward."""
    with clock.time("rewards"):
        given = {name: torch.tensor(function.score(responses)).float() for name, function in job.rewards.items()}
    with clock.time("critic_wait"):
        values, rewards = zip(*(future.result() for future in judging), strict=True)
    values_BT = pad_sequence([row_T for part_BT in values for row_T in part_BT], batch_first=True)
    parts = {"critic": torch.cat(rewards), **given}
    for name, rewards_B in parts.items():
        if not rewards_B.isfinite().all():
            raise NonFiniteError(f"a reward of {name} is NaN or infinite")
    weights = {"critic": job.critic_weight, **{name: function.weight for name, function in job.rewards.items()}}
    scores_B = torch.stack([weights[name] * rewards_B for name, rewards_B in parts.items()]).sum(0)
    means = {f"rewards.{name}": float(rewards_B.mean()) for name, rewards_B in parts.items()} if given else {}
    return values_BT, scores_B, {"rewards": float(scores_B.mean()), **means}


@dataclass(frozen=True)
class Ahead:
    """What the actor says of a micro-batch that it will learn from, with the graph of it.

    Attributes:
        places: the actions in the rollout.
        said: of them.
    """

    places: Places
    said: TokenScores


def read_ahead(job: PPOJob, tokens_BS: Tensor, mask_BT: Tensor, rows: Tensor) -> Ahead | None:
    """The first micro-batch of an update on these rows of a rollout; None if they have no action."""
    micro_batches = pack_padded(tokens_BS[rows], mask_BT[rows], job.config.micro_tokens)
    if not micro_batches:
        return None
    (sequence_M, state_M), batch = micro_batches[0]
    job.actor.train()
    said = _read(job.actor, batch, job.config, entropies=True)
    job.actor.eval()
    return Ahead((rows[sequence_M], state_M), said)


def update(
    job: PPOJob,
    number: int,
    tokens_BS: Tensor,
    mask_BT: Tensor,
    old_BT: Tensor,
    advantages_BT: Tensor,
    first: TokenScores | None = None,
) -> dict[str, float]:
    """One optimiser step of the actor on the actions of `mask_BT`: their mean loss, whatever the micro-batches.

    `first` is what the actor says of the first micro-batch, if that was read ahead. Without any action nothing is done,
    and nothing returned.
    """
    config, optimizer = job.config, job.optimizer
    num = int(mask_BT.sum())
    if not num:
        return {}
    sums: Counter[str] = Counter()
    job.actor.train()
    for places, batch in pack_padded(tokens_BS, mask_BT, config.micro_tokens):
        said, first = first or _read(job.actor, batch, config, entropies=True), None
        assert said.entropies_M is not None
        old_M, advantages_M = (x_BT[places].to(said.logprobs_M.device) for x_BT in (old_BT, advantages_BT))
        loss = policy_loss(
            said.logprobs_M, old_M, advantages_M, said.entropies_M, clip=config.clip, entropy=config.entropy
        )
        loss.sum.backward()  # type: ignore[no-untyped-call]
        sums.update({"loss": float(loss.sum.detach()), **{name: float(x) for name, x in loss.metrics.items()}})
    job.actor.eval()
    means = {name: value / num for name, value in sums.items()}
    grad_norm = optimizer.gradient_norm() / num
    if not (math.isfinite(grad_norm) and all(map(math.isfinite, means.values()))):
        raise NonFiniteError(
            f"the actor's loss {means['loss']}, gradient norm {grad_norm} at its update {number}; the last checkpoint "
            "stands. Try a lower optim.lr, or precision=float32"
        )
    lr = learning_rate(job.optim, number, config.actor_updates(config.steps))
    optimizer.step(lr, clip_factor(job.optim, grad_norm) / num)
    return {**means, "grad_norm": grad_norm, "lr": lr}


def validate(job: PPOJob) -> dict[str, float]:
    """Mean scores of the responses to the validation questions, sampled with the same seeds each time."""
    responses, judging = rollout(job, job.validation, "validation", Clock())
    _, _, means = scores(job, responses, judging, Clock())
    length = sum(len(response.completion.token_ids) for response in responses) / len(responses)
    ended = sum(response.ended for response in responses) / len(responses)
    numbers = {**means, "response_length": length, "fraction_ended": ended}
    return {f"validation.{name}": value for name, value in numbers.items()}


def minibatches(job: PPOJob, step: int) -> Iterator[Tensor]:
    """Indices of the responses of each optimiser step of a rollout, every epoch in another order."""
    for epoch in range(job.config.epochs):
        order = list(range(job.config.rollout.samples))
        stream(job.seed, "minibatches", step, epoch).shuffle(order)
        yield from torch.split(torch.tensor(order), job.config.global_batch)


def pad(responses: Sequence[Response]) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts and responses as i64[B, S], their lengths, and which states are followed by an action."""
    tokens = [torch.tensor([*one.prompt_ids, *one.completion.token_ids]) for one in responses]
    lengths_B = torch.tensor([len(ids) for ids in tokens])
    prompt_lengths_B = torch.tensor([len(one.prompt_ids) for one in responses])
    return pad_sequence(tokens, batch_first=True), lengths_B, response_mask(prompt_lengths_B, lengths_B)


@torch.no_grad()
def logprobs(model: PreTrainedModel | PeftModel, tokens_BS: Tensor, mask_BT: Tensor, config: PPOConfig) -> Tensor:
    """The log-probability of each action, at the sampling temperature: f32[B, T], 0 off the mask."""
    logprobs_BT = torch.zeros(mask_BT.shape)
    for places, batch in pack_padded(tokens_BS, mask_BT, config.micro_tokens):
        logprobs_BT[places] = _read(model, batch, config).logprobs_M.float().cpu()
    return logprobs_BT


def _read(
    model: PreTrainedModel | PeftModel, batch: PackedBatch, config: PPOConfig, entropies: bool = False
) -> TokenScores:
    """What a model says of a micro-batch's actions."""
    here = batch.to(next(model.parameters()).device)
    return predictions(
        model,
        here,
        entropies=entropies,
        entropy_gradient=entropies and config.entropy > 0,
        temperature=config.rollout.temperature,
    )


def raise_failure(futures: Sequence[Future[Any]]) -> None:
    """Raise the error of what has failed already, so that nobody works on for nothing."""
    for future in futures:
        if future.done():
            future.result()


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over some updates; the learning rate is the last one's."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
    return {**means, "lr": rows[-1]["lr"]} if rows else {}
