"""Tasks: what a model is trained for, as a function from a micro-batch to its `Loss`.

A task runs the model's backbone over the packed row, takes the hidden states at the trained positions, and hands them
to an objective. The loop knows nothing else about it.

Shapes: T tokens in the row, M trained positions, H hidden size, V vocabulary, A attributes, P pairs.
"""

from typing import Protocol

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from steersman.attributes import AttributeSchema
from steersman.batches.packing import PackedBatch
from steersman.models.attention import Segments
from steersman.models.heads import scores, value_sizes
from steersman.models.load import head_weight, hidden_states, logit_softcap, plain_model
from steersman.objectives import Loss
from steersman.objectives.contrast import label_contrast
from steersman.objectives.dpo import direct_preference
from steersman.objectives.logprobs import TokenScores, token_scores
from steersman.objectives.reward import bradley_terry, squared_error
from steersman.objectives.sft import cross_entropy
from steersman.objectives.values import value_cross_entropy


class Task(Protocol):
    """Computes the local loss of one micro-batch."""

    def __call__(self, batch: PackedBatch) -> Loss: ...


def _hidden_states(model: PreTrainedModel | PeftModel, batch: PackedBatch) -> Tensor:
    """The last hidden states at the batch's trained positions, [M, H]."""
    segments = Segments(batch.bounds, batch.parents)
    return hidden_states(model, batch.input_ids_1T, batch.position_ids_1T, segments, batch.trained_M)


def predictions(
    model: PreTrainedModel | PeftModel,
    batch: PackedBatch,
    *,
    entropies: bool = False,
    entropy_gradient: bool = False,
    temperature: float = 1.0,
) -> TokenScores:
    """What the model says of the trained tokens."""
    hidden_MH, weight_VH = _hidden_states(model, batch), head_weight(model)
    return token_scores(
        hidden_MH,
        weight_VH,
        batch.targets_M,
        entropies=entropies,
        entropy_gradient=entropy_gradient,
        temperature=temperature,
        softcap=logit_softcap(model),
        weight_grad_VH=weight_VH.grad if weight_VH.is_leaf else None,
    )


def sft(model: PreTrainedModel | PeftModel) -> Task:
    """Next-token prediction at the trained tokens: conditioned answers and generative attribute labels alike."""

    def task(batch: PackedBatch) -> Loss:
        return cross_entropy(predictions(model, batch))

    return task


def contrast(model: PreTrainedModel | PeftModel, weight: float) -> Task:
    """Answers under another's label and under their own, in pairs; see `objectives.contrast`."""

    def task(batch: PackedBatch) -> Loss:
        return label_contrast(predictions(model, batch).logprobs_M, batch.sizes, weight)

    return task


def dpo(model: PreTrainedModel | PeftModel, beta: float) -> Task:
    """Which of two answers is better. They come in pairs; an answer's values are its odds, its margin, and its
    log-probability under the reference (see `training.reference`)."""

    def task(batch: PackedBatch) -> Loss:
        logprobs_M = predictions(model, batch).logprobs_M
        values_P23 = batch.values_BA.view(-1, 2, 3)
        better_P, margin_P = values_P23[:, 0, :2].unbind(1)
        return direct_preference(logprobs_M, batch.sizes, values_P23[:, :, 2], better_P, margin_P, beta)

    return task


def values(model: PreTrainedModel | PeftModel, schema: AttributeSchema) -> Task:
    """The attribute values of an answer, each as a distribution over its scale."""
    sizes = value_sizes(schema)

    def task(batch: PackedBatch) -> Loss:
        logits_MK = scores(plain_model(model), _hidden_states(model, batch))
        return value_cross_entropy(logits_MK, batch.values_BA.view(-1, len(sizes)), sizes)

    return task


def regression(model: PreTrainedModel | PeftModel) -> Task:
    """The attribute values of an answer, each as a number."""

    def task(batch: PackedBatch) -> Loss:
        values_MA = scores(plain_model(model), _hidden_states(model, batch))
        return squared_error(values_MA, batch.values_BA.view(values_MA.shape))

    return task


def reward(model: PreTrainedModel | PeftModel) -> Task:
    """Which of two answers is better. They come in pairs; an answer's values are its odds and its margin."""

    def task(batch: PackedBatch) -> Loss:
        rewards_M1 = scores(plain_model(model), _hidden_states(model, batch))
        better_P, margin_P = batch.values_BA.view(-1, 2, 2)[:, 0].unbind(1)
        return bradley_terry(rewards_M1.view(-1, 2), better_P, margin_P)

    return task
