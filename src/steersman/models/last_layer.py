"""The last layer where it is read: of every other token nobody needs more of it than keys and values."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steersman.models.gated import FAMILIES

WORTHWHILE = 16
"""Tokens that nobody reads, for which gathering the others pays."""


@contextmanager
def read_only(backbone: nn.Module, num_tokens: int, read_M: Tensor) -> Iterator[None]:
    """Meanwhile this thread's forward call of one row leaves out, in its last layer, the attention's output and the
    feed-forward part of all tokens but these; their hidden states mean nothing then.

    All is computed in fp32, where a product of fewer rows rounds otherwise and the sandbox's runs are to repeat, of a
    family that is not known, and where the backward pass computes the layer again, too late.
    """
    layer: Any = getattr(backbone, "layers", [None])[-1]
    possible = (
        type(getattr(layer, "mlp", None)).__name__ in FAMILIES
        and next(layer.self_attn.o_proj.parameters()).dtype != torch.float32
        and not (layer.gradient_checkpointing and layer.training)
    )
    index_R = torch.unique(read_M) if possible else read_M
    thread = threading.get_ident()  # others may use the model meanwhile

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        return inputs[0].index_select(1, index_R) if threading.get_ident() == thread else None

    def scatter(_: nn.Module, __: Any, output_1RH: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            return None
        zeros_1TH = output_1RH.new_zeros(1, num_tokens, output_1RH.shape[-1])
        return zeros_1TH.index_copy(1, index_R, output_1RH)

    with ExitStack() as hooks:
        if possible and 0 < len(index_R) <= num_tokens - WORTHWHILE:
            for module in (layer.self_attn.o_proj, layer.mlp):
                hooks.enter_context(module.register_forward_pre_hook(gather, prepend=True))
                hooks.enter_context(module.register_forward_hook(scatter))
        yield
