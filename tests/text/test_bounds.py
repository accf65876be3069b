"""What the length of a text says of its tokens holds for every tokenizer of which it is said."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from steersman.text.bounds import longest_token, surely_trains
from steersman.text.template import Rendered

MERGES = [("a", "b"), ("ab", "a"), ("▁", "a"), ("é", "é"), ("aba", "aba")]


def fallback_tokenizer() -> Tokenizer:
    """As Gemma's: spaces are marked, and what has no token of its own becomes bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "é", "▁", *map("".join, MERGES)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.add_special_tokens(["<s>"])
    return backend


def bytes_tokenizer() -> Tokenizer:
    """As GPT-2's and Llama 3's: text is cut into words of bytes."""
    merges = [("a", "b"), ("ab", "a"), ("Ġ", "a"), ("Ã", "©")]
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), *map("".join, merges)]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<s>"])
    return backend


TOKENIZERS = [fallback_tokenizer(), bytes_tokenizer()]


def test_the_longest_token() -> None:
    assert [longest_token(backend) for backend in TOKENIZERS] == [6, 3]  # abaaba (and <0x00>), <s> (and aba)
    long = bytes_tokenizer()
    long.add_tokens(["<unused>"])
    assert longest_token(long) == 8


@given(st.text("ab é\n日🙂<s>", max_size=30), st.data())
@pytest.mark.parametrize("backend", TOKENIZERS)
def test_what_is_said_to_be_trained_is(backend: Tokenizer, text: str, data: st.DataObject) -> None:
    longest = longest_token(backend)
    assert longest is not None
    start, end = sorted((data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(text)))))
    rendered = Rendered(text, ((start, end),), ())
    starts = [start for start, _ in backend.encode(text, add_special_tokens=False).offsets]
    assert len(starts) <= len(text.encode())
    for num_tokens in range(len(text.encode()) + 2):
        if surely_trains(rendered, num_tokens, longest):
            assert any(start <= first < end for first in starts[:num_tokens])


def test_both_bounds_are_reached() -> None:
    """Four bytes before the span may be four tokens, so the fifth is needed; a span shorter than a token has perhaps
    no token of its own."""
    rendered = Rendered("🙂abaaba", ((1, 7),), ())
    assert [surely_trains(rendered, num_tokens, 6) for num_tokens in (4, 5)] == [False, True]
    assert not surely_trains(Rendered("🙂abaaba", ((1, 6),), ()), 99, 6)
    assert surely_trains(Rendered("🙂abaaba", ((0, 1), (1, 7)), ()), 5, 6)


def changed(change: Callable[[Tokenizer], object], backend: Tokenizer) -> Tokenizer:
    change(backend)
    return backend


def set_normalizer(normalizer: normalizers.Normalizer) -> Callable[[Tokenizer], None]:
    return lambda backend: setattr(backend, "normalizer", normalizer)


def set_pre_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Callable[[Tokenizer], None]:
    return lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizer)


def test_nothing_is_said_of_tokenizers_that_add_drop_or_rewrite() -> None:
    for change in (
        set_normalizer(normalizers.NFC()),
        set_normalizer(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
        set_normalizer(normalizers.Replace("a", "▁")),
        set_pre_tokenizer(pre_tokenizers.Whitespace()),
        set_pre_tokenizer(pre_tokenizers.Split(" ", "removed")),
        set_pre_tokenizer(pre_tokenizers.Metaspace(prepend_scheme="first")),
        lambda backend: backend.add_tokens([AddedToken("<mask>", lstrip=True)]),
    ):
        assert longest_token(changed(change, fallback_tokenizer())) is None
    for change in (
        set_normalizer(normalizers.Lowercase()),
        set_pre_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        set_pre_tokenizer(pre_tokenizers.Digits()),  # bytes that are no letters have no token then
    ):
        assert longest_token(changed(change, bytes_tokenizer())) is None
    assert longest_token(Tokenizer(models.BPE(vocab={"a": 0, "<unk>": 1}, merges=[], unk_token="<unk>"))) is None
    assert longest_token(Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))) is None


def test_steps_that_only_cut() -> None:
    cutting = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert longest_token(changed(set_pre_tokenizer(cutting), bytes_tokenizer())) == 3
    assert longest_token(changed(set_pre_tokenizer(pre_tokenizers.Digits()), fallback_tokenizer())) == 6
