"""Packed attention: what one sequence computes never depends on its neighbours in the row."""

import pytest
import torch

from steersman.models.attention import IMPLEMENTATION, Segments, attention
from steersman.models.load import backbone
from steersman.models.masks import causal_mask


def test_causal_mask_by_hand():
    assert causal_mask(3, 3, None).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
    assert causal_mask(2, 4, 2).tolist() == [[False, True, True, False], [False, False, True, True]]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gemma3"])
def test_packed_row_equals_sequences_alone_and_transformers_own_attention(family, request):
    model = request.getfixturevalue(family)()
    generator = torch.Generator().manual_seed(1)
    # 21 exceeds Gemma's sliding window of 8, 1 is the shortest a sequence can be.
    rows = [torch.randint(0, 200, (1, n), generator=generator) for n in (5, 21, 1, 9)]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = torch.cat([backbone(model)(input_ids=row, use_cache=False).last_hidden_state for row in rows], dim=1)
    model.set_attn_implementation(IMPLEMENTATION)
    with torch.no_grad():
        packed = backbone(model)(
            input_ids=torch.cat(rows, dim=1),
            position_ids=torch.cat([torch.arange(row.shape[1])[None] for row in rows], dim=1),
            attention_context=Segments([0, 5, 26, 27, 36]),
            use_cache=False,
        ).last_hidden_state
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_softcap_follows_its_equation():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6, 4, generator=generator) for heads in (4, 2, 2))
    got = attention(query, key, value, scaling=0.5, is_causal=True, softcap=3.0)
    for head in range(4):
        scores = 3.0 * torch.tanh(query[0, head] @ key[0, head // 2].T * 0.5 / 3.0)
        scores = scores.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), float("-inf"))
        torch.testing.assert_close(got[0, head], scores.softmax(-1) @ value[0, head // 2])


def test_a_huge_softcap_is_none():
    query, key, value = (torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    plain = attention(query, key, value, scaling=0.5, is_causal=True)
    torch.testing.assert_close(attention(query, key, value, scaling=0.5, is_causal=True, softcap=1e4), plain)
