"""The last layer where it is read: the same hidden states there, and less work."""

import threading

import pytest
import torch
from torch import nn

from steersman.models.last_layer import read_only
from steersman.models.load import backbone

IDS = torch.arange(3, 43)[None]
READ = torch.tensor([39, 0, 7, 7])


def hidden_TH(model: nn.Module) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1])[None]
    return backbone(model)(input_ids=IDS, position_ids=positions, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_hidden_states_where_they_are_read_are_those_of_a_whole_call(family, request):
    model = request.getfixturevalue(f"tiny_{family}")().double()
    rows: list[int] = []
    with torch.inference_mode():
        expected = hidden_TH(model)
        with read_only(backbone(model), IDS.shape[1], READ):
            first = backbone(model).layers[-1].mlp.gate_proj
            counted = first.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
            found = hidden_TH(model)
            counted.remove()
        torch.testing.assert_close(found[READ], expected[READ], rtol=1e-10, atol=1e-12)
        assert rows == [3]
        assert not torch.allclose(found[1], expected[1])  # so the work was left out
        assert torch.equal(hidden_TH(model), expected)  # and is done again afterwards


def unknown(model: nn.Module) -> nn.Module:
    """The model, of a family that is not known."""
    layer = backbone(model).layers[-1]
    layer.mlp.__class__ = type("UnknownMLP", (type(layer.mlp),), {})
    return model


@pytest.mark.parametrize(
    ("change", "read_M"),
    [
        pytest.param(lambda model: unknown(model.double()), READ, id="unknown"),
        pytest.param(lambda model: model.double(), READ[:0], id="nothing read"),
        pytest.param(lambda model: model, READ, id="fp32"),
    ],
)
def test_all_is_computed(change, read_M, tiny_llama):
    model = change(tiny_llama())
    with torch.inference_mode():
        expected = hidden_TH(model)
        with read_only(backbone(model), IDS.shape[1], read_M):
            assert torch.equal(hidden_TH(model), expected)


def test_another_threads_call_is_left_alone(tiny_llama):
    # As where one model answers and judges, each on a thread of its own.
    model = tiny_llama().double()
    found = []
    with torch.inference_mode():
        expected = hidden_TH(model)

    def call() -> None:
        with torch.inference_mode():
            found.append(hidden_TH(model))

    with torch.inference_mode(), read_only(backbone(model), IDS.shape[1], READ):
        other = threading.Thread(target=call)
        other.start()
        other.join()
        assert not torch.allclose(hidden_TH(model)[1], expected[1])
    assert torch.equal(found[0], expected)


def test_a_failure_leaves_no_hooks(tiny_llama):
    model = tiny_llama().double()
    last = backbone(model).layers[-1]
    hooks = [last.mlp._forward_hooks, last.mlp._forward_pre_hooks, last.self_attn.o_proj._forward_hooks]

    def fail() -> None:
        with read_only(backbone(model), IDS.shape[1], READ):
            assert all(hooks)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert not any(hooks)


def gradients(model: nn.Module, read_only_those: bool) -> list[torch.Tensor]:
    """Of a sum over what is read, one place twice."""
    model.zero_grad()
    if read_only_those:
        with read_only(backbone(model), IDS.shape[1], READ):
            read_MH = hidden_TH(model)[READ]
    else:
        read_MH = hidden_TH(model)[READ]
    (read_MH * torch.arange(1.0, read_MH.numel() + 1).view_as(read_MH).sin()).sum().backward()
    return [weight.grad.clone() for weight in backbone(model).parameters()]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradients_are_those_of_a_whole_call(family, request):
    model = request.getfixturevalue(f"tiny_{family}")().double()
    torch.testing.assert_close(gradients(model, True), gradients(model, False))


def test_layers_that_are_computed_again_are_computed_whole(tiny_llama):
    model = tiny_llama().double().train()
    expected = gradients(model, False)
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradients(model, True), expected)
