"""Queries, keys and values together: nearer to the equations than separate operations, and for answers alone."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from steersman.models.attention import IMPLEMENTATION, Segments
from steersman.models.joint import Joint
from steersman.models.joint_attention import FAMILIES, JointAttention, join_attention
from steersman.models.load import backbone
from steersman.models.low_rank import lighten_lora
from steersman.models.norms import lighten
from steersman.models.packed import pack

if not torch.backends.mkldnn.is_available():
    pytest.skip("this build of PyTorch has no oneDNN", allow_module_level=True)

IDS = torch.arange(3, 43)[None]


def example(name: str) -> PreTrainedModel:
    """Two layers of a family, of which one at least has a window where the family knows windows."""
    family = name.removesuffix("Attention").lower()
    config = AutoConfig.for_model({"gemma3": "gemma3_text"}.get(family, family))
    small = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "pad_token_id": 0,
    }  # fmt: skip
    for key, value in small.items():
        if hasattr(config, key):
            setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=IMPLEMENTATION)
    for number, parameter in enumerate(model.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    lighten(model)
    return model.bfloat16().eval()


def joined(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    assert pack(model)
    join_attention(model)
    return model


def hidden_TH(model: nn.Module) -> torch.Tensor:
    return backbone(model)(
        input_ids=IDS,
        position_ids=torch.arange(IDS.shape[1])[None] % 25,
        attention_context=Segments([0, 25, 40]),
        use_cache=False,
    ).last_hidden_state[0]


@pytest.fixture
def num_joint(monkeypatch) -> list[bool]:
    """Whether each call for layers together came to something."""
    calls = []
    output = Joint.output

    def counted(self, layers, x):
        found = output(self, layers, x)
        calls.append(found is not None)
        return found

    monkeypatch.setattr(Joint, "output", counted)
    return calls


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_it_is_as_near_to_the_truth_as_separate_operations(name, num_joint):
    plain = example(name)
    model, true = joined(plain), copy.deepcopy(plain).double()
    assert {type(layer.self_attn).__name__ for layer in backbone(model).layers} == {name}
    assert all(isinstance(layer.self_attn, JointAttention) for layer in backbone(model).layers)
    with torch.inference_mode():
        truth = hidden_TH(true)
        assert (hidden_TH(model) - truth).norm() < 1.1 * (hidden_TH(plain) - truth).norm()
    assert num_joint == [True, True]


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj", "o_proj"], ["q_proj", "v_proj"]])
def test_adapters_count(targets, num_joint):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
    plain = get_peft_model(example("Gemma3Attention"), config).eval()
    for parameter_name, parameter in plain.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    lighten_lora(plain)
    model = joined(plain)
    true, bare = copy.deepcopy(plain).double(), joined(example("Gemma3Attention"))
    with torch.inference_mode():
        without = hidden_TH(bare)
        num_joint.clear()
        truth = hidden_TH(true)
        assert (hidden_TH(model) - truth).norm() < 1.1 * (hidden_TH(plain) - truth).norm()
        assert (without - truth).norm() > 0.3 * truth.norm()
        assert num_joint == [len(targets) == 4] * 2
        with model.disable_adapter():
            torch.testing.assert_close(hidden_TH(model), without, rtol=0.05, atol=0.05)


def test_training_and_its_references_have_the_bits_of_transformers():
    plain = example("Qwen3Attention")
    model = joined(plain)
    assert torch.equal(hidden_TH(model), hidden_TH(plain))
    with torch.no_grad():
        assert torch.equal(hidden_TH(model), hidden_TH(plain))


def test_a_changed_weight_counts_at_once():
    model = joined(example("Gemma3Attention"))
    for name in ("q_proj", "k_norm"):
        with torch.inference_mode():
            before = hidden_TH(model)
        weight = backbone(model).layers[0].self_attn.get_submodule(name).weight
        with torch.no_grad():
            weight.neg_()
        anew = joined(model)
        with torch.inference_mode():
            after = hidden_TH(model)
            assert not torch.allclose(after, before, atol=0.1)
            assert torch.equal(after, hidden_TH(anew))
