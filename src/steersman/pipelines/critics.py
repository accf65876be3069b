"""A reward model's folder -> a critic: in this process, as a server serves it, or behind that server's address."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from steersman.card import ModelCard
from steersman.errors import ModelError
from steersman.models.adapters import LoraConfig, merge_adapter
from steersman.models.inference import speed_up
from steersman.models.load import LoadedModel, load_model, prepare_for_training
from steersman.randomness import derive_seed
from steersman.serving.critic import ServedCritic
from steersman.serving.critic_wire import vocabulary_fingerprint
from steersman.text.tokenize import load_tokenizer
from steersman.training.critic import CriticModel, CriticTraining, LocalCritic
from steersman.training.optim import AdamW


class CriticSettings(CriticTraining):
    """How a critic is made of a reward model, and trained.

    Attributes:
        lora: train an adapter: the frozen reward model and the critic are then one model.
        precision: "bfloat16" computes in bf16 and keeps fp32 master weights; "auto" is that where it is fast.
        keep: checkpoints that stay.
        seed: of the adapter's first weights.
    """

    lora: LoraConfig | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    keep: int = Field(default=2, ge=2)
    seed: int = 0


def open_critic(model: str, settings: CriticSettings, folder: Path, device: torch.device | None = None) -> ServedCritic:
    """The critic of a reward model.

    A folder without a reward model's head gets a new one that says 0, as a value and as a reward.

    Args:
        model: folder or hub id.
        folder: where its checkpoints go.

    Raises:
        ModelError: the folder cannot be used; it judges attributes by distributions, which are no rewards.
    """
    card = ModelCard.load(model)
    if card.head in ("values", "probe"):
        raise ModelError(f"{model} gives distributions of attribute values, and no reward; train a reward model")
    outputs = ("reward",) if card.head == "lm" else ()

    def load() -> LoadedModel:
        return load_model(model, precision=settings.precision, device=device, outputs=outputs)

    def open_model() -> CriticModel:
        loaded = load()
        if settings.lora is not None:
            loaded = replace(loaded, model=merge_adapter(loaded.model))
        torch.manual_seed(derive_seed(settings.seed, "critic adapter"))
        trained = prepare_for_training(loaded, loaded.encoder.spec, settings.lora).model.eval()
        parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
        rewards = None if settings.lora else load().model.requires_grad_(False)
        speed_up(trained if rewards is None else rewards)  # what is frozen
        return CriticModel(
            model=trained,
            rewards=rewards,
            weights=torch.tensor(_goal(card), device=loaded.device),
            optimizer=AdamW(parameters, settings.optim, rounding="master", seed=settings.seed),
        )

    critic = LocalCritic(open_model, settings, folder, keep=settings.keep)
    return ServedCritic(
        critic=critic,
        model=model,
        vocabulary=vocabulary_fingerprint(load_tokenizer(model)),
        window=critic.window,
        gives_rewards=card.head != "lm",
    )


def _goal(card: ModelCard) -> Sequence[float]:
    """The weight of each output of the head in the reward."""
    if card.head != "regression" or card.attributes is None:
        return [1.0]
    goal = card.goal or {}
    return [goal.get(name, 0.0) for name in card.attributes.names]
