"""AdamW (arXiv 1711.05101) for weights of any precision, and learning-rate schedules.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w - lr * (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w)

fp32 weights are updated as they are. bf16 weights have 8 significant bits, so that a step of usual size would be
rounded away; two remedies are offered:

- "master": the optimiser takes its steps in fp32. A bf16 weight is the rounded upper half of an fp32 one, so it keeps
  only what the rounding took, in 16 bits more, and no second copy. Gradients that are summed, over micro-batches or
  processes, are summed in fp32; one that comes whole stays as it comes. 14 bytes a parameter, or 16.
- "stochastic": weights and moments stay in bf16; a step is computed in fp32 and rounded up or down with probabilities
  that make the mean exact. 8 bytes a parameter.

All the work is done on blocks that fit the processor's cache, so weights, moments and gradients cross the memory bus
once a step. As in NeMo everything decays except norms and biases, that is, all that has fewer than two dimensions.

Without decay a row of a weight stays as it is until it has had a gradient. Of an input embedding that is most of the
vocabulary, for good; a step leaves such rows out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from steersman.config import Config
from steersman.errors import ModelError
from steersman.randomness import derive_seed

Rounding = Literal["master", "stochastic"]

CPU_BLOCK, GPU_BLOCK = 2**17, 2**26  # elements
VOCABULARY = 2**14
"""Rows from which on a weight is taken for an embedding, where it pays to ask which of them have a gradient."""


class OptimConfig(Config):
    """AdamW's hyper-parameters and the learning rate over time.

    Attributes:
        lr: peak learning rate.
        min_lr: where "cosine" and "linear" end.
        schedule: the way down from the peak.
        warmup_steps: steps of a linear rise from 0 to the peak, before the schedule.
        betas, eps, weight_decay: as in the equations.
        clip_norm: longest gradient (L2 norm over all parameters); None for no clipping.
    """

    lr: float = Field(gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of step `step` (from 1) of `num_steps`: the peak is reached at the last warm-up step, `min_lr` would be
    reached by the step after the last."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - 1 - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    if config.schedule == "constant":
        height = 1.0
    elif config.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        height = 1 - progress
    return config.min_lr + (config.lr - config.min_lr) * height


def clip_factor(config: OptimConfig, grad_norm: float) -> float:
    """What shortens a gradient of this norm to `clip_norm`, at most 1."""
    return 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / max(grad_norm, 1e-12))


def round_stochastic(values: Tensor, noise: Tensor) -> Tensor:
    """fp32 values rounded to bf16, to either neighbour, so that the expected value is the value.

    A bf16 number is the upper half of an fp32 one: adding uniform noise to the lower half carries into the upper half
    with probability lower / 2^16.

    Args:
        values: f32, finite.
        noise: i32 of the same shape, uniform on [0, 2^16).
    """
    return ((values.view(torch.int32) + noise) >> 16).to(torch.int16).view(torch.bfloat16)


def split_master(values: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 values as bf16, rounded to nearest (away from zero at a tie), and what that took from their bits (i16)."""
    bits = values.view(torch.int32)
    upper = (bits + 2**15) >> 16
    return upper.to(torch.int16).view(torch.bfloat16), bits.to(torch.int16)  # bits that do not fit are dropped


def join_master(upper: Tensor, lower: Tensor) -> Tensor:
    """The fp32 values of which `split_master` made these, bit by bit."""
    return torch.add(lower.to(torch.int32), upper.view(torch.int16), alpha=2**16).view(torch.float32)


def _wide(tensor: Tensor) -> torch.dtype:
    """What to compute in: fp32, or what is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(tensor: Tensor) -> tuple[Tensor, ...]:
    """Views of its elements, a block each."""
    return torch.split(tensor.view(-1), CPU_BLOCK if tensor.device.type == "cpu" else GPU_BLOCK)


def _nonzero_rows(matrix_RC: Tensor) -> Tensor:
    """Which rows are not all zeros: bool[R]."""
    row_bytes = matrix_RC.shape[1] * matrix_RC.element_size()
    return ((matrix_RC.view(torch.int64) if row_bytes % 8 == 0 else matrix_RC) != 0).any(1)


def _few(chosen_R: Tensor) -> Tensor | None:
    """The indices of the chosen rows, if they are few enough to be worth taking out."""
    return chosen_R.nonzero()[:, 0] if int(chosen_R.sum()) <= len(chosen_R) // 2 else None


def _noise(num: int, generator: torch.Generator) -> Tensor:
    """i32[num], uniform on [0, 2^16): four from each 64-bit draw."""
    draws = torch.empty((num + 3) // 4, dtype=torch.int64, device=generator.device)
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.int16)[:num].to(torch.int32) & 0xFFFF


@dataclass(frozen=True)
class _Slot:
    """One parameter and its state.

    Attributes:
        lower: what an fp32 weight has beyond it, under "master".
        moved: which rows have had a gradient: bool[R]; None where that is not asked.
    """

    parameter: nn.Parameter
    exp_avg: Tensor
    exp_avg_sq: Tensor
    lower: Tensor | None
    moved: Tensor | None

    @property
    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad

    @property
    def compact_gradient(self) -> Tensor:
        """The gradient, or those of its rows that are not all zeros."""
        may_rest = self.moved is not None and not self.moved.all()
        rows = _few(_nonzero_rows(self.gradient)) if may_rest else None
        return self.gradient if rows is None else self.gradient[rows]

    def moving_rows(self) -> Tensor | None:
        """Indices of the rows that have had a gradient, this one included; None for all."""
        if self.moved is None or self.moved.all():
            return None
        return _few(self.moved.logical_or_(_nonzero_rows(self.gradient)))

    @property
    def decays(self) -> bool:
        return self.parameter.ndim >= 2

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a step changes."""
        state = {"weight": self.parameter.detach(), "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return state if self.lower is None else {**state, "lower": self.lower}


class AdamW:
    """The optimiser of the trainable parameters of a model.

    Args:
        parameters: by name, fp32 or bf16. Each is given a gradient of zeros that stays its gradient from step to step,
            in fp32 for bf16 parameters under "master" if `sums`.
        config: hyper-parameters.
        rounding: what happens to bf16 parameters.
        seed: of the stochastic rounding.
        sums: whether a step's gradient is a sum over micro-batches or processes.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimConfig,
        *,
        rounding: Rounding,
        seed: int,
        sums: bool = True,
    ) -> None:
        self.config, self.seed, self.num_steps = config, seed, 0
        self._slots: dict[str, _Slot] = {}
        for name, parameter in parameters.items():
            lower, dtype = None, parameter.dtype
            if rounding == "master" and dtype == torch.bfloat16:
                lower, dtype = torch.zeros_like(parameter, dtype=torch.int16), torch.float32
                parameter.grad_dtype = torch.float32 if sums else torch.bfloat16
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            exp_avg, exp_avg_sq = (torch.zeros_like(parameter, dtype=dtype) for _ in range(2))
            draws = lower is None and dtype == torch.bfloat16  # stochastic rounding, for all rows
            asks = parameter.ndim == 2 and len(parameter) >= VOCABULARY and not (config.weight_decay or draws)
            moved = exp_avg.new_zeros(len(parameter), dtype=torch.bool) if asks else None
            self._slots[name] = _Slot(parameter, exp_avg, exp_avg_sq, lower, moved)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [slot.parameter for slot in self._slots.values()]

    @torch.no_grad()
    def gradient_norm(self) -> float:
        """L2 norm over all gradients."""
        parts = (part for slot in self._slots.values() for part in _blocks(slot.compact_gradient))
        norms = [torch.linalg.vector_norm(part, dtype=_wide(part)) for part in parts]  # which may be widened
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def step(self, lr: float, scale: float) -> None:
        """One update along `scale` times the gradients, which are then set to zero."""
        self.num_steps += 1
        generators = {p.device: torch.Generator(p.device) for p in self.parameters}
        for generator in generators.values():
            generator.manual_seed(derive_seed(self.seed, "rounding", self.num_steps))
        for slot in self._slots.values():
            self._update(slot, lr, scale, generators[slot.parameter.device])
            increment_version(slot.parameter)  # the fused step does not count as a write; see models.derived

    def _update(self, slot: _Slot, lr: float, scale: float, generator: torch.Generator) -> None:
        tensors = [slot.gradient, *slot.tensors.values()]
        rows = slot.moving_rows()
        parts = tensors if rows is None else [tensor[rows] for tensor in tensors]
        self._update_all(slot, parts, lr, scale, generator)
        if rows is not None:
            for tensor, part in zip(tensors, parts, strict=True):
                tensor[rows] = part

    def _update_all(
        self, slot: _Slot, tensors: Sequence[Tensor], lr: float, scale: float, generator: torch.Generator
    ) -> None:
        """The step of a gradient and what `slot.tensors` names, or of some rows of each; the gradient becomes zero."""
        for grad, *stored in zip(*map(_blocks, tensors), strict=True):
            parameter, *moments = stored[:3]
            weight = parameter.to(_wide(parameter)) if slot.lower is None else join_master(parameter, stored[3])
            exp_avg, exp_avg_sq = (moment.to(_wide(moment)) for moment in moments)
            adamw(
                [weight],
                [grad.to(weight.dtype) * scale],
                [exp_avg],
                [exp_avg_sq],
                max_exp_avg_sqs=[],
                state_steps=[torch.tensor(self.num_steps - 1.0, device=grad.device)],
                fused=True,
                amsgrad=False,
                beta1=self.config.betas[0],
                beta2=self.config.betas[1],
                lr=lr,
                weight_decay=self.config.weight_decay if slot.decays else 0.0,
                eps=self.config.eps,
                maximize=False,
            )
            grad.zero_()
            if slot.lower is not None:
                for tensor, half in zip((parameter, stored[3]), split_master(weight), strict=True):
                    tensor.copy_(half)
            elif parameter.dtype == torch.bfloat16:
                noise = _noise(len(weight), generator)
                for tensor, wide in zip(stored, (weight, exp_avg, exp_avg_sq), strict=True):
                    tensor.copy_(round_stochastic(wide, noise))

    @torch.no_grad()
    def discard_gradients(self) -> None:
        """Forget the gradients of a step that is not taken."""
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter.grad.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, weights included, as views."""
        return {f"{name}.{part}": t for name, slot in self._slots.items() for part, t in slot.tensors.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], num_steps: int) -> None:
        """Continue from a `state` after `num_steps` steps: parameters take its weights.

        Raises:
            ModelError: it is of another kind of optimiser.
        """
        own = self.state()
        if missing := sorted(own.keys() - state.keys()):
            raise ModelError(
                f"the checkpoint has no {missing[0]}: another version of Steersman wrote it; train into a new folder"
            )
        self.num_steps = num_steps
        for name, tensor in own.items():
            tensor.copy_(state[name])
        for slot in self._slots.values():
            if slot.moved is not None:
                torch.logical_or(_nonzero_rows(slot.exp_avg), _nonzero_rows(slot.exp_avg_sq), out=slot.moved)
