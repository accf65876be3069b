"""Layers with the same input as one product, adapters included."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from steersman.models.joint import Joint
from steersman.models.low_rank import lighten_lora
from steersman.models.packed import pack

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)

NAMES = ("q_proj", "k_proj", "v_proj")


class Layers(nn.Module):
    """Layers named as those of a transformer's block."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(40, size, bias=bias) for size in (32, 16, 16))


def adapted(targets: tuple[str, ...] = NAMES, bias: bool = False, **options: object) -> nn.Module:
    """Packed layers in bf16, with updates that are not zero."""
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(Layers(bias)), LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), **options)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    lighten_lora(model)
    assert pack(model)
    return model.eval()


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in NAMES]


def truth(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The layers' outputs side by side, by peft in fp64."""
    return torch.cat([layer(x.double()) for layer in layers(copy.deepcopy(model).double())], dim=-1)


@pytest.mark.parametrize("bias", [True, False])
def test_the_outputs_lie_side_by_side(bias):
    model, x = adapted(bias=bias, rank_pattern={"v_proj": 2}), torch.randn(1, 7, 40).bfloat16()
    layers(model)[2].scaling["default"] = 2.0  # as the others', whose rank is twice its own
    with torch.inference_mode():
        found = Joint().output(layers(model), x)
        assert (found - truth(model, x)).norm() < 0.01 * found.norm()


def test_without_adapters_it_is_the_product_of_the_weights_alone():
    plain = Layers().bfloat16()
    pack(plain)
    x = torch.randn(7, 40).bfloat16()
    with torch.inference_mode():
        expected = torch.cat([layer(x) for layer in plain.children()], dim=-1)
        assert torch.equal(Joint().output(list(plain.children()), x), expected)


def test_an_adapter_that_has_learnt_is_seen_at_once():
    model, x, joint = adapted(), torch.randn(7, 40).bfloat16(), Joint()
    for matrix in ("lora_A", "lora_B"):
        with torch.inference_mode():
            before = joint.output(layers(model), x)
        with torch.no_grad():
            layers(model)[1].get_submodule(matrix)["default"].weight.neg_()
        with torch.inference_mode():
            after = joint.output(layers(model), x)
            assert torch.equal(after[:, :32], before[:, :32])
            assert not torch.allclose(after[:, 32:48], before[:, 32:48])
            assert (after - truth(model, x)).norm() < 0.01 * after.norm()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: adapted(("q_proj", "v_proj")), id="some adapted"),
        pytest.param(lambda: adapted(alpha_pattern={"k_proj": 3}), id="other scales"),
        pytest.param(lambda: adapted(lora_dropout=0.5).train(), id="dropout"),
        pytest.param(lambda: nn.Sequential(Layers().bfloat16()), id="not packed"),
    ],
)
def test_layers_that_are_no_one_product_are_left_to_the_caller(make):
    model = make()
    with torch.inference_mode():
        assert Joint().output(layers(model), torch.randn(7, 40).bfloat16()) is None


@pytest.mark.parametrize("change", ["off", "merged"])
def test_an_adapter_that_is_off_or_merged_is_left_to_peft(change):
    model = adapted()
    for layer in layers(model):
        layer.enable_adapters(False) if change == "off" else layer.merge()
    with torch.inference_mode():
        assert Joint().output(layers(model), torch.randn(7, 40).bfloat16()) is None
