"""The last layer where it is read: of every other token nobody needs more of it than keys and values."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steersman.models.gated import FAMILIES

WORTHWHILE = 16
"""Tokens that nobody reads, for which gathering the others pays."""


@contextmanager
def read_only(backbone: nn.Module, num_tokens: int, indices: Sequence[int]) -> Iterator[None]:
    """Meanwhile a forward call of one row leaves out, in its last layer, the attention's output and the feed-forward
    part of all tokens but these; their hidden states mean nothing then. Of families that are not known it computes all.
    """
    layer: Any = backbone.layers[-1]  # type: ignore[index]
    with ExitStack() as hooks:
        if num_tokens - len(indices) >= WORTHWHILE and type(layer.mlp).__name__ in FAMILIES:
            index_R = torch.tensor(indices, device=next(layer.parameters()).device)

            def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
                return inputs[0][:, index_R]

            def scatter(_: nn.Module, __: Any, output_1RH: Tensor) -> Tensor:
                output_1TH = output_1RH.new_zeros(1, num_tokens, output_1RH.shape[-1])
                return output_1TH.index_copy_(1, index_R, output_1RH)

            for module in (layer.self_attn.o_proj, layer.mlp):
                hooks.enter_context(module.register_forward_pre_hook(gather, prepend=True))
                hooks.enter_context(module.register_forward_hook(scatter))
        yield
