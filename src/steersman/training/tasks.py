"""Tasks: what a model is trained for, as a function from a micro-batch to its `Loss`.

A task runs the model's backbone over the packed row, takes the hidden states at the trained positions, and hands them
to an objective. The loop knows nothing else about it.

Shapes: T tokens in the row, M trained positions, H hidden size, V vocabulary.
"""

from typing import Protocol

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from steersman.batches.packing import PackedBatch
from steersman.models.attention import Segments
from steersman.models.load import backbone, head_weight, logit_softcap
from steersman.objectives import Loss
from steersman.objectives.sft import fused_linear_cross_entropy

LOGITS_AT_ONCE = 2**27  # 256 MB in bf16: 512 rows of a vocabulary of 262,144


class Task(Protocol):
    """Computes the local loss of one micro-batch."""

    def __call__(self, batch: PackedBatch) -> Loss: ...


def hidden_states(model: PreTrainedModel | PeftModel, batch: PackedBatch) -> Tensor:
    """The last hidden states at the batch's trained positions, [M, H]."""
    output = backbone(model)(
        input_ids=batch.input_ids_1T,
        position_ids=batch.position_ids_1T,
        attention_context=Segments(batch.bounds, batch.parents),
        use_cache=False,
    )
    hidden_TH: Tensor = output.last_hidden_state[0]
    return hidden_TH.index_select(0, batch.trained_M)


def sft(model: PreTrainedModel | PeftModel) -> Task:
    """Next-token prediction at the trained tokens: conditioned answers and generative attribute labels alike."""

    def task(batch: PackedBatch) -> Loss:
        hidden_MH, weight_VH = hidden_states(model, batch), head_weight(model)
        chunk = max(1, LOGITS_AT_ONCE // weight_VH.shape[0])
        return fused_linear_cross_entropy(
            hidden_MH,
            weight_VH,
            batch.targets_M,
            chunk=chunk,
            softcap=logit_softcap(model),
            weight_grad_VH=weight_VH.grad if weight_VH.is_leaf else None,
        )

    return task
