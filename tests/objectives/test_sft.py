"""The fused loss against plain cross-entropy, hand-worked numbers and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from steersman.objectives.sft import fused_linear_cross_entropy


def example(dtype=torch.float64, num_tokens=7, hidden_size=5, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden, weight, targets, softcap):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction="sum")


def test_hand_worked():
    # Logits are ln 1, ln 3 for the first token and ln 1, ln 1 for the second: p = 3/4 and 1/2.
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    loss = fused_linear_cross_entropy(hidden, weight, torch.tensor([1, 0]), chunk=1)
    assert loss.sum.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert loss.num == 2
    assert loss.metrics["accuracy"] == 2  # a tie counts as right
    loss.sum.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.25, -0.5], [-0.25, 0.5]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.25, 0.0], [0.5, 0.0]]) * math.log(3))


def test_accuracy_counts_right_predictions():
    hidden, weight, _ = example(num_tokens=50)
    targets = (hidden @ weight.T).argmax(-1)
    targets[:20] = (targets[:20] + 1) % 11
    assert fused_linear_cross_entropy(hidden, weight, targets, chunk=8).metrics["accuracy"] == 30


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_equals_plain_cross_entropy_whatever_the_chunk_and_block(chunk, softcap, block, monkeypatch):
    monkeypatch.setattr("steersman.objectives.sft.CPU_BLOCK", block * chunk)
    hidden, weight, targets = example()
    expected = plain(hidden, weight, targets, softcap)
    expected_grads = torch.autograd.grad(expected, (hidden, weight))
    loss = fused_linear_cross_entropy(hidden, weight, targets, chunk=chunk, softcap=softcap)
    torch.testing.assert_close(loss.sum, expected)
    for grad, wanted in zip(torch.autograd.grad(loss.sum, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(softcap):
    hidden, weight, targets = example(num_tokens=4)

    def scaled(hidden, weight):
        return 0.3 * fused_linear_cross_entropy(hidden, weight, targets, chunk=3, softcap=softcap).sum

    assert torch.autograd.gradcheck(scaled, (hidden, weight))


def test_frozen_weight_gets_no_gradient_and_costs_none():
    hidden, weight, targets = example()
    expected = torch.autograd.grad(plain(hidden, weight, targets, None), hidden)[0]
    frozen = weight.detach()
    fused_linear_cross_entropy(hidden, frozen, targets, chunk=3).sum.backward()
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected)


@pytest.mark.parametrize(("rows", "block"), [(3, 4), (2, 100)])
def test_the_weights_gradient_is_added_to_what_is_there(rows, block, monkeypatch):
    monkeypatch.setattr("steersman.objectives.sft.CPU_BLOCK", block * rows)
    hidden, weight, targets = example()
    expected = torch.autograd.grad(plain(hidden, weight, targets, None), (hidden, weight))
    sums = torch.ones_like(weight)
    loss = fused_linear_cross_entropy(hidden, weight, targets, chunk=rows, weight_grad_VH=sums)
    loss.sum.backward()
    assert weight.grad is None
    torch.testing.assert_close(sums, 1 + expected[1])
    torch.testing.assert_close(hidden.grad, expected[0])


def test_an_added_gradient_cannot_be_scaled_afterwards():
    hidden, weight, targets = example()
    loss = fused_linear_cross_entropy(hidden, weight, targets, chunk=3, weight_grad_VH=torch.zeros_like(weight))
    with pytest.raises(AssertionError, match="plain sum"):
        (2 * loss.sum).backward()


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, targets = example()
    with torch.no_grad():
        loss = fused_linear_cross_entropy(hidden, weight, targets, chunk=3).sum
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, targets, None).detach())


def test_bfloat16_inputs_give_an_fp32_loss_near_the_exact_one():
    hidden, weight, targets = example(torch.bfloat16, num_tokens=64, hidden_size=32, vocabulary=100)
    exact = plain(hidden.double(), weight.double(), targets, None)
    exact_grads = torch.autograd.grad(exact, (hidden, weight))
    loss = fused_linear_cross_entropy(hidden, weight, targets, chunk=16)
    assert loss.sum.dtype == torch.float32
    assert loss.sum.item() == pytest.approx(exact.item(), rel=1e-3)
    loss.sum.backward()
    for grad, wanted in zip((hidden.grad, weight.grad), exact_grads, strict=True):
        assert (grad.float() - wanted.float()).norm() < 0.01 * wanted.float().norm()


def test_bfloat16_weight_gradient_is_summed_over_chunks_in_fp32():
    """Each of 512 rows adds the same 1/512 of the gradient: a bf16 sum would stall after 2^8 equal additions."""
    num_tokens = 512
    hidden = torch.ones(num_tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weight.grad_dtype = torch.float32
    targets = torch.zeros(num_tokens, dtype=torch.int64)
    fused_linear_cross_entropy(hidden, weight, targets, chunk=1).sum.backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.flatten().tolist() == [-num_tokens / 2, num_tokens / 2]


def test_no_trained_token_is_a_loss_of_zero():
    hidden, weight, targets = example()
    loss = fused_linear_cross_entropy(hidden[:0], weight, targets[:0], chunk=3)
    loss.sum.backward()
    assert (loss.sum.item(), loss.num) == (0.0, 0)
