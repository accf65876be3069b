"""Bare SentencePiece models: the same ids as SentencePiece itself gives."""

import random

import pytest
import sentencepiece

from steersman.card import TemplateSpec
from steersman.errors import TokenizerError
from steersman.text.tokenize import Encoder, add_control_tokens, load_tokenizer

LINES = [
    "What is the capital of France? The capital of France is Paris.",
    "Tell me a joke about the sea: why did it wave? Because it saw the shore!",
    "There are 3 apples, 12 pears and 4567 plums left (about 89%).",
    "System User Assistant quality toxicity humor creativity helpfulness",
    "naïve café, über straße; the the the tethered other",
] * 20
AS_LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def train(folder, model_type, **options):
    size = 420 if options.get("byte_fallback") else 140
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "sp"), model_type=model_type, vocab_size=size,
        hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return folder / "sp.model"


def texts():
    """Sentences of known words, and of letters that hardly fit together."""
    numbers = random.Random(0)
    vocabulary = " ".join(LINES).split()
    for _ in range(100):
        yield " ".join(numbers.choices(vocabulary, k=numbers.randint(1, 12)))
        yield "".join(numbers.choices("abcdehiolrst ,.:?<>1", k=numbers.randint(1, 30))).lstrip() or "a"
    yield from ("", "two  spaces", "trailing  ", "tab\there", "line\n\nbreak", "漢字 🎉", "x" * 40, "ﬁne ½")


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [{}, AS_LLAMA, {"add_dummy_prefix": False}], ids=["default", "llama", "gemma"])
def test_ids_equal_sentencepiece(tmp_path, model_type, options):
    path = train(tmp_path, model_type, **options)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(path)
    assert len(tokenizer) == reference.get_piece_size()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (reference.bos_id(), reference.eos_id())
    for text in texts():
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.encode(text), text
    if options == AS_LLAMA:
        assert all(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text for text in texts())


def test_user_defined_control_strings(tmp_path, conversation):
    """A model whose vocabulary has the control strings already keeps their ids."""
    controls = ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    path = train(tmp_path, "bpe", user_defined_symbols=controls, **AS_LLAMA)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for source in (path, tmp_path):  # the file, or the folder that holds nothing else
        tokenizer = load_tokenizer(source)
        assert add_control_tokens(tokenizer, TemplateSpec()) == []
        encoder = Encoder(tokenizer, TemplateSpec(bos=True))
        ids = encoder.encode_conversation(
            conversation("VALUE_TO_TEXT", ("U", "Tell me a joke about <extra_id_1>"), ("A", "The sea", "humor:1"))
        ).input_ids
        assert [i for i in ids if i in reference.piece_to_id(controls)] == reference.piece_to_id(
            ["<extra_id_0>", "<extra_id_1>", "<extra_id_1>", "<extra_id_2>", "<extra_id_1>"]
        )
        assert ids[0] == reference.bos_id()


def test_models_of_words_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="words or characters"):
        load_tokenizer(train(tmp_path, "char"))
