"""Attention layers whose queries, keys and values are made together, for answers in bf16 on a CPU.

Queries and keys are normed (where the family does that) and rotated as one tensor, in fewer operations than
`transformers` has, each of which costs the time of a call when there is little data. With (x1, x2) the halves of a
head's features,

    rotated = (x1 cos - x2 sin, x2 cos + x1 sin)

is rounded less often here: not the same to the last bit, so it is for inference mode alone, as in `gated`.

Shapes: T tokens, H query heads, K key/value heads, N = H + K, D head size.
"""

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from steersman.models.attention import AttentionContext
from steersman.models.derived import Derived
from steersman.models.joint import Joint
from steersman.models.norms import LeanNorm

FAMILIES = {f"{family}Attention" for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")}
"""Classes of `transformers` that work so."""


class JointAttention(nn.Module):
    """What `join_attention` makes of a layer."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    k_norm: nn.Module
    head_dim: int
    layer_idx: int
    scaling: float
    _joint: Joint
    _gains: Derived[Tensor]

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        whole: Tensor | None = None
        if torch.is_inference_mode_enabled() and kwargs.get("attention_context") is not None:
            whole = self._joint.output([self.q_proj, self.k_proj, self.v_proj], hidden_states)
        if whole is None:
            return super().forward(hidden_states, **kwargs)  # type: ignore[no-any-return]
        output_1THD = self._attend(whole.view(-1, whole.shape[-1] // self.head_dim, self.head_dim), **kwargs)
        return self.o_proj(output_1THD.flatten(-2)), None

    def _attend(
        self,
        heads: Tensor,
        attention_context: AttentionContext,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        """The attention's output, 1 x T x H x D, of heads T x (H + 2 K) x D: queries, keys, values."""
        K = cast(int, self.k_proj.out_features) // self.head_dim
        H = heads.shape[1] - 2 * K
        query_key_TND, value_TKD = torch.split(heads, [H + K, K], dim=1)
        if isinstance(norm := getattr(self, "q_norm", None), LeanNorm):
            gain_ND = self._gains.of([norm.weight] * H + [self.k_norm.weight] * K)  # type: ignore[list-item]
            query_key_TND = norm.normalised(query_key_TND, gain_ND)
        query_THD, key_TKD = torch.split(_rotated(query_key_TND, *position_embeddings), [H, K], dim=1)
        return attention_context.attend(
            self.layer_idx,
            *(x.transpose(0, 1)[None] for x in (query_THD, key_TKD, value_TKD)),
            scaling=self.scaling,
            sliding_window=self._window,
            softcap=getattr(self, "attn_logit_softcapping", None),
        )

    @property
    def _window(self) -> int | None:
        """How many tokens are seen, where not all are."""
        owner = self.config if type(self).__name__ == "MistralAttention" else self
        return getattr(owner, "sliding_window", None)


def _rotated(x_TND: Tensor, cos_1TD: Tensor, sin_1TD: Tensor) -> Tensor:
    half = x_TND.shape[-1] // 2
    cos_T1D, sin_T1D = cos_1TD[0, :, None], sin_1TD[0, :, None]
    rotated_TND = x_TND * cos_T1D
    rotated_TND[..., :half].addcmul_(x_TND[..., half:], sin_T1D[..., :half], value=-1)
    rotated_TND[..., half:].addcmul_(x_TND[..., :half], sin_T1D[..., half:])
    return rotated_TND


@functools.cache
def _joined(layer: type[nn.Module]) -> type[nn.Module]:
    return type(layer.__name__, (JointAttention, layer), {})


def join_attention(model: nn.Module) -> None:
    """Let a packed model's attention layers, where they are known, work as above."""
    for module in model.modules():
        if type(module).__name__ in FAMILIES and not isinstance(module, JointAttention):
            module.__class__ = _joined(type(module))  # type: ignore[arg-type]
            module._joint, module._gains = Joint(), Derived(_stacked)  # type: ignore[assignment]


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    return torch.stack([weight.detach() for weight in weights])
