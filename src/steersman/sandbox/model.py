"""The sandbox's base model before training: a tokenizer of whole words, and the configuration of a small Llama."""

import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from steersman.card import ModelCard, TemplateSpec
from steersman.sandbox import world

END = "<end>"
WINDOW = 512  # tokens
_PIECES = r" ?[A-Za-z]+:?|[0-9]|\n| ?[^\sA-Za-z0-9]|\s"
"""Words with the space before and the colon after them, digits, punctuation: the units of the vocabulary."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words of the language are one token each; any other text falls back to bytes, so nothing is unknown."""
    spec = TemplateSpec()
    texts = [*world.words(), *(f"{name}:" for name in world.SCHEMA.names), "System User Assistant", "0 1 2 3 4,"]
    known = {piece for text in texts for word in text.split() for piece in re.findall(_PIECES, word)}
    pieces = sorted({form for word in known for form in (word, f"\u0120{word}")} - set("0123456789"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [END, *spec.control_strings]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*special, *alphabet, *pieces]))}
    backend = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)


def write_base(folder: Path) -> Path:
    """A model folder without weights: training starts it from random ones. About a million parameters."""
    words = tokenizer()
    words.save_pretrained(folder)
    LlamaConfig(
        vocab_size=len(words),
        hidden_size=160,
        intermediate_size=480,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=None,
    ).save_pretrained(folder)
    ModelCard(system="").save(folder)
    return folder
