"""One training run, from a recipe to a model folder.

In: a `TrainConfig`, the files it names, a base model. Out: `<output>/` with

    config.yaml, inputs.json   what the run is; a run of another kind is refused
    metrics.jsonl              one line a step
    checkpoints/step-N/        training state for exact resume
    reference.safetensors      of a policy that learns from pairs: what it said of them before its first step
    best/, last/               model folders: lowest validation loss, and the end
    result.json                written last: the run is done

Run again after a crash at any moment, it continues from its last checkpoint to bit-identical weights.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import torch
from pydantic import BeforeValidator, Field, model_validator

from steersman import jsonl
from steersman.attributes import SCHEMAS, AttributeSchema
from steersman.batches.packing import PackedBatch, idle, pack, pack_all
from steersman.batches.plan import BatchConfig, Draw, plan_steps, share
from steersman.batches.sequences import Sequences
from steersman.card import ModelCard, Parent, TemplateSpec, TrainedHead
from steersman.config import Config
from steersman.errors import ConfigError, DataError, ModelError
from steersman.locks import hold
from steersman.models.adapters import LoraConfig
from steersman.models.heads import output_names
from steersman.models.load import (
    LoadedModel,
    load_model,
    plain_model,
    prepare_for_training,
    save_model,
)
from steersman.parallel.mesh import Mesh, join
from steersman.parallel.reduce import from_first
from steersman.pipelines import run_folder
from steersman.pipelines.training_files import Contrast, Survey, TrainingFiles
from steersman.randomness import derive_seed
from steersman.sources.prepare import Bar, no_bar
from steersman.training import checkpoint, metrics, tasks
from steersman.training.checkpoint import CheckpointConfig, TrainingState
from steersman.training.loop import Job, Report, ValidateConfig, train
from steersman.training.metrics import LogConfig, MetricsLog
from steersman.training.optim import AdamW, OptimConfig
from steersman.training.reference import with_reference, write_reference

RESULT = "result.json"
REFERENCE = "reference.safetensors"

HEADS: dict[str, tuple[TrainedHead, ...]] = {
    "sft": ("lm",),
    "attributes": ("lm", "values"),
    "reward": ("reward", "regression"),
    "dpo": ("lm",),
}
"""What each role can be trained with."""

HELPSTEER2_GOAL = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45}
"""HelpSteer2's weights (arXiv 2406.08673)."""

Precision = Literal["auto", "float32", "bfloat16", "bfloat16-stochastic"]


def schema_of(value: Any) -> Any:
    """A schema by name (`oasst`), or from a list of attribute names and attribute records."""
    if isinstance(value, str):
        if value not in SCHEMAS:
            raise ValueError(f"no schema {value!r}; choose from {', '.join(SCHEMAS)}, or list attribute names")
        return SCHEMAS[value]
    if isinstance(value, (list, tuple)):
        return {"attributes": [{"name": item} if isinstance(item, str) else item for item in value]}
    return value


class TrainFile(Config):
    """One file to train on.

    Attributes:
        path: conversation JSONL, or preference pairs for a reward model that compares and for role: dpo.
        weight: its share of the sequences, in any unit; all files have one, or none (shares by size).
    """

    path: str
    weight: float | None = Field(default=None, gt=0)


class DataConfig(Config):
    """What to train on, and what to validate on: name -> file."""

    train: tuple[TrainFile, ...] = Field(min_length=1)
    validation: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if len({file.weight is None for file in self.train}) > 1:
            raise ValueError("give every training file a weight, or none")
        return self


class TrainSettings(Config):
    """How to train, whatever the model and the data.

    Attributes:
        seq_len: longest sequence, in input tokens; longer ones are cut.
        batch: size of a step.
        steps, epochs: length of the run; exactly one. An epoch is as many sequences as all training files hold.
        contrast: w of `objectives.contrast`: each labelled answer is trained under its own label and, beside it, to be
            less likely under another's; the label then counts for this many tokens. 0 trains answers alone.
        optim: optimiser.
        lora: train an adapter instead of all weights.
        freeze: regular expressions; a parameter whose name one of them matches (from its beginning) keeps its value.
            Nothing is computed for a gradient below the lowest layer that is trained.
        precision: "bfloat16" computes in bf16 and keeps fp32 master weights, "bfloat16-stochastic" keeps everything in
            bf16, "auto" is "bfloat16" where the processor is fast at it and "float32" elsewhere.
        activation_checkpointing: compute activations again in the backward pass instead of keeping them.
        validation: when to validate, and on how much.
        checkpoint: when to save the training state.
        seed: of the order of the data, initial weights and adapters, dropout, stochastic rounding.
        log: TensorBoard and Weights & Biases.
    """

    seq_len: int = Field(ge=2)
    batch: BatchConfig
    steps: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    contrast: float = Field(default=0.0, ge=0)
    optim: OptimConfig
    lora: LoraConfig | None = None
    freeze: tuple[str, ...] = ()
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    validation: ValidateConfig = Field(default_factory=ValidateConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    seed: int = 0
    log: LogConfig = Field(default_factory=LogConfig)

    @model_validator(mode="after")
    def _check_length(self) -> "TrainSettings":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self


class TrainConfig(TrainSettings):
    """The recipe of one training run.

    Attributes:
        model: Hugging Face folder or id; a model that we trained lends its template.
        from_scratch: random weights after the model's config.json, instead of its weights.
        output: folder of the run.
        role: "sft", "attributes" for an attribute predictor, "reward" for a reward model, or "dpo" for direct
            preference optimisation (see `objectives.dpo`): a model learns from pairs, from the reference that it is at
            first.
        head: see `card.Head`. An attribute predictor writes labels ("lm") or reads the values of all attributes off the
            state of an answer's end ("values"), which takes far fewer labels to learn. A reward model compares pairs of
            answers ("reward") or regresses attributes ("regression"). By default a role's first.
        template: how conversations are written; by default as a model of ours was trained, and extra_id for others.
        attributes: the label schema: oasst, helpsteer, merged, or a list of names; needed when the data has labels.
        goal: attribute -> weight, of a regression model: its reward is the weighted sum of the values. By default
            HelpSteer2's.
        margin_scale: a pair's margin times this is by how much its rewards are to differ at even odds.
        beta: of role: dpo, what a nat of divergence from the reference costs; 0.1 is usual.
        data: files.
    """

    model: str
    from_scratch: bool = False
    output: Path
    role: Literal["sft", "attributes", "reward", "dpo"]
    head: TrainedHead
    template: TemplateSpec | None = None
    attributes: Annotated[AttributeSchema | None, BeforeValidator(schema_of)] = None
    goal: dict[str, float] = Field(default_factory=lambda: dict(HELPSTEER2_GOAL))
    margin_scale: float = Field(default=0.0, ge=0)
    beta: float | None = Field(default=None, gt=0)
    data: DataConfig

    @model_validator(mode="before")
    @classmethod
    def _default_head(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"head": HEADS.get(values.get("role", ""), ("lm",))[0], **values}

    @model_validator(mode="after")
    def _check_head(self) -> "TrainConfig":
        if self.head == "lm" and self.template and self.template.kind == "transcript":
            raise ValueError("a transcript says nowhere that an answer has ended; it is for heads that judge")
        if self.head not in HEADS[self.role]:
            raise ValueError(f"role {self.role} has head {' or '.join(HEADS[self.role])}, not {self.head}")
        if self.attributes is None and (self.role == "attributes" or self.head == "regression"):
            raise ValueError("attributes are needed: a schema such as oasst, or a list of names")
        if self.head == "regression" and not set(self.goal) <= set(self.attributes.names if self.attributes else ()):
            raise ValueError(f"goal weighs {', '.join(self.goal)}; give a goal over the recipe's attributes")
        compares = self.head == "reward" or self.role == "dpo"
        if compares and (self.attributes is not None or self.batch.sequences is not None):
            which = "role: dpo" if self.role == "dpo" else "head: reward"
            raise ValueError(f"{which} compares pairs: it has no attributes, and batch.pairs (or tokens) to a step")
        if (self.role == "dpo") != (self.beta is not None):
            raise ValueError("role: dpo needs beta, 0.1 for example; no other role has one")
        if self.contrast and (self.role != "sft" or self.attributes is None or self.batch.sequences is not None):
            raise ValueError("contrast is for role: sft with attributes, and batch.tokens (or pairs) to a step")
        if not compares and (self.margin_scale or (self.batch.pairs is not None and not self.contrast)):
            raise ValueError("batch.pairs and margin_scale are for head: reward and role: dpo")
        return self


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A finished run.

    Attributes:
        best: model folder with the lowest validation loss; `last` when there was no validation.
        last: model folder of the end.
        metrics: of the last step, with `best_validation_loss` (if any), and `seconds` and `num_trained` of all steps.
    """

    best: Path
    last: Path
    metrics: dict[str, float]


def run_training(
    config: TrainConfig, on_step: Callable[[Report], Any] = lambda report: None, bar: Bar = no_bar
) -> TrainResult:
    """Train a model, or go on with a run that was cut, or return the result of one that is done.

    `on_step` hears of every step, a `bar` shows what goes before the first. Under torchrun every process calls this,
    and the first one writes.

    Raises:
        ConfigError, DataError, ModelError, TokenizerError: the recipe or what it names cannot be used.
        OutputError: the output folder belongs to another run, another process is at this one, or it cannot be written.
        NonFiniteError: the loss or a gradient is NaN or infinite; the last checkpoint stands.
    """
    mesh = join()
    with hold(config.output) if mesh.rank == 0 else nullcontext():
        return _run(config, mesh, on_step, bar)


def _run(config: TrainConfig, mesh: Mesh, on_step: Callable[[Report], Any], bar: Bar) -> TrainResult:
    files = [*(file.path for file in config.data.train), *config.data.validation.values()]
    parents = run_folder.parents([config.model], files)
    if mesh.rank == 0:
        run_folder.claim(config, config.output, parents)
    from_first(0, mesh)
    if (config.output / RESULT).exists():
        return _result(config.output)

    loaded = _load(config, mesh)
    survey = Survey()
    reader = TrainingFiles(
        head=config.head,
        attributes=config.attributes,
        encoder=loaded.encoder,
        seq_len=config.seq_len,
        max_family=config.batch.max_family,
        margin_scale=config.margin_scale,
        contrast=_contrast(config),
        pair_system=loaded.card.system if config.role == "dpo" else None,
    )
    training = [reader.read(file.path, survey) for file in config.data.train]
    validation = {name: reader.read(path, Survey()) for name, path in config.data.validation.items()}
    if config.role == "dpo":
        training, validation = _with_reference(config, loaded, training, validation, mesh, bar)
    loaded = replace(loaded, card=_card(config, loaded, survey, parents))
    job = _job(config, loaded, training, validation, mesh)
    state = _restore(job, mesh)
    if mesh.rank == 0:
        with closing(MetricsLog(config.output, config.log, state.step, config.model_dump(mode="json"))) as log:
            state = train(job, state, mesh, log, on_step)
        save_model(loaded, config.output / "last")
        jsonl.write_bytes(config.output / RESULT, jsonl.dumps(_summary(config.output, state)))
    else:
        train(job, state, mesh, None, on_step)
    from_first(0, mesh)
    return _result(config.output)


def _load(config: TrainConfig, mesh: Mesh) -> LoadedModel:
    """The model, ready to be trained, in the precision of its weights."""
    if ModelCard.load(config.model).head == "probe":
        raise ModelError(f"{config.model} is a probe, whose head is not trained further; train from its base model")
    loaded = load_model(
        config.model,
        precision="bfloat16" if config.precision == "bfloat16-stochastic" else config.precision,
        device=mesh.device,
        from_scratch_seed=config.seed if config.from_scratch else None,
        outputs=output_names(config.head, config.attributes),
    )
    if config.seq_len > loaded.window:
        raise ConfigError(f"seq_len {config.seq_len} exceeds the {loaded.window} tokens that {config.model} can take")
    torch.manual_seed(derive_seed(config.seed, "adapter"))
    loaded = prepare_for_training(
        loaded, config.template or ModelCard.load(config.model).training_template, config.lora, config.freeze
    )
    if config.activation_checkpointing:
        plain_model(loaded.model).activation_checkpointing_enable()
    return loaded


def _contrast(config: TrainConfig) -> Contrast | None:
    if not config.contrast:
        return None
    assert config.attributes
    return Contrast([file.path for file in config.data.train], config.attributes, config.seed)


def _with_reference(
    config: TrainConfig,
    loaded: LoadedModel,
    training: Sequence[Sequences],
    validation: dict[str, Sequences],
    mesh: Mesh,
    bar: Bar,
) -> tuple[list[Sequences], dict[str, Sequences]]:
    """The pairs with what the model says of their answers before it is trained."""
    path, data = config.output / REFERENCE, [*training, *validation.values()]
    if not from_first(path.exists(), mesh):
        total = sum(int(pairs.families[-1]) for pairs in data) // mesh.size
        with bar("reference", total=total, unit="answers") as progress:
            size = config.batch.micro_tokens
            write_reference(path, loaded.model, data, micro_tokens=size, mesh=mesh, progress=progress)
    read = with_reference(path, data)
    return read[: len(training)], dict(zip(validation, read[len(training) :], strict=True))


def _card(config: TrainConfig, loaded: LoadedModel, survey: Survey, parents: tuple[Parent, ...]) -> ModelCard:
    """The card of the trained model: only attributes with training labels, the data's most common system prompt.

    A predictor's attributes default to their most common label, which is what its labels are drafted from. A policy
    that learnt from pairs keeps the attributes that it had.
    """
    if config.attributes is not None and not survey.labels:
        files = ", ".join(file.path for file in config.data.train)
        raise DataError("the recipe names attributes, but no TEXT_TO_VALUE or VALUE_TO_TEXT record has a label", files)
    attributes = config.attributes and config.attributes.restrict(set(survey.labels))
    if config.head != "lm" and attributes != config.attributes and config.attributes:
        missing = ", ".join(name for name in config.attributes.names if name not in survey.labels)
        raise ConfigError(f"no label of the training data has {missing}; leave that out of the recipe's attributes")
    if attributes and config.role == "attributes":
        attributes = attributes.with_defaults({n: max(c, key=lambda v: (c[v], -v)) for n, c in survey.labels.items()})
    if config.role == "dpo":
        attributes = loaded.card.attributes
    return ModelCard(
        role="sft" if config.role == "dpo" else config.role,
        head=config.head,
        template=loaded.encoder.spec,
        attributes=attributes,
        goal=config.goal if config.head == "regression" else None,
        system=survey.systems.most_common(1)[0][0],
        seq_len=config.seq_len,
        parents=parents,
    )


def _job(
    config: TrainConfig,
    loaded: LoadedModel,
    training: Sequence[Sequences],
    validation: dict[str, Sequences],
    mesh: Mesh,
) -> Job:
    """The run as the loop takes it."""
    weights = [file.weight for file in config.data.train]
    micro_tokens = config.batch.micro_tokens

    def plan() -> Iterator[list[Draw]]:
        lengths, sizes = ([getattr(file, name) for file in training] for name in ("lengths", "sizes"))
        shares = None if weights[0] is None else [weight or 0.0 for weight in weights]
        return plan_steps(lengths, sizes, shares, config.batch, config.seed, config.epochs)

    num_steps = config.steps or sum(1 for _ in plan())

    def batches(after: int) -> Iterator[list[PackedBatch]]:
        for draws in itertools.islice(plan(), after, num_steps):
            families = [training[draw.dataset][draw.family] for draw in draws]
            mine = share([len(family.inputs_T) for family in families], mesh.size)[mesh.rank]
            yield pack([families[index] for index in mine], micro_tokens)

    def validation_rows(sequences: Sequences) -> list[PackedBatch]:
        rows = pack_all(sequences, micro_tokens, config.validation.batches)
        return list(itertools.islice(rows, mesh.rank, None, mesh.size)) or [idle()]

    return Job(
        model=loaded.model,
        task=_task(config, loaded),
        optimizer=AdamW(
            {name: p for name, p in loaded.model.named_parameters() if p.requires_grad},
            config.optim,
            rounding="stochastic" if config.precision == "bfloat16-stochastic" else "master",
            seed=config.seed,
            sums=config.batch.several_micro_batches(config.seq_len) or mesh.size > 1,
        ),
        batches=batches,
        num_steps=num_steps,
        validation={name: validation_rows(sequences) for name, sequences in validation.items()},
        validate=config.validation,
        checkpoints=config.checkpoint,
        folder=config.output / "checkpoints",
        seed=config.seed,
        save_best=lambda: save_model(loaded, config.output / "best"),
    )


def _task(config: TrainConfig, loaded: LoadedModel) -> tasks.Task:
    match config.head:
        case "lm" if config.contrast:
            return tasks.contrast(loaded.model, config.contrast)
        case "lm" if config.beta is not None:
            return tasks.dpo(loaded.model, config.beta)
        case "lm":
            return tasks.sft(loaded.model)
        case "reward":
            return tasks.reward(loaded.model)
        case "regression":
            return tasks.regression(loaded.model)
        case "values":
            assert config.attributes
            return tasks.values(loaded.model, config.attributes)


def _restore(job: Job, mesh: Mesh) -> TrainingState:
    """Put the last checkpoint into the optimiser and the model, if there is one."""
    step = from_first(max(checkpoint.steps(job.folder), default=0), mesh)
    if not step:
        return TrainingState()
    state, tensors = checkpoint.load(job.folder, int(step))
    job.optimizer.load_state(tensors, state.step)
    return state


def _summary(folder: Path, state: TrainingState) -> dict[str, float]:
    """The last step's numbers, totals over all steps, and the lowest validation loss."""
    rows = metrics.read(folder)
    totals = {name: sum(row[name] for row in rows) for name in ("seconds", "num_trained", "num_tokens")}
    best = {} if state.best_loss is None else {"best_validation_loss": state.best_loss}
    return {**rows[-1], **totals, **best}


def _result(folder: Path) -> TrainResult:
    best, last = folder / "best", folder / "last"
    numbers = orjson.loads((folder / RESULT).read_bytes())
    return TrainResult(best=best if best.exists() else last, last=last, metrics=numbers)
