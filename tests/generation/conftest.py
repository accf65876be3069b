"""Loaded models for the engine: tiny random ones of four families, with the tiny tokenizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steersman.card import ModelCard, TemplateSpec
from steersman.models.attention import IMPLEMENTATION
from steersman.models.load import LoadedModel
from steersman.text.tokenize import Encoder, add_control_tokens

OTHER_FAMILIES = {
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
FAMILIES = ("llama", "gemma3", *OTHER_FAMILIES)

Load = Callable[..., LoadedModel]


@pytest.fixture
def load(tiny_llama: Any, tiny_gemma3: Any, tiny_tokenizer: PreTrainedTokenizerFast) -> Load:
    """`load(family, **template)` -> a tiny random model with its encoder, in fp32; same weights at every call."""

    def make(family: str = "llama", **template: Any) -> LoadedModel:
        spec = TemplateSpec(**{"bos": True, "control": "special", **template})
        add_control_tokens(tiny_tokenizer, spec)
        model: PreTrainedModel
        if family in OTHER_FAMILIES:
            model_type, config_type, options = OTHER_FAMILIES[family]
            config = {**tiny_llama().config.to_dict(), **options}
            for key in ("model_type", "architectures", "transformers_version", "layer_types"):
                config.pop(key, None)
            torch.manual_seed(0)
            model = model_type(config_type(**config)).float().eval()
        else:
            model = {"llama": tiny_llama, "gemma3": tiny_gemma3}[family]()
        model.set_attn_implementation(IMPLEMENTATION)
        return LoadedModel(model, Encoder(tiny_tokenizer, spec), ModelCard(template=spec), "tiny")

    return make
