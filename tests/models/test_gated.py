"""Gated layers inside the products: nearer to the equation, and for answers alone."""

import copy
import importlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig
from transformers.activations import ACT2FN

from steersman.models.gated import FAMILIES, GatedMLP, fuse_gates
from steersman.models.low_rank import lighten_lora
from steersman.models.packed import pack

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)


def example(name: str, activation: str) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A layer of `transformers`, the same fused, and an input."""
    torch.manual_seed(0)
    family = name.removesuffix("MLP").lower()
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(family, family))
    config.hidden_size, config.intermediate_size = 48, 96
    config.hidden_act = config.hidden_activation = activation
    plain = getattr(module, name)(config)
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.3)
    plain = plain.bfloat16()
    fused = copy.deepcopy(plain)
    assert pack(fused)
    fuse_gates(fused)
    assert isinstance(fused, GatedMLP)
    assert type(fused).__name__ == name
    return plain, fused, torch.randn(1, 70, 48).bfloat16()


@pytest.mark.parametrize("activation", ["silu", "swish", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_it_is_nearer_to_the_equation_than_separate_operations(name, activation):
    plain, fused, x = example(name, activation)
    wide = copy.deepcopy(plain).double()
    f = ACT2FN[activation]
    truth = (f(x.double() @ wide.gate_proj.weight.T) * (x.double() @ wide.up_proj.weight.T)) @ wide.down_proj.weight.T
    with torch.inference_mode():
        assert (fused(x) - truth).norm() < 0.95 * (plain(x) - truth).norm()


def test_training_and_its_references_have_the_bits_of_transformers():
    plain, fused, x = example("Gemma3MLP", "gelu_pytorch_tanh")
    assert torch.equal(fused(x), plain(x))
    with torch.no_grad():
        assert torch.equal(fused(x), plain(x))


def test_a_changed_weight_counts_at_once():
    _, fused, x = example("LlamaMLP", "silu")
    with torch.inference_mode():
        before = fused(x)
    with torch.no_grad():
        fused.up_proj.weight.mul_(2)
    with torch.inference_mode():
        assert torch.equal(fused(x), 2 * before)
    with torch.no_grad():
        fused.gate_proj.weight.zero_()
    with torch.inference_mode():
        assert fused(x).count_nonzero() == 0


def test_an_adapter_is_not_passed_over():
    _, fused, x = example("LlamaMLP", "silu")
    model = nn.Sequential(fused)
    for adapted in ("gate_proj", "up_proj"):
        config = LoraConfig(r=2, lora_alpha=2, target_modules=[adapted])
        with torch.inference_mode():
            before = fused(x)
        wrapped = get_peft_model(copy.deepcopy(model), config).bfloat16()
        nn.init.normal_(wrapped.base_model.model[0].get_submodule(adapted).lora_B["default"].weight)
        with torch.inference_mode():
            assert (wrapped.base_model.model[0](x) - before).norm() > 0.1 * before.norm()


def test_adapters_of_both_are_part_of_one_product():
    _, fused, x = example("Gemma3MLP", "gelu_pytorch_tanh")
    targets = ["gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(nn.Sequential(fused), LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    true = copy.deepcopy(model).double()
    lighten_lora(model)
    calls = []
    for name in targets[:2]:
        model.base_model.model[0].get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        truth = true(x.double())
        assert (model(x) - truth).norm() < 0.02 * truth.norm()
    assert not calls


def test_an_activation_that_is_not_known_is_left_alone():
    plain, _, _ = example("LlamaMLP", "silu")
    plain.act_fn = ACT2FN["relu"]
    pack(plain)
    fuse_gates(plain)
    assert not isinstance(plain, GatedMLP)
