"""Attention over blocks of queries against plain attention with a mask, forward and backward."""

import math

import pytest
import torch

from steersman.models.attention import attention, causal_attention
from steersman.models.block_attention import ROWS, block_attention, pays
from steersman.models.masks import causal_mask


def example(num_tokens, num_heads=4, num_keys=2, size=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(1, num_tokens, heads, size) for heads in (num_heads, num_keys, num_keys, num_heads)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [tensor.transpose(1, 2).requires_grad_() for tensor in tensors]  # as models make them: heads inside tokens


def test_two_tokens_by_hand():
    query = torch.tensor([[[[0.0], [2.0]]]])
    key = torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[1.0], [5.0]]]])
    # The first sees itself alone; the second's scores are 0 and (1/2) * 2 * ln 3, so its weights are 1/4 and 3/4.
    output = block_attention(query, key, value, scaling=0.5, window=None)
    torch.testing.assert_close(output, torch.tensor([[[[1.0], [4.0]]]]))


@pytest.mark.parametrize("num_tokens", [1, ROWS - 1, ROWS, 2 * ROWS + 37])
@pytest.mark.parametrize("window", [None, 1, 50, ROWS, ROWS + 70, 2 * ROWS + 36])
@pytest.mark.parametrize("past", [0, 60])
@pytest.mark.parametrize("num_keys", [1, 2])
def test_equals_masked_attention_forward_and_backward(num_tokens, window, past, num_keys):
    query, key, value, grad = example(num_tokens + past, num_keys=num_keys)
    query, grad = query[:, :, past:], grad[:, :, past:]
    ours = block_attention(query, key, value, scaling=0.3, window=window)
    plain = attention(query, key, value, scaling=0.3, mask=causal_mask(num_tokens, num_tokens + past, window))
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():  # which keeps nothing for a backward pass
        assert torch.equal(block_attention(query, key, value, scaling=0.3, window=window), ours)
    for found, wanted in zip(
        torch.autograd.grad(ours, (query, key, value), grad),
        torch.autograd.grad(plain, (query, key, value), grad),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_where_it_does_not_pay_attention_is_the_same(softcap, monkeypatch):
    query, key, value, _ = example(200)
    assert not pays(query, 200)
    monkeypatch.setattr("steersman.models.attention.MASKED_ROWS", 64)
    for window in (None, 70):
        options = {"scaling": 0.3, "softcap": softcap}
        found = causal_attention(query[:, :, 30:], key, value, window=window, **options)
        plain = attention(query[:, :, 30:], key, value, mask=causal_mask(170, 200, window), **options)
        torch.testing.assert_close(found, plain)


def test_it_pays_at_bf16_from_some_length_on_and_up_to_one_where_a_backward_pass_follows():
    wide, narrow = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    assert [pays(narrow, length) for length in (64, 65, 2048, 2049)] == [False, True, True, False]
    assert not pays(wide, 500)
    with torch.no_grad():
        assert pays(narrow, 2049)


def test_bfloat16_stays_near_the_exact_gradients():
    query, key, value, grad = example(300, size=64, dtype=torch.bfloat16)
    ours = block_attention(query, key, value, scaling=0.125, window=None)
    exact = block_attention(query.double(), key.double(), value.double(), scaling=0.125, window=None)
    pairs = [(ours, exact)]
    found = torch.autograd.grad(ours, (query, key, value), grad)
    pairs += zip(found, torch.autograd.grad(exact, (query, key, value), grad.double()), strict=True)
    for found, wanted in pairs:
        assert (found - wanted).norm() < 0.01 * wanted.norm()
