"""The head that reads attribute values off a hidden state: `score` of `AutoModelForSequenceClassification`.

In: a backbone's weights, or a folder that was trained with the head. Out: the same backbone with a linear map from the
last hidden state, at the token where a label would begin, to the logits of all attributes' values side by side. It
stays in fp32, and starts at zero: every value is as likely as any other until training says otherwise.

Shapes: M answers, H hidden size, K = sum of the scales' sizes.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from steersman.attributes import AttributeSchema
from steersman.errors import ModelError
from steersman.models.weights import from_pretrained

WEIGHT = "score.weight"


def value_sizes(schema: AttributeSchema) -> list[int]:
    """How many of the logits belong to each attribute, in order; K in all."""
    return [len(attribute.values) for attribute in schema.attributes]


def value_logits(model: PreTrainedModel, hidden_MH: Tensor) -> Tensor:
    """[M, K], in fp32."""
    head: Any = model.score
    return F.linear(hidden_MH.to(head.weight.dtype), head.weight)


def load_with_head(path: str, schema: AttributeSchema, **options: Any) -> PreTrainedModel:
    """A backbone with the head of these attributes: the folder's own, or a new one.

    Raises:
        ModelError: the folder has a head of another size, or lacks weights of the backbone.
    """
    model, info = from_pretrained(
        AutoModelForSequenceClassification,
        path,
        new=[WEIGHT],
        num_labels=sum(value_sizes(schema)),
        ignore_mismatched_sizes=True,
        **options,
    )
    if info["mismatched_keys"]:
        raise ModelError(f"{path}: it has a head of another shape than {', '.join(schema.names)} need")
    set_head(model, None if WEIGHT in info["missing_keys"] else _read_head(Path(path)))
    return model


def set_head(model: PreTrainedModel, weight_KH: Tensor | None) -> None:
    """Put the head in fp32, with these weights or zeros."""
    head = cast(Any, model).score.float()
    with torch.no_grad():
        head.weight.copy_(torch.zeros_like(head.weight) if weight_KH is None else weight_KH)


def _read_head(folder: Path) -> Tensor:
    """The weights as they were saved; `from_pretrained` rounds them to the precision of the others."""
    index = folder / "model.safetensors.index.json"
    name = json.loads(index.read_bytes())["weight_map"][WEIGHT] if index.exists() else "model.safetensors"
    with safe_open(folder / name, framework="pt") as file:
        return cast(Tensor, file.get_tensor(WEIGHT))
