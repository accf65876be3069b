"""Packed weights: the same products to the last bit, always of the weight as it is now."""

import copy

import pytest
import torch
from torch import nn

from steersman.models import packed
from steersman.models.packed import PackedLinear, pack

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)


def example(dtype=torch.bfloat16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 24), nn.Linear(24, 16, bias=False)).to(dtype), torch.randn(3, 40).to(dtype)


def test_products_are_the_same_to_the_last_bit():
    model, x = example()
    expected = model(x).detach()
    assert pack(model)
    assert all(type(layer) is PackedLinear for layer in model)
    with torch.inference_mode():
        assert torch.equal(model(x), expected)
        assert torch.equal(model(x[:1]), expected[:1])
        assert torch.equal(model(x[None]), expected[None])


def test_a_changed_weight_is_packed_again():
    model, x = example()
    pack(model)
    with torch.inference_mode():
        before = model(x)
    with torch.no_grad():
        model[0].weight.detach().view(-1).mul_(2)  # as the optimiser writes, through a view
        model[0].bias.mul_(2)
    with torch.inference_mode():
        assert torch.equal(model(x), 2 * before)
    model[1].weight = nn.Parameter(torch.zeros(16, 24, dtype=torch.bfloat16))
    with torch.inference_mode():
        assert model(x).count_nonzero() == 0


def test_gradients_and_fp32_go_by_the_plain_weight():
    for dtype in (torch.bfloat16, torch.float32):
        model, x = example(dtype)
        plain = copy.deepcopy(model)
        assert pack(model) == (dtype == torch.bfloat16)
        model(x).sum().backward()
        plain(x).sum().backward()
        assert torch.equal(model[0].weight.grad, plain[0].weight.grad)


def test_copies_of_the_model_share_nothing():
    model, x = example()
    pack(model)
    with torch.inference_mode():
        expected = model(x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[1].weight.zero_()
    with torch.inference_mode():
        assert other(x).count_nonzero() == 0
        assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.weight"]


def test_without_memory_to_spare_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(packed, "_free_memory", lambda: 10)
    model, _ = example()
    assert not pack(model)
    assert all(type(layer) is nn.Linear for layer in model)


class Block(nn.Module):
    """Layers named as those of a transformer's block, and called as there."""

    def __init__(self, bias=True):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(40, size, bias=bias) for size in (32, 8, 8))
        self.o_proj = nn.Linear(48, 40)

    def forward(self, x):
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(torch.cat([query, key, value], dim=-1))


@pytest.mark.parametrize("bias", [True, False])
def test_layers_with_the_same_input_are_one_product(bias, monkeypatch):
    torch.manual_seed(0)
    block, x = Block(bias).bfloat16(), torch.randn(3, 40).bfloat16()
    expected = block(x).detach()
    pack(block)
    widths = []
    linear = packed.PackedWeight.linear

    def counted(self, x, weights, bias_O=None):
        widths.append(sum(map(len, weights)))
        return linear(self, x, weights, bias_O)

    monkeypatch.setattr(packed.PackedWeight, "linear", counted)
    with torch.inference_mode():
        assert torch.equal(block(x), expected)
        assert widths == [48, 40]
        # Whatever the order, each layer gives what it would by itself.
        other = torch.randn(3, 40).bfloat16()
        value = block.v_proj(x)
        assert torch.equal(block.v_proj(other), copy.deepcopy(block).v_proj(other))
        assert torch.equal(block.v_proj(x), value)
        assert torch.equal(block.q_proj(x), copy.deepcopy(block).q_proj(x))


def test_one_changed_weight_of_a_product_is_enough():
    torch.manual_seed(0)
    block, x = Block().bfloat16(), torch.randn(3, 40).bfloat16()
    pack(block)
    with torch.inference_mode():
        before = block.k_proj(x)
    with torch.no_grad():
        block.k_proj.weight.mul_(2)
        block.k_proj.bias.mul_(2)
    with torch.inference_mode():
        assert torch.equal(block.k_proj(x), 2 * before)


def test_a_second_engine_finds_the_model_packed():
    model, _ = example()
    assert pack(model)
    products = [layer.product for layer in model]
    assert pack(model)
    assert [layer.product for layer in model] == products
