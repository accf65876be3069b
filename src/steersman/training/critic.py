"""PPO's critic in process: it values every state of a response, and rewards the whole of it.

In: a reward model's folder, twice in one: as it is, frozen, it gives the rewards; as what is trained, it gives the
values. Under LoRA both are one model, with its adapter off and on; otherwise the frozen one is a copy. The value of a
state is read as the reward is, off the state's hidden vector, so a critic begins by knowing what the reward model does.

Shapes: B sequences, S tokens, padded on the right; T = S - 1 states; M states side by side; K outputs of the head.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from steersman.batches.packing import PackedBatch, Places, pack_padded
from steersman.config import Config
from steersman.errors import NonFiniteError
from steersman.models.adapters import frozen
from steersman.models.attention import Segments
from steersman.models.heads import scores
from steersman.models.load import hidden_states, plain_model
from steersman.objectives.ppo import value_loss
from steersman.training import checkpoint
from steersman.training.checkpoint import TrainingState
from steersman.training.optim import AdamW, OptimConfig, clip_factor, learning_rate


class CriticTraining(Config):
    """How a critic is trained.

    Attributes:
        optim: optimiser.
        value_clip: a value may move so far from what it was at the rollout before its gradient is clipped.
        micro_tokens: most input tokens of one forward pass; a longer sequence goes alone.
    """

    optim: OptimConfig
    value_clip: float = Field(default=0.2, gt=0)
    micro_tokens: int = Field(default=2048, ge=1)


@dataclass(frozen=True, kw_only=True)
class CriticModel:
    """What a critic computes with.

    Attributes:
        model: with a head that judges; its trainable parameters are trained.
        rewards: gives the rewards: a frozen copy, or None for `model` with its adapter off.
        weights: of the head's outputs, in the reward and in the value: f32[K].
        optimizer: of the trainable parameters.
    """

    model: PreTrainedModel | PeftModel
    rewards: PreTrainedModel | PeftModel | None
    weights: Tensor
    optimizer: AdamW


@dataclass(frozen=True)
class _Ahead:
    """Values of a micro-batch that will be learnt from, with the graph of them.

    Attributes:
        sequences: the tokens of each.
        places: which of these sequences, and which of its states, each value is of.
        values_M: f32.
        num_updates: the critic's, when it read them.
    """

    sequences: list[Tensor]
    places: Places
    values_M: Tensor
    num_updates: int

    def among(self, tokens_BS: Tensor, mask_BT: Tensor) -> tuple[Places, Tensor]:
        """The states of `mask_BT` that values are known of, and these values. A row that begins with one of the
        sequences will do; one that is given twice counts twice."""
        rows: list[int] = []
        for tokens_S in self.sequences:
            beginnings = tokens_BS[:, : len(tokens_S)]
            equal = [row for row, beginning in enumerate(beginnings) if torch.equal(beginning, tokens_S)]
            rows.append(next((row for row in equal if row not in rows), -1))
        row_M, state_M = torch.tensor(rows)[self.places[0]], self.places[1]
        found = (row_M >= 0).nonzero()[:, 0]
        found = found[mask_BT[row_M[found], state_M[found]]]
        return (row_M[found], state_M[found]), self.values_M[found.to(self.values_M.device)]


class LocalCritic:
    """A Critic in this process.

    Of what it learns next it reads the first micro-batch with a graph when it is valued, and not again to learn from.

    Args:
        open_model: makes the model as it is before any training; called again to begin anew.
        config: how it is trained.
        folder: where its checkpoints go.
        keep: how many of the newest stay; two at least, since the actor may have missed the last one.
    """

    def __init__(
        self, open_model: Callable[[], CriticModel], config: CriticTraining, folder: Path, *, keep: int = 2
    ) -> None:
        self._open_model, self._config, self._folder, self._keep = open_model, config, folder, max(2, keep)
        self._critic = open_model()
        self._planned_updates = 0
        self._ahead: _Ahead | None = None

    @property
    def num_updates(self) -> int:
        """Optimiser steps done."""
        return self._critic.optimizer.num_steps

    @property
    def window(self) -> int:
        """Longest sequence that it takes, in tokens."""
        return int(plain_model(self._critic.model).config.get_text_config().max_position_embeddings)

    def steps(self) -> list[int]:
        """The steps at which it can stand, ascending."""
        return [0, *checkpoint.steps(self._folder)]

    def start(self, step: int, num_updates: int) -> None:
        """Stand at this step, in a run of so many optimiser steps; later checkpoints are deleted.

        Raises:
            ModelError: there is no checkpoint of this step, or it is damaged.
        """
        checkpoint.drop_after(self._folder, step)
        self._ahead = None
        if self.num_updates:
            self._critic = self._open_model()
        if step:
            checkpoint.restore_counted(self._critic.optimizer, checkpoint.load(self._folder, step)[1])
        self._planned_updates = num_updates

    def infer(self, tokens_BS: Tensor, lengths_B: Tensor, next_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values f32[B, T] of all states before a sequence's last token (0 beyond), and rewards f32[B], read at it. Of
        the sequences in `next_B` it is to learn next."""
        critic = self._critic
        places_S = torch.arange(tokens_BS.shape[1])
        valued_BT = places_S[:-1] < lengths_B[:, None] - 1
        values_BT, rewards_B = torch.zeros(valued_BT.shape), torch.zeros(len(tokens_BS))
        if next_B is not None:
            next_BT = valued_BT & next_B[:, None]
            if self._ahead is None or self._ahead.num_updates != self.num_updates:
                self._ahead = self._read_ahead(tokens_BS, lengths_B, next_BT)
            if self._ahead:
                places, values_M = self._ahead.among(tokens_BS, next_BT)
                values_BT[places], valued_BT[places] = values_M.detach().float().cpu(), False
        last_BS = places_S == lengths_B[:, None] - 1
        padded_BS = torch.nn.functional.pad(tokens_BS, (0, 1))
        with torch.inference_mode():
            for places, batch in self._pack(tokens_BS, valued_BT):
                values_BT[places] = self._read(critic.model, batch).float().cpu()
            with frozen(critic.model, critic.rewards) as model:
                for (sequences_M, _), batch in self._pack(padded_BS, last_BS):
                    rewards_B[sequences_M] = self._read(model, batch).float().cpu()
        return values_BT, rewards_B

    def _read_ahead(self, tokens_BS: Tensor, lengths_B: Tensor, valued_BT: Tensor) -> _Ahead | None:
        """The first micro-batch of these states; None if there are none."""
        micro_batches = self._pack(tokens_BS, valued_BT)
        if not micro_batches:
            return None
        (sequence_M, state_M), batch = micro_batches[0]
        numbers, index_M = torch.unique(sequence_M, return_inverse=True)
        return _Ahead(
            sequences=[tokens_BS[number, : lengths_B[number]].clone() for number in numbers],
            places=(index_M, state_M),
            values_M=self._read(self._critic.model, batch),
            num_updates=self.num_updates,
        )

    def train(
        self, tokens_BS: Tensor, returns_BT: Tensor, prev_values_BT: Tensor, mask_BT: Tensor
    ) -> Mapping[str, float]:
        """One optimiser step on the states of `mask_BT`; the loss is their mean, whatever the micro-batches.

        Raises:
            NonFiniteError: the loss or its gradient is NaN or infinite; the weights are unchanged.
        """
        optimizer, config = self._critic.optimizer, self._config.optim
        optimizer.discard_gradients()  # of an attempt that failed midway
        loss_sum = num_clipped = 0.0
        for places, values_M in self._read_to_learn(tokens_BS, mask_BT):
            old_M, returns_M = (x_BT[places].to(values_M.device) for x_BT in (prev_values_BT, returns_BT))
            loss = value_loss(values_M, old_M, returns_M, clip=self._config.value_clip)
            loss.sum.backward()  # type: ignore[no-untyped-call]
            loss_sum += float(loss.sum.detach())
            num_clipped += float(loss.metrics["clip_fraction"])
        num = int(mask_BT.sum())
        loss_mean, grad_norm = loss_sum / num, optimizer.gradient_norm() / num
        if not (math.isfinite(loss_mean) and math.isfinite(grad_norm)):
            raise NonFiniteError(
                f"the critic's loss {loss_mean}, gradient norm {grad_norm} at its update {self.num_updates + 1}; "
                "try a lower critic.optim.lr, or float32"
            )
        lr = learning_rate(config, self.num_updates + 1, self._planned_updates)
        optimizer.step(lr, clip_factor(config, grad_norm) / num)
        return {"loss": loss_mean, "clip_fraction": num_clipped / num, "grad_norm": grad_norm, "lr": lr}

    def _read_to_learn(self, tokens_BS: Tensor, mask_BT: Tensor) -> Iterator[tuple[Places, Tensor]]:
        """The values of the states of `mask_BT`, a micro-batch at a time; first those that were read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead and ahead.num_updates == self.num_updates:
            places, values_M = ahead.among(tokens_BS, mask_BT)
            del ahead
            if len(values_M):
                mask_BT = mask_BT.index_put(places, torch.tensor(False))
                yield places, values_M
                del values_M
        for places, batch in self._pack(tokens_BS, mask_BT):
            yield places, self._read(self._critic.model, batch)

    def save(self, step: int) -> str:
        """Commit the state of `step`; a step that is saved already is what it was."""
        if step not in checkpoint.steps(self._folder):
            state = checkpoint.counted(self._critic.optimizer)
            checkpoint.save(self._folder, TrainingState(step=step), state, self._keep)
        return str(self._folder)

    def _pack(self, tokens_BS: Tensor, mask_BT: Tensor) -> list[tuple[Places, PackedBatch]]:
        return pack_padded(tokens_BS, mask_BT, self._config.micro_tokens)

    def _read(self, model: PreTrainedModel | PeftModel, batch: PackedBatch) -> Tensor:
        """What the head says at the batch's states: f32[M]."""
        device = self._critic.weights.device
        batch = batch.to(device)
        segments = Segments(batch.bounds, batch.parents)
        hidden_MH = hidden_states(model, batch.input_ids_1T, batch.position_ids_1T, segments, batch.trained_M)
        return scores(plain_model(model), hidden_MH) @ self._critic.weights
