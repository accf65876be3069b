"""Norms that keep little: the same outputs to the last bit, gradients as calculus has them."""

import copy
import importlib

import pytest
import torch
from torch import nn

from steersman.models.norms import FAMILIES, LeanNorm, lighten


def norms(name: str, dtype: torch.dtype, size: int = 48) -> tuple[nn.Module, nn.Module]:
    """One of `transformers`, and the same made lean."""
    family = name.removesuffix("RMSNorm").lower()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    plain = getattr(module, name)(size, eps=1e-5).to(dtype)
    nn.init.normal_(plain.weight, mean=0.5)
    lean = copy.deepcopy(plain)
    lighten(lean)
    assert isinstance(lean, LeanNorm)
    return plain, lean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_transformers_to_the_last_bit(name, dtype):
    torch.manual_seed(0)
    plain, lean = norms(name, dtype)
    x = torch.randn(2, 3, 5, 48).to(dtype).transpose(1, 2)
    assert torch.equal(lean(x), plain(x))
    with torch.inference_mode():
        assert torch.equal(lean(x), plain(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_those_of_transformers(name):
    torch.manual_seed(0)
    plain, lean = norms(name, torch.float32)
    x, given = torch.randn(2, 5, 3, 48), torch.randn(2, 3, 5, 48).transpose(1, 2)
    found = []
    for norm in (plain, lean):
        here = x.clone().requires_grad_()
        norm(here).backward(given)
        found.append((here.grad, norm.weight.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_a_gradient_by_hand():
    # x = (3, 4): mean square 12.5, r = sqrt(2)/5, n = (3, 4) r. For dL/dy = (1, 0) and g = 1 the mean of n dL/dy is
    # 3 r / 2, so dL/dx = r (1 - 3 * 3 r^2 / 2, -4 * 3 r^2 / 2) = r (16, -12) / 25; dL/dg = (n_1, 0).
    _, lean = norms("LlamaRMSNorm", torch.float32, size=2)
    lean.variance_epsilon = 0.0
    nn.init.ones_(lean.weight)
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    lean(x).backward(torch.tensor([[1.0, 0.0]]))
    r = 2**0.5 / 5
    torch.testing.assert_close(x.grad, torch.tensor([[16 * r / 25, -12 * r / 25]]))
    torch.testing.assert_close(lean.weight.grad, torch.tensor([3 * r, 0.0]))


def test_only_the_input_and_a_number_a_row_are_kept():
    _, lean = norms("Gemma3RMSNorm", torch.bfloat16)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        lean(torch.randn(10, 48, dtype=torch.bfloat16, requires_grad=True))
    assert sum(x.nbytes for x in kept if x is not lean.weight) == 10 * 48 * 2 + 10 * 4


def test_a_frozen_weight_gets_no_gradient():
    _, lean = norms("Qwen3RMSNorm", torch.float32)
    lean.weight.requires_grad_(False)
    x = torch.randn(3, 48, requires_grad=True)
    lean(x).sum().backward()
    assert x.grad is not None
    assert lean.weight.grad is None


def test_norms_of_a_model_become_lean_once_and_keep_their_names(tiny_llama):
    model = tiny_llama()
    names = [name for name, _ in model.named_parameters()]
    lighten(model)
    classes = [type(module) for module in model.modules()]
    lighten(model)
    assert [type(module) for module in model.modules()] == classes
    assert sum(issubclass(each, LeanNorm) for each in classes) == 2 * len(model.model.layers) + 1
    assert [name for name, _ in model.named_parameters()] == names
    assert isinstance(copy.deepcopy(model).model.norm, LeanNorm)
