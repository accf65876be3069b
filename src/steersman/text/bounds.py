"""What the length of a text says of its tokens, without tokenising it.

The tokenizers of most open models have a token for every byte: they leave nothing out, so a token is no shorter than
a byte and no longer than the longest in the vocabulary. Then a text has no more tokens than bytes, and a stretch of it
as long as the longest token has one that begins there.
"""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from steersman.text.template import Rendered

_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_SPACE_MARK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
"""SentencePiece's spelling of a space, the one normalisation that changes no place in the text."""


def longest_token(backend: Tokenizer) -> int | None:
    """Most characters that one token stands for; None where bounds do not hold, or are not known to.

    They are known of BPE with a token for every byte, in GPT-2's way (`ByteLevel`) or SentencePiece's (byte fallback),
    that adds nothing to a text, drops nothing and rewrites nothing but spaces.
    """
    model, added = backend.model, backend.get_added_tokens_decoder().values()
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if any(token.lstrip or token.rstrip for token in added):  # such a token takes in any number of spaces
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    normalizer, steps = _state(backend.normalizer), list(_steps(backend.pre_tokenizer))
    if any(step["type"] == "ByteLevel" for step in steps):
        has_every_byte = normalizer is None and vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    else:
        has_every_byte = model.byte_fallback and vocabulary.keys() >= _BYTE_TOKENS
    keeps_spaces = normalizer is None or (normalizer == _SPACE_MARK and "▁" in vocabulary)
    if not (has_every_byte and keeps_spaces and all(map(_keeps_all, steps))):
        return None
    return max(map(len, chain(vocabulary, (token.content for token in added))))


def surely_trains(rendered: Rendered, num_tokens: int, longest: int) -> bool:
    """Whether a trained token lies within the first `num_tokens` of a text, by its length alone.

    False says nothing. `longest` is `longest_token` of the tokenizer.
    """
    return any(
        end - start >= longest and len(rendered.text[:start].encode()) < num_tokens for start, end in rendered.trained
    )


def _state(part: Any) -> Any:
    """The JSON form of a part of a tokenizer, or None."""
    return None if part is None else json.loads(part.__getstate__())


def _steps(pre_tokenizer: Any) -> Iterator[dict[str, Any]]:
    """A pre-tokenizer's steps, one after the other."""
    state = _state(pre_tokenizer)
    if state is not None:
        yield from state["pretokenizers"] if state["type"] == "Sequence" else [state]


def _keeps_all(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer only cuts, adding and dropping nothing."""
    return (
        (step["type"] == "ByteLevel" and not step["add_prefix_space"])
        or (step["type"] == "Split" and step["behavior"] != "Removed")
        or step["type"] == "Digits"
    )
