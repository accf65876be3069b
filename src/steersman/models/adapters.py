"""LoRA adapters in peft's format: wrapping a model for training, and merging an adapter into its base.

h = W x + (alpha / rank) B A x, with W frozen (arXiv 2106.09685). Rows of tokens that were added to the vocabulary are
trained beside it, since a frozen row could never learn what a new control token means.

peft is imported only where an adapter is read or made: a plain model starts sooner without it.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from steersman.config import Config
from steersman.models.heads import WEIGHT

if TYPE_CHECKING:
    from peft import PeftModel

TRAINED_PARTS = ("lora_", "trainable_tokens_delta", "modules_to_save")
"""In the names of an adapter's parameters: the update, rows of new tokens, the head that judges."""


class LoraConfig(Config):
    """LoRA's hyper-parameters.

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the adapter's input, in training.
        targets: names of the linear layers that are adapted; "all-linear" takes every one but the head.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


def add_lora(model: PreTrainedModel, config: LoraConfig, new_token_ids: list[int]) -> "PeftModel":
    """The model with a fresh adapter: only it, the rows of `new_token_ids` and a head that judges are trainable."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import TaskType, get_peft_model

    # Tied embeddings are one weight, and go by the input's name: peft lets the head follow.
    both = (model.get_output_embeddings(), model.get_input_embeddings())
    embeddings = {id(embedding.weight): embedding for embedding in both if embedding is not None}
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    rows = {names[id(embedding)]: new_token_ids for embedding in embeddings.values()}
    peft_config = PeftLoraConfig(
        task_type=TaskType.CAUSAL_LM if model.get_output_embeddings() else TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.targets,
        trainable_token_indices=rows if new_token_ids else None,
    )
    return _lean(get_peft_model(model, peft_config))


def read_adapter(model: PreTrainedModel, folder: str, *, judges: bool) -> "PeftModel":
    """The model with a folder's adapter; with a head too when it `judges`, the adapter's own or else the model's."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel, TaskType, get_peft_model, load_peft_weights, set_peft_model_state_dict

    if not judges:
        return _lean(PeftModel.from_pretrained(model, folder))
    peft_config = PeftLoraConfig.from_pretrained(folder)
    peft_config.task_type = TaskType.SEQ_CLS  # peft then copies the head, to train and save it with the adapter
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    rows = peft_config.trainable_token_indices or {}
    peft_config.trainable_token_indices = {name: ids for name, ids in rows.items() if name in modules} or None
    weights = {f"base_model.model.{WEIGHT}": model.get_parameter(WEIGHT).clone(), **load_peft_weights(folder, "cpu")}
    adapted = get_peft_model(model, peft_config)
    set_peft_model_state_dict(adapted, weights)
    return _lean(adapted)


def _lean(model: "PeftModel") -> "PeftModel":
    from steersman.models.low_rank import lighten_lora

    lighten_lora(model)
    return model


def has_adapter(model: "PreTrainedModel | PeftModel") -> bool:
    """Whether peft is wrapped around the model."""
    return not isinstance(model, PreTrainedModel)


def merge_adapter(model: "PreTrainedModel | PeftModel") -> PreTrainedModel:
    """The plain model with an adapter's update added to its weights; a plain model is returned as it is."""
    return model.merge_and_unload() if has_adapter(model) else model


@contextlib.contextmanager
def frozen(
    model: "PreTrainedModel | PeftModel", copy: "PreTrainedModel | PeftModel | None"
) -> "Iterator[PreTrainedModel | PeftModel]":
    """The model as it was before training: its frozen copy, or where there is none itself with its adapter off."""
    if copy is not None:
        yield copy
    else:
        with model.disable_adapter():
            yield model
