"""One PPO run, from a recipe to a model folder.

In: a `PPORecipe`: a policy, prompts, a critic that begins as a reward model, further rewards. Out: `<output>/` with

    config.yaml, inputs.json   what the run is; a run of another kind is refused
    metrics.jsonl              one line a step
    samples.jsonl              some responses of each step
    checkpoints/step-N/        the actor's training state
    critic/step-N/             the critic's, unless it is served elsewhere
    rollouts/                  the actor's newest weights, where a vLLM server samples from them
    best/, last/               model folders: highest mean validation score, and the end
    result.json                written last: the run is done

Run again after a crash at any moment, of this process or of the critic's, it continues from the last step that both
have, to bit-identical weights.
"""

import contextlib
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import torch
from pydantic import Field, model_validator

from steersman import jsonl
from steersman.batches.plan import BatchConfig, plan_steps
from steersman.card import Parent
from steersman.config import Config
from steersman.errors import ConfigError, DataError
from steersman.generation.conditioned import answer_request, answer_text
from steersman.generation.engine import Engine
from steersman.generation.vllm import VllmSampler
from steersman.locks import hold
from steersman.models.adapters import LoraConfig
from steersman.models.load import LoadedModel, load_model, plain_model, prepare_for_training, save_model
from steersman.parallel.mesh import Mesh, join
from steersman.pipelines import run_folder
from steersman.pipelines.critics import CriticSettings, open_critic
from steersman.pipelines.jobs import RESULT, Precision, TrainResult
from steersman.pipelines.opened import open_predictor
from steersman.randomness import derive_seed
from steersman.records import Completion, Conversation, Message
from steersman.scoring.rewards import RewardModel
from steersman.seams import Critic, GenerationRequest, Generator, Progress, Sampling
from steersman.serving.remote_critic import RemoteCritic
from steersman.sources.prompts import parse_prompt
from steersman.training import checkpoint, metrics, ppo
from steersman.training.checkpoint import CheckpointConfig, TrainingState
from steersman.training.critic import LocalCritic
from steersman.training.metrics import LogConfig, MetricsLog, StepFile
from steersman.training.optim import AdamW, OptimConfig
from steersman.training.ppo import Inline, PPOConfig, PPOJob, Question, Report, Response, RewardFunction

logger = logging.getLogger(__name__)

SAMPLES = "samples.jsonl"


class PromptData(Config):
    """Prompts, in any of the forms of `steersman generate`.

    Attributes:
        train: files that are answered in training, each prompt once before any comes again.
        validation: files that are answered every now and then.
        num_validation: the first so many prompts of these.
    """

    train: tuple[str, ...] = Field(min_length=1)
    validation: tuple[str, ...] = ()
    num_validation: int = Field(default=64, ge=1)


class CriticSource(Config):
    """Where the critic is.

    Attributes:
        model: reward model folder, for a critic in this process; or
        url: of `steersman serve-critic`.
        training: how a critic in this process is trained; a server has been told.
        weight: of the reward model in a response's score.
        timeout: seconds that one call of a server may take.
    """

    model: str | None = None
    url: str | None = None
    training: CriticSettings | None = None
    weight: float = 1.0
    timeout: float = Field(default=3600.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> "CriticSource":
        if (self.model is None) == (self.url is None):
            raise ValueError("give exactly one of model and url")
        if (self.model is None) != (self.training is None):
            raise ValueError("training belongs to a critic with a model; one with a url was told by serve-critic")
        return self


class RewardSource(Config):
    """A reward beside the critic's.

    Attributes:
        weight: in a response's score.
        function: `module:name` of a Python function from a list of conversations, the last turn of each the response
            (see docs/formats.md), to a list of numbers; the folder where the command runs is searched too. Or
        model: reward model; or an attribute predictor, whose expected values are weighed by
        goal: attribute -> weight.
        url: server that runs the predictor, if it is not run here.
    """

    weight: float = 1.0
    function: str | None = None
    model: str | None = None
    goal: dict[str, float] | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "RewardSource":
        if (self.function is None) == (self.model is None):
            raise ValueError("give exactly one of function and model")
        if (self.goal and self.model is None) or (self.url and not self.goal):
            raise ValueError("goal is for a predictor as model, url for one that a server runs")
        return self


class RolloutValidation(Config):
    """When the validation prompts are answered: every so many steps, and at the last."""

    every: int = Field(default=10, ge=1)


class RolloutServer(Config):
    """A vLLM server that samples the responses, at the actor's weights of each step, instead of this process.

    It must see the run's folder under the same path, and be started as `generation.vllm` says.

    Attributes:
        url: of the server, with or without `/v1`.
        model: what it calls the policy, if it serves several models.
        concurrency: responses under way at once.
        timeout: seconds that one response may take.
    """

    url: str
    model: str | None = None
    concurrency: int = Field(default=64, ge=1)
    timeout: float = Field(default=600.0, gt=0)


class PPOSettings(Config):
    """How to train, whatever the policy, the prompts and the critic.

    Attributes:
        ppo: the algorithm's numbers.
        optim: optimiser of the policy.
        lora: train an adapter: the reference is then the same model without it. Otherwise it is a frozen copy.
        freeze, precision, activation_checkpointing: see `jobs.TrainSettings`.
        max_batch: most responses that are sampled at once.
        rollout_server: samples them instead of this process.
        validation, checkpoint: when; a checkpoint is the actor's and the critic's.
        seed: of everything random.
        log: TensorBoard and Weights & Biases.
    """

    ppo: PPOConfig
    optim: OptimConfig
    lora: LoraConfig | None = None
    freeze: tuple[str, ...] = ()
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    max_batch: int = Field(default=32, ge=1)
    rollout_server: RolloutServer | None = None
    validation: RolloutValidation = Field(default_factory=RolloutValidation)
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig(every=1))
    seed: int = 0
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _check_lora(self) -> "PPOSettings":
        if self.lora is not None and self.lora.dropout:
            raise ValueError("lora.dropout must be 0: PPO compares a response's probabilities before and after a step")
        return self


class PPORecipe(PPOSettings):
    """The recipe of a PPO run.

    Attributes:
        model: the policy: Hugging Face folder or id.
        output: folder of the run.
        data: prompts.
        critic: values states, and rewards responses.
        rewards: name -> further rewards.
    """

    model: str
    output: Path
    data: PromptData
    critic: CriticSource
    rewards: dict[str, RewardSource] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "PPORecipe":
        if not self.critic.weight and not self.rewards:
            raise ValueError("critic.weight is 0 and there are no rewards: there is nothing to learn from")
        if "critic" in self.rewards:
            raise ValueError("rewards.critic: that name is the critic's own; choose another")
        return self


@dataclass(frozen=True)
class FreshEngine:
    """A Generator that samples from a model as it is at each call: nothing is kept from one to the next, neither keys
    and values of older weights nor the memory that they take."""

    loaded: LoadedModel
    max_batch: int

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order."""
        return Engine(self.loaded, max_batch=self.max_batch).generate(requests, progress)


def run_ppo(config: PPORecipe, on_step: Callable[[Report], Any] = lambda report: None) -> TrainResult:
    """Train a policy, or go on with a run that was cut, or return the result of one that is done.

    `on_step` hears of every step that is committed.

    Raises:
        ConfigError, DataError, ModelError, TokenizerError: the recipe or what it names cannot be used.
        OutputError: the output folder belongs to another run, another process is at this one, or it cannot be written.
        RemoteError: the critic's server failed, in its own words.
        NonFiniteError: a score, loss or gradient is NaN or infinite; the last checkpoint stands.
    """
    mesh = join()
    if mesh.size > 1:
        raise ConfigError("train ppo runs in one process; its critic may have another: see steersman serve-critic")
    if config.ppo.rollout.top_p < 1 or config.ppo.rollout.top_k:
        logger.warning(
            "top_p below 1 and top_k bias PPO: responses are drawn from a truncated distribution and weighed by the "
            "whole one; say ppo.rollout.top_p=1 ppo.rollout.top_k=0"
        )
    with hold(config.output):
        return _run(config, mesh, on_step)


def _run(config: PPORecipe, mesh: Mesh, on_step: Callable[[Report], Any]) -> TrainResult:
    parents = _parents(config)
    run_folder.claim(config, config.output, parents)
    if (config.output / RESULT).exists():
        return _result(config.output)

    actor = _open_actor(config, mesh.device)
    actor = replace(actor, card=actor.card.model_copy(update={"role": "sft", "parents": parents}))
    with contextlib.ExitStack() as stack:
        critic, executor, critic_window = _open_critic(config, actor, mesh.device)
        stack.enter_context(executor)
        job = _job(config, actor, critic, executor, min(actor.window, critic_window))
        state = _restore(job)
        log = stack.enter_context(
            contextlib.closing(MetricsLog(config.output, config.log, state.step, config.model_dump(mode="json")))
        )
        samples = stack.enter_context(contextlib.closing(StepFile(config.output, SAMPLES, state.step)))

        def write(report: Report) -> None:
            log.write(report.row())
            for sample in report.samples:
                samples.write({"step": report.step, **sample})

        state = ppo.train(job, state, write, on_step)
    save_model(actor, config.output / "last")
    best = {} if state.best_loss is None else {"best_validation_rewards": -state.best_loss}
    jsonl.write_bytes(config.output / RESULT, jsonl.dumps({**metrics.read(config.output)[-1], **best}))
    return _result(config.output)


def _parents(config: PPORecipe) -> tuple[Parent, ...]:
    judges = [config.critic.model, *(source.model for source in config.rewards.values())]
    files = [*config.data.train, *config.data.validation]
    return run_folder.parents([config.model, *(judge for judge in judges if judge)], files)


def _open_actor(config: PPORecipe, device: torch.device) -> LoadedModel:
    """The policy, ready to be trained."""
    precision = "bfloat16" if config.precision == "bfloat16-stochastic" else config.precision
    loaded = load_model(config.model, precision=precision, device=device)
    torch.manual_seed(derive_seed(config.seed, "adapter"))
    loaded = prepare_for_training(loaded, loaded.encoder.spec, config.lora, config.freeze)
    if config.activation_checkpointing:
        plain_model(loaded.model).activation_checkpointing_enable()
    return loaded


def _open_critic(config: PPORecipe, actor: LoadedModel, device: torch.device) -> tuple[Critic, Executor, int]:
    """The critic, who runs its calls, and the longest sequence that it takes."""
    source = config.critic
    critic: RemoteCritic | LocalCritic
    executor: Executor
    if source.url is not None:
        key = os.environ.get("STEERSMAN_API_KEY")
        critic = RemoteCritic(source.url, timeout=source.timeout, api_key=key)
        hello, executor = critic.hello, ThreadPoolExecutor(1, thread_name_prefix="critic")
    else:
        assert source.model is not None
        assert source.training is not None
        served = open_critic(source.model, source.training, config.output / "critic", device)
        critic, hello, executor = served.critic, served.hello(), Inline()
    hello.check(actor.encoder.tokenizer)
    if source.weight and not hello.gives_rewards:
        raise ConfigError(
            f"the critic's model {hello.model} was not trained to reward; say critic.weight=0, and name under rewards "
            "what does"
        )
    return critic, executor, hello.window


def _job(config: PPORecipe, actor: LoadedModel, critic: Critic, executor: Executor, window: int) -> PPOJob:
    """The run as the loop takes it."""
    questions = _questions(config.data.train, config, actor, window)
    validation = _questions(config.data.validation, config, actor, window) if config.data.validation else []
    reference = None
    if config.lora is None:
        precision: Literal["bfloat16", "float32"] = "bfloat16" if actor.model.dtype == torch.bfloat16 else "float32"
        reference = load_model(config.model, precision=precision, device=actor.device).model.requires_grad_(False)

    def asked(step: int) -> list[Question]:
        ones = np.ones(len(questions), np.int64)
        batch = BatchConfig(sequences=config.ppo.rollout.samples)
        draws = next(itertools.islice(plan_steps([ones], [ones], None, batch, config.seed), step - 1, None))
        return [questions[draw.family] for draw in draws]

    return PPOJob(
        actor=actor.model,
        reference=reference,
        optimizer=AdamW(
            {name: p for name, p in actor.model.named_parameters() if p.requires_grad},
            config.optim,
            rounding="stochastic" if config.precision == "bfloat16-stochastic" else "master",
            seed=config.seed,
        ),
        optim=config.optim,
        generator=_generator(config, actor),
        critic=critic,
        critic_weight=config.critic.weight,
        rewards={name: _reward(name, source) for name, source in config.rewards.items()},
        executor=executor,
        questions=asked,
        config=config.ppo,
        validation=validation[: config.data.num_validation],
        validate_every=config.validation.every,
        checkpoints=config.checkpoint,
        folder=config.output / "checkpoints",
        seed=config.seed,
        save_best=lambda: save_model(actor, config.output / "best"),
    )


def _generator(config: PPORecipe, actor: LoadedModel) -> Generator:
    """What samples from the actor as it is at each call."""
    if config.rollout_server is None:
        return FreshEngine(actor, config.max_batch)
    options = config.rollout_server.model_dump()
    return VllmSampler(
        actor, options.pop("url"), config.output / "rollouts", api_key=os.environ.get("STEERSMAN_API_KEY"), **options
    )


def _questions(paths: Sequence[str], config: PPORecipe, actor: LoadedModel, window: int) -> list[Question]:
    """The prompts of files. Those that leave no room for a whole response are left out, and said to be."""
    rollout, encoder, card = config.ppo.rollout, actor.encoder, actor.card
    sampling = Sampling(
        max_tokens=rollout.max_tokens, temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p
    )
    questions = []
    for path in paths:
        num_long = 0
        for _, asked in jsonl.parse_each(path, lambda line: parse_prompt(line, card.system)):
            request = answer_request(
                asked.conversation, encoder.template, card.attributes, asked.attributes, sampling, role=asked.role
            )
            ids = tuple(encoder.encode_prompt(request.prompt))
            if len(ids) + rollout.max_tokens > window:
                num_long += 1
                continue
            request = replace(request, prompt=request.prompt.model_copy(update={"token_ids": ids}))
            questions.append(Question(conversation=asked.conversation, role=asked.role, request=request))
        if num_long:
            logger.warning(
                "%s: %d prompts leave no room for a response of %d tokens in %d, and are left out; a smaller "
                "ppo.rollout.max_tokens keeps more",
                path,
                num_long,
                rollout.max_tokens,
                window,
            )
    if not questions:
        raise DataError("there is no prompt to answer", ", ".join(paths))
    return questions


def _reward(name: str, source: RewardSource) -> RewardFunction:
    """A reward beside the critic's, as the loop takes it."""
    if source.function is not None:
        score = _function(source.function)
    elif source.goal is not None:
        score = _weighed(source, source.goal)
    else:
        assert source.model is not None
        score = RewardModel(load_model(source.model)).rewards

    def of_responses(responses: Sequence[Response]) -> Sequence[float]:
        scores = score([_conversation(response) for response in responses])
        if len(scores) != len(responses):
            raise ConfigError(f"rewards.{name} gave {len(scores)} numbers for {len(responses)} conversations")
        return [float(number) for number in scores]

    return RewardFunction(weight=source.weight, score=of_responses)


def _conversation(response: Response) -> Conversation:
    """The question with the response as its last turn."""
    asked = response.question
    turn = Message(role=asked.role, value=answer_text(response.completion))
    return asked.conversation.model_copy(update={"conversations": [*asked.conversation.conversations, turn]})


Score = Callable[[Sequence[Conversation]], Sequence[float]]


def _function(name: str) -> Score:
    """The Python function that `module:name` names."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # the folder where the command runs
    try:
        function: Score = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"rewards: {name!r} cannot be imported ({error}); write module:function") from None
    return function


def _weighed(source: RewardSource, goal: Mapping[str, float]) -> Score:
    """The weighted sum of the values that a predictor expects."""
    scorer = open_predictor(source.model, source.url).scorer
    if unknown := sorted(set(goal) - set(scorer.schema.names)):
        raise ConfigError(f"rewards: {source.model} knows nothing of {', '.join(unknown)}, which the goal weighs")

    def score(conversations: Sequence[Conversation]) -> list[float]:
        judgements = scorer.judge(conversations)
        return [sum(weight * judgement.expected[name] for name, weight in goal.items()) for judgement in judgements]

    return score


def _restore(job: PPOJob) -> TrainingState:
    """Put actor and critic where both have been, the later the better.

    Raises:
        ConfigError: there is no such step.
    """
    ours, theirs = [0, *checkpoint.steps(job.folder)], job.critic.steps()
    common = sorted(set(ours) & set(theirs))
    if not common or (common == [0] and len(ours) > 1):
        raise ConfigError(
            f"{job.folder.parent} has checkpoints of steps {ours[1:]}, and the critic of {theirs[1:]}: none in common. "
            "Start serve-critic with the output folder it had, or begin the run anew in another output"
        )
    step = common[-1]
    job.critic.start(step, job.config.steps * job.config.updates_per_step)
    checkpoint.drop_after(job.folder, step)
    if not step:
        return TrainingState()
    state, tensors = checkpoint.load(job.folder, step)
    checkpoint.restore_counted(job.optimizer, tensors)
    return state


def _result(folder: Path) -> TrainResult:
    best, last = folder / "best", folder / "last"
    return TrainResult(
        best=best if best.exists() else last, last=last, metrics=orjson.loads((folder / RESULT).read_bytes())
    )
