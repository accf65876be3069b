"""LoRA layers in few steps: peft's numbers, and peft's own way wherever there is more to a layer."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from steersman.models.low_rank import LeanLora, _LowRank, lighten_lora
from steersman.models.packed import pack


def layers(dtype: torch.dtype = torch.float32, bias: bool = True, **config: float) -> tuple[nn.Module, nn.Module]:
    """A layer of peft's with an update that is not zero, and the same made lean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(dtype)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["0"], **{"lora_alpha": 12, **config})).to(dtype)
    nn.init.normal_(adapted.base_model.model[0].lora_B["default"].weight)
    lean = copy.deepcopy(adapted)
    lighten_lora(lean)
    plain, lean = (each.base_model.model[0] for each in (adapted, lean))
    assert isinstance(lean, LeanLora)
    return plain, lean


def outcome(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype))
    return [y.detach(), x.grad, *(layer.get_parameter(f"lora_{which}.default.weight").grad for which in "AB")]


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_peft(bias):
    plain, lean = layers(bias=bias)
    x = torch.randn(2, 3, 24)
    torch.testing.assert_close(outcome(lean, x), outcome(plain, x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(lean(x), plain(x), rtol=1e-5, atol=1e-5)


def test_narrow_outputs_are_about_as_near_to_the_truth_as_those_of_peft():
    plain, lean = layers(torch.bfloat16, lora_alpha=8)
    x = torch.randn(200, 24).bfloat16()
    truth = outcome(copy.deepcopy(plain).double(), x.double())
    for ours, theirs, true in zip(outcome(lean, x), outcome(plain, x), truth, strict=True):
        assert (ours - true).norm() <= 1.4 * (theirs - true).norm()


def test_a_wide_adapter_of_a_narrow_layer_works_narrowly_and_learns_widely():
    _, lean = layers(torch.bfloat16)
    lean.lora_A.float()
    lean.lora_B.float()
    x = torch.randn(200, 24).bfloat16()
    with torch.inference_mode():
        lean(x)  # as an engine does, before it learns
    truth = outcome(copy.deepcopy(lean).double(), x.double())
    found = outcome(lean, x)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for ours, true in zip(found, truth, strict=True):
        assert (ours - true).norm() < 0.01 * true.norm()


def test_with_and_without_gradients_the_outputs_are_the_same_to_the_last_bit():
    _, lean = layers(torch.bfloat16)
    x = torch.randn(1, 70, 24).bfloat16()
    with torch.no_grad():
        without = lean(x)
    assert torch.equal(lean(x), without)


def test_an_adapter_that_has_learnt_is_seen_at_once():
    plain, lean = layers()
    x = torch.randn(5, 24)
    lean(x)
    for layer in (plain, lean):
        with torch.no_grad():
            layer.lora_A["default"].weight.mul_(2.0)
    torch.testing.assert_close(lean(x), plain(x), rtol=1e-5, atol=1e-5)


def test_a_layer_by_hand():
    # x = (1, 2), W = (3, 4), A = (1, 1), B = 5, s = 2: a = 3, y = 11 + 2 * 5 * 3 = 41.
    # dB = 2 * 3, d = 2 * 5 = 10, dA = 10 (1, 2), dx = (3, 4) + 10 (1, 1).
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    adapted = get_peft_model(model, LoraConfig(r=1, lora_alpha=2, target_modules=["0"]))
    lighten_lora(adapted)
    layer = adapted.base_model.model[0]
    narrow, wide = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        for weight, numbers in ((layer.base_layer.weight, [3.0, 4.0]), (narrow, [1.0, 1.0]), (wide, [5.0])):
            weight.copy_(torch.tensor([numbers]))
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    y = layer(x)
    y.backward()
    assert y.item() == 41
    assert [tensor.grad.tolist() for tensor in (x, narrow, wide)] == [[[13.0, 14.0]], [[10.0, 20.0]], [[6.0]]]


class Attention(nn.Module):
    """Layers named as those of a transformer's block, and called as there."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(40, size, bias=False) for size in (32, 16, 16))
        self.o_proj = nn.Linear(64, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o_proj(torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1))


def model_outcome(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients, of the input and of all adapters."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for name, p in model.named_parameters() if "lora_" in name)]


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj", "o_proj"], ["q_proj", "v_proj"]])
@pytest.mark.parametrize("packed", [False, True])
def test_layers_with_the_same_input_and_packed_ones_are_near_the_truth(targets, packed):
    if packed and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    torch.manual_seed(0)
    different = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, **different)
    plain = get_peft_model(nn.Sequential(Attention()), config)
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    truth, lean = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    lighten_lora(lean)
    if packed:
        assert pack(lean)
    x = torch.randn(1, 70, 40).bfloat16()
    found, true = model_outcome(lean, x), model_outcome(truth, x.double())
    assert len(found) == 2 + 2 * len(targets)
    for ours, exact in zip(found, true, strict=True):
        assert (ours - exact).norm() < 0.02 * exact.norm()
    with torch.inference_mode():
        assert torch.equal(lean(x), found[0])
        with lean.disable_adapter(), plain.disable_adapter():
            torch.testing.assert_close(lean(x), plain(x), rtol=0.02, atol=0.02)


def test_layers_with_the_same_input_find_their_narrow_parts_in_one_product(monkeypatch):
    lean = get_peft_model(nn.Sequential(Attention()), LoraConfig(r=4, target_modules="all-linear"))
    lighten_lora(lean)
    widths = []
    product = torch.Tensor.__matmul__

    def counted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        widths.append(y.shape[1])
        return product(x, y)

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    with torch.no_grad():
        lean(torch.randn(3, 40))
    assert widths == [12, 4]


@pytest.mark.parametrize("change", ["off", "merged", "dropout", "trained", "hooked"])
def test_a_layer_with_more_to_it_works_as_peft_has_it(change, monkeypatch):
    plain, lean = layers(**({"lora_dropout": 0.5} if change == "dropout" else {}))
    x = torch.randn(5, 24)
    for layer in (plain, lean):
        if change == "off":
            layer.enable_adapters(False)
        elif change == "merged":
            layer.merge()
        elif change == "trained":
            layer.base_layer.weight.requires_grad_()
        elif change == "hooked":
            layer.base_layer.register_forward_hook(lambda module, inputs, output: output + 1)
    monkeypatch.setattr(_LowRank, "apply", lambda *args: pytest.fail("the update is not a plain one"))
    torch.manual_seed(1)
    expected = plain(x)
    torch.manual_seed(1)
    assert torch.equal(lean(x), expected)
