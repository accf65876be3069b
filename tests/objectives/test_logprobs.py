"""Fused scores of tokens against plain softmax, hand-worked numbers and finite differences."""

import math

import pytest
import torch

from steersman.objectives.logprobs import token_scores


def example(dtype=torch.float64, num_tokens=7, hidden_size=5, vocabulary=11):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden, weight, targets, temperature=1.0, softcap=None):
    logits = hidden @ weight.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = (logits / temperature).log_softmax(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def test_hand_worked():
    # Logits 0 and ln 9: p = 1/10, 9/10. At temperature 2 they are 0 and ln 3: p = 1/4, 3/4.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(9)]])
    for temperature, p in ((1.0, 0.9), (2.0, 0.75)):
        for token, chance in ((0, 1 - p), (1, p)):
            found = token_scores(hidden, weight, torch.tensor([token]), entropies=True, temperature=temperature)
            assert found.logprobs_M.item() == pytest.approx(math.log(chance))
            assert found.likeliest_M.item() == (token == 1)
            assert found.entropies_M.item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.0)])
def test_equals_plain_softmax_with_its_gradients(chunk, block, temperature, softcap, monkeypatch):
    monkeypatch.setattr("steersman.objectives.logprobs.CHUNK", chunk)
    monkeypatch.setattr("steersman.objectives.logprobs.CPU_BLOCK", block * chunk)
    hidden, weight, targets = example()
    upstream = torch.randn(2, len(targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = plain(hidden, weight, targets, temperature, softcap)
    wanted = torch.autograd.grad(expected, (hidden, weight), list(upstream), retain_graph=True)
    how = {"temperature": temperature, "softcap": softcap}
    logprobs, likeliest, entropies = token_scores(hidden, weight, targets, entropies=True, entropy_gradient=True, **how)
    torch.testing.assert_close((logprobs, entropies), expected)
    assert torch.equal(likeliest, (hidden @ weight.T).argmax(-1) == targets)
    torch.testing.assert_close(torch.autograd.grad((logprobs, entropies), (hidden, weight), list(upstream)), wanted)

    wanted = torch.autograd.grad(expected[0], (hidden, weight), upstream[0])
    scores = token_scores(hidden, weight, targets, **how)
    assert scores.entropies_M is None
    torch.testing.assert_close(scores.logprobs_M, expected[0])
    torch.testing.assert_close(torch.autograd.grad(scores.logprobs_M, (hidden, weight), upstream[0]), wanted)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("entropies", [False, True])
def test_gradcheck(softcap, entropies, monkeypatch):
    monkeypatch.setattr("steersman.objectives.logprobs.CHUNK", 3)
    hidden, weight, targets = example(num_tokens=4)

    def total(hidden, weight):
        wanted = {"entropies": entropies, "entropy_gradient": entropies}
        scores = token_scores(hidden, weight, targets, temperature=0.7, softcap=softcap, **wanted)
        return 0.3 * scores.logprobs_M.sum() + (2 * scores.entropies_M.sum() if entropies else 0)

    assert torch.autograd.gradcheck(total, (hidden, weight))


@pytest.mark.parametrize(("rows", "block"), [(3, 4), (2, 100)])
def test_the_weights_gradient_is_added_to_what_is_there(rows, block, monkeypatch):
    monkeypatch.setattr("steersman.objectives.logprobs.CHUNK", rows)
    monkeypatch.setattr("steersman.objectives.logprobs.CPU_BLOCK", block * rows)
    hidden, weight, targets = example()
    wanted = torch.autograd.grad(plain(hidden, weight, targets)[0].sum(), (hidden, weight))
    sums = torch.ones_like(weight)
    token_scores(hidden, weight, targets, weight_grad_VH=sums).logprobs_M.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(sums, 1 + wanted[1])
    torch.testing.assert_close(hidden.grad, wanted[0])


@pytest.mark.parametrize("entropies", [False, True])
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("block", [1, 4, 1000])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (0.7, None), (1.3, 2.0)])
def test_a_frozen_weight_gets_no_gradient(chunk, block, temperature, softcap, entropies, monkeypatch):
    monkeypatch.setattr("steersman.objectives.logprobs.CHUNK", chunk)
    monkeypatch.setattr("steersman.objectives.logprobs.CPU_BLOCK", block * chunk)
    hidden, weight, targets = example()
    upstream = torch.randn(len(targets), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = plain(hidden, weight, targets, temperature, softcap)
    wanted = torch.autograd.grad(expected[0], hidden, upstream, retain_graph=True)[0]
    how = {"temperature": temperature, "softcap": softcap}
    frozen = weight.detach()
    scores = token_scores(hidden, frozen, targets, entropies=entropies, **how)
    torch.testing.assert_close(torch.autograd.grad(scores.logprobs_M, hidden, upstream)[0], wanted)
    assert not entropies or not scores.entropies_M.requires_grad

    wanted = torch.autograd.grad(expected[1], hidden, upstream)[0]
    scores = token_scores(hidden, frozen, targets, entropies=True, entropy_gradient=True, **how)
    torch.testing.assert_close(torch.autograd.grad(scores.entropies_M, hidden, upstream)[0], wanted)


def test_little_gradient_is_left_of_a_token_that_was_nearly_certain_but_that_is_right():
    """Logits 10, 0, 0: 1 - p = 2 / (e^10 + 2), a tenth of what bf16 tells from 0 beside 1."""
    weight = torch.tensor([[2.5, 0.75], [0.0, 1.0], [0.0, -0.5]], dtype=torch.bfloat16)
    hidden = torch.tensor([[4.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    token_scores(hidden, weight, torch.tensor([0])).logprobs_M.sum().backward()
    rest = 2 / (math.exp(10) + 2)  # the two others share it: dl/dh = rest (W_0 - (W_1 + W_2) / 2)
    torch.testing.assert_close(hidden.grad.float(), rest * torch.tensor([[2.5, 0.5]]), rtol=0.01, atol=0)


def test_without_gradients_only_the_scores_are_computed():
    hidden, weight, targets = example()
    with torch.no_grad():
        scores = token_scores(hidden, weight, targets)
    assert not scores.logprobs_M.requires_grad
    torch.testing.assert_close(scores.logprobs_M, plain(hidden, weight, targets)[0].detach())


def test_bfloat16_inputs_give_fp32_numbers_near_the_exact_ones():
    hidden, weight, targets = example(torch.bfloat16, num_tokens=64, hidden_size=32, vocabulary=100)
    exact = plain(hidden.double(), weight.double(), targets)
    exact_grads = torch.autograd.grad(exact[0].sum(), (hidden, weight))
    logprobs, _, entropies = token_scores(hidden, weight, targets, entropies=True)
    for numbers, wanted in zip((logprobs, entropies), exact, strict=True):
        assert numbers.dtype == torch.float32
        assert (numbers - wanted).norm() < 0.01 * wanted.norm()
    logprobs.sum().backward()
    for grad, wanted in zip((hidden.grad, weight.grad), exact_grads, strict=True):
        assert (grad.float() - wanted.float()).norm() < 0.01 * wanted.float().norm()


def test_bfloat16_weight_gradient_is_summed_over_chunks_in_fp32(monkeypatch):
    """Each of 512 rows adds the same 1/512 of the gradient: a bf16 sum would stall after 2^8 equal additions."""
    monkeypatch.setattr("steersman.objectives.logprobs.CHUNK", 1)
    num_tokens = 512
    hidden = torch.ones(num_tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    weight.grad_dtype = torch.float32
    targets = torch.zeros(num_tokens, dtype=torch.int64)
    (-token_scores(hidden, weight, targets).logprobs_M.sum()).backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.flatten().tolist() == [-num_tokens / 2, num_tokens / 2]


def test_no_token_is_nothing():
    hidden, weight, targets = example()
    logprobs, _, entropies = token_scores(hidden[:0], weight, targets[:0], entropies=True)
    (logprobs.sum() + entropies.sum()).backward()
    assert len(logprobs) == len(entropies) == 0
