"""The last layer where it is read: the same hidden states there, and less work."""

import pytest
import torch
from torch import nn

from steersman.models.last_layer import read_only
from steersman.models.load import backbone

IDS = torch.arange(3, 43)[None]
READ = [0, 7, 39]


def hidden_TH(model: nn.Module) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1])[None]
    return backbone(model)(input_ids=IDS, position_ids=positions, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_hidden_states_where_they_are_read_are_those_of_a_whole_call(family, request):
    model = request.getfixturevalue(f"tiny_{family}")()
    rows: list[int] = []
    with torch.inference_mode():
        expected = hidden_TH(model)
        with read_only(backbone(model), IDS.shape[1], READ):
            counted = backbone(model).layers[-1].mlp.gate_proj.register_forward_hook(
                lambda _, inputs, __: rows.append(inputs[0].shape[1])
            )
            found = hidden_TH(model)
            counted.remove()
        torch.testing.assert_close(found[READ], expected[READ], rtol=1e-5, atol=1e-6)
        assert rows == [len(READ)]
        assert not torch.allclose(found[1], expected[1])  # so the work was left out
        assert torch.equal(hidden_TH(model), expected)  # and is done again afterwards


def test_a_family_that_is_not_known_computes_all(tiny_llama):
    model = tiny_llama()
    layer = backbone(model).layers[-1]
    layer.mlp.__class__ = type("UnknownMLP", (type(layer.mlp),), {})
    with torch.inference_mode():
        expected = hidden_TH(model)
        with read_only(backbone(model), IDS.shape[1], READ):
            assert torch.equal(hidden_TH(model), expected)


def test_a_failure_leaves_no_hooks(tiny_llama):
    model = tiny_llama()
    layer = backbone(model).layers[-1]
    with pytest.raises(RuntimeError, match="boom"), read_only(backbone(model), IDS.shape[1], READ):
        assert layer.mlp._forward_hooks
        raise RuntimeError("boom")
    assert not layer.mlp._forward_hooks
    assert not layer.self_attn.o_proj._forward_pre_hooks
