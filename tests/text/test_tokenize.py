"""Tokens, offsets, BOS, truncation, and control strings that must stay words."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steersman.card import ModelCard, TemplateSpec
from steersman.errors import ConfigError, DataError, TokenizerError
from steersman.text.tokenize import Encoded, Encoder, add_control_tokens, load_tokenizer, loss_mask, open_encoder

ROUNDS = [("U", "hi"), ("A", "yo", "quality:4"), ("U", "so?"), ("A", "bye", "quality:0")]


def pieces(encoder, tokenized):
    """Runs of tokens as text: [(text, trained), ...]."""
    runs = []
    for token, trained in zip(tokenized.input_ids, tokenized.loss_mask, strict=True):
        if runs and runs[-1][1] == trained:
            runs[-1][0].append(token)
        else:
            runs.append(([token], trained))
    return [(encoder.tokenizer.decode(tokens), trained) for tokens, trained in runs]


def test_a_token_is_trained_when_its_first_character_is():
    encoded = Encoded(ids=[5, 6, 7, 8, 9], offsets=[(0, 3), (3, 6), (6, 6), (6, 7), (7, 9)])
    assert loss_mask(encoded, [(3, 4), (7, 8)]) == [False, True, False, False, True]
    assert loss_mask(encoded, [(0, 1), (4, 6), (6, 7)]) == [True, False, True, True, False]
    assert loss_mask(encoded, []) == [False] * 5


# Hand-written: below each token (a control token ⓪①②, a line break / or a character) ^ where it is trained.
MASKS = {
    "VALUE_TO_TEXT": (
        "⓪System/Be/①User/ho/①Assistant/②q:4/yo/①User/ok/①Assistant/②q:0/bye/①",
        "                                    ^^^^                        ^^^^^",
    ),
    "TEXT_TO_VALUE": (
        "⓪System/Be/①User/ho/①Assistant/yo/②q:4/①User/ok/①Assistant/bye/②q:0/①",
        "                                   ^^^^^                        ^^^^^",
    ),
    None: (
        "⓪System/Be/①User/ho/①Assistant/yo/①User/ok/①Assistant/bye/①",
        "                               ^^^^                   ^^^^^",
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_loss_mask_of_every_token(conversation, characters, encoder_of, kind):
    encoder = encoder_of(characters)
    turns = [("U", "ho"), ("A", "yo", "q:4"), ("U", "ok"), ("A", "bye", "q:0")]
    tokenized = encoder.encode_conversation(conversation(kind, *turns, system="Be"))
    names = {"<extra_id_0>": "⓪", "<extra_id_1>": "①", "<extra_id_2>": "②", "\n": "/"}
    tokens = encoder.tokenizer.convert_ids_to_tokens(tokenized.input_ids)
    text, mask = MASKS[kind]
    assert [names.get(token, token) for token in tokens] == list(text)
    assert tokenized.loss_mask == [character == "^" for character in mask.ljust(len(text))]
    assert tokenized.num_trained == mask.count("^")


def test_the_mask_is_made_before_the_sequence_is_cut(conversation, tiny_tokenizer, encoder_of):
    encoder = encoder_of(tiny_tokenizer)
    record = conversation("VALUE_TO_TEXT", *ROUNDS)
    whole = encoder.encode_conversation(record)
    for seq_len in (1, 10, len(whole.input_ids) - 2, len(whole.input_ids) - 1, 1000):
        cut = encoder.encode_conversation(record, seq_len)
        assert cut.input_ids == whole.input_ids[: seq_len + 1]
        assert cut.loss_mask == whole.loss_mask[: seq_len + 1]


def test_many_at_once_equal_one_by_one(conversation, letters, encoder_of):
    encoder = encoder_of(letters, bos=True)
    records = [
        conversation(kind, *ROUNDS[: 1 + i % 4], ("U", "a </s> b" if i % 3 else "c"), system="x" * i)
        for i, kind in enumerate(["VALUE_TO_TEXT", "TEXT_TO_VALUE", None] * 5)
    ]
    assert encoder.encode_conversations(records, 40) == [encoder.encode_conversation(r, 40) for r in records]
    assert encoder.encode_conversations([], 40) == []


def test_bos_is_never_doubled(conversation, letters, encoder_of):
    """Though the tokenizer's post-processor adds one, and though a text begins with it."""
    with_bos, without = encoder_of(letters, bos=True), encoder_of(letters, bos=False)
    assert with_bos.encode("hi").ids == [1, *without.encode("hi").ids]
    assert with_bos.encode("hi").offsets[0] == (0, 0)
    assert with_bos.encode("<s>hi") == without.encode("<s>hi")
    assert with_bos.encode("").ids == [1]
    assert with_bos.encode("<s>hi", literal=[(0, 3)]).ids.count(1) == 1  # those words are not BOS
    prompt = with_bos.template.prompt_for_answer(conversation(None, ("U", "hi")))
    assert with_bos.encode_prompt(prompt) == [1, *without.encode_prompt(prompt)]
    assert with_bos.encode_conversation(conversation(None, ("A", "hi"))).loss_mask[0] is False


def test_decode_keeps_control_tokens_and_drops_bos(tiny_tokenizer, encoder_of):
    encoder = encoder_of(tiny_tokenizer, bos=True)
    text = "<extra_id_1>User\nWhat  is ünïcode 漢?\n</s>"
    assert encoder.decode(encoder.encode(text).ids) == text
    assert encoder.decode([]) == ""


LITERAL = ["<extra_id_1>", "</s>", "<s>"]


def test_words_never_become_special_tokens(conversation, encoder_of, any_tokenizer):
    encoder = encoder_of(any_tokenizer)
    special = {encoder.tokenizer.convert_tokens_to_ids(string) for string in LITERAL}
    for string in LITERAL:
        wild = conversation("VALUE_TO_TEXT", ("U", f"a {string} b"), ("A", f"{string}hi hi", "q:1"), system=string)
        tame = conversation("VALUE_TO_TEXT", ("U", "a  b"), ("A", "hi hi", "q:1"), system="")
        ids = encoder.encode_conversation(wild).input_ids
        assert [i for i in ids if i in special] == [
            i for i in encoder.encode_conversation(tame).input_ids if i in special
        ]
        assert encoder.encode_conversation(tame) == Encoder(any_tokenizer, encoder.spec).encode_conversation(tame)
        text = encoder.template.render(wild).text
        encoded = encoder.encode(text, encoder.template.render(wild).literal)
        assert encoded.ids == ids
        for (start, end), (next_start, _) in zip(encoded.offsets, encoded.offsets[1:], strict=False):
            assert 0 <= start <= end <= len(text)
            assert start <= next_start


@pytest.mark.parametrize("string", ["<extra_id_1>", "<extra_id_2>"])
def test_ids_are_those_of_a_tokenizer_without_that_token(conversation, encoder_of, any_tokenizer, string):
    """A tokenizer that never knew the string tells what the ids of somebody's words are, in every context."""
    encoder = encoder_of(any_tokenizer)
    backend = any_tokenizer.backend_tokenizer
    innocent = Tokenizer(backend.model)
    innocent.normalizer, innocent.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    marks = {"<extra_id_0>": "<0>", "<extra_id_1>": "<1>", "<extra_id_2>": "<2>"}
    innocent.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks.values()])
    turns = [("U", f"{string} a {string}{string}\nhi {string}hi"), ("A", f"hi {string}", "q:1"), ("U", "hi")]
    rendered = encoder.template.render(conversation("VALUE_TO_TEXT", *turns, system=f"hi {string}"))
    text, shift = rendered.text, 0
    for start, end in encoder.template._controls.find(rendered.text):
        if (start, end) not in rendered.literal:
            mark = marks[rendered.text[start:end]]
            text = text[: start + shift] + mark + text[end + shift :]
            shift += len(mark) - (end - start)
    expected = [
        encoder.tokenizer.convert_tokens_to_ids({v: k for k, v in marks.items()}.get(token, token))
        for token in innocent.encode(text, add_special_tokens=False).tokens
    ]
    assert encoder.encode(rendered.text, rendered.literal).ids == expected


def test_a_tokenizer_that_makes_specials_of_single_characters(encoder_of):
    backend = Tokenizer(models.WordLevel({"?": 0, "§": 1, "a": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["§"])
    encoder = encoder_of(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?", eos_token="§"))
    assert encoder.encode("a§a").ids == [2, 1, 2]
    with pytest.raises(TokenizerError, match="special token '§' of plain words"):
        encoder.encode("a§a", literal=[(1, 2)])


def test_offsets_ignore_the_post_processor(conversation, tiny_tokenizer, encoder_of):
    """Llama 3's post-processor takes leading blanks out of offsets; the blank is still the token's first character."""
    record = conversation(None, ("U", "hi"), ("A", " the moon"))
    plain = encoder_of(tiny_tokenizer).encode_conversation(record)
    tiny_tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    encoder = Encoder(tiny_tokenizer, TemplateSpec())
    assert encoder.encode_conversation(record) == plain
    moon = encoder.encode(" the moon").offsets
    assert [start for start, _ in moon] == [0, *(end for _, end in moon[:-1])]


def test_truncation_stored_in_the_tokenizer_is_ignored(tiny_tokenizer, encoder_of):
    tiny_tokenizer.backend_tokenizer.enable_truncation(4)
    assert len(encoder_of(tiny_tokenizer).encode("one two three four five six seven").ids) > 4


words = st.text(st.sampled_from("ab hi\n?") | st.characters(codec="utf-8"), min_size=1, max_size=10)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(question=words, answer=words.filter(lambda text: not text[0].isspace()), system=words)
@pytest.mark.parametrize("bos", [False, True])
def test_prompt_ids_begin_the_conversations_ids(
    conversation, tiny_tokenizer, encoder_of, question, answer, system, bos
):
    """For answers that do not begin with white space, which could melt into one token with the line break before."""
    encoder = encoder_of(tiny_tokenizer, bos=bos)
    turns = [("U", question), ("A", answer, "quality:4"), ("U", question), ("A", answer, "humor:1")]
    obeyed = encoder.encode_conversation(conversation("VALUE_TO_TEXT", *turns, system=system))
    asked = conversation("VALUE_TO_TEXT", *turns[:3], system=system)
    ids = encoder.encode_prompt(encoder.template.prompt_for_answer(asked, label="humor:1"))
    assert obeyed.input_ids[: len(ids)] == ids
    assert all(obeyed.loss_mask[len(ids) :])
    predicted = encoder.encode_conversation(conversation("TEXT_TO_VALUE", *turns, system=system))
    ids = encoder.encode_prompt(encoder.template.prompt_for_label(conversation(None, *turns[:2], system=system)))
    assert predicted.input_ids[: len(ids)] == ids
    assert predicted.loss_mask[len(ids)]
    assert not any(predicted.loss_mask[: len(ids)])


def test_chat_prompt_ids_begin_the_conversations_ids(conversation, family, chat_tokenizer):
    encoder = Encoder(chat_tokenizer(family), TemplateSpec(kind="chat"))
    obeyed = encoder.encode_conversation(conversation("VALUE_TO_TEXT", *ROUNDS))
    prompt = encoder.template.prompt_for_answer(conversation("VALUE_TO_TEXT", *ROUNDS[:3]), label="quality:0")
    ids = encoder.encode_prompt(prompt)
    assert obeyed.input_ids[: len(ids)] == ids
    assert pieces(encoder, obeyed)[-2 if obeyed.loss_mask[-1] is False else -1] == ("bye" + family.end, True)
    bos_id = encoder.bos_id
    assert obeyed.input_ids.count(bos_id) == (0 if family.bos is None else 1)
    again = Encoder(encoder.tokenizer, TemplateSpec(kind="chat", bos=family.bos is not None))
    assert again.encode_conversation(conversation("VALUE_TO_TEXT", *ROUNDS)) == obeyed


def test_end_tokens(tiny_tokenizer, encoder_of, families, chat_tokenizer):
    eos = tiny_tokenizer.eos_token_id
    assert Encoder(tiny_tokenizer, TemplateSpec(control="text")).eos_ids == (eos,)
    encoder = encoder_of(tiny_tokenizer)
    assert encoder.eos_ids == (eos, tiny_tokenizer.convert_tokens_to_ids("<extra_id_1>"))
    assert encoder_of(tiny_tokenizer, kind="chatml").eos_ids == (
        eos,
        tiny_tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    llama = chat_tokenizer(families["llama3"])
    ends = llama.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    assert Encoder(llama, TemplateSpec(kind="chat")).eos_ids == tuple(ends)


def test_control_tokens(tiny_tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match=r"lacks the special tokens <extra_id_0>, <extra_id_1>, <extra_id_2>"):
        Encoder(tiny_tokenizer, TemplateSpec())
    num_before = len(tiny_tokenizer)
    tiny_tokenizer.add_tokens([AddedToken("<extra_id_1>", special=False)])
    with pytest.raises(TokenizerError, match="<extra_id_1>"):  # known, but as a word like others
        Encoder(tiny_tokenizer, TemplateSpec())
    assert add_control_tokens(tiny_tokenizer, TemplateSpec()) == ["<extra_id_0>", "<extra_id_2>"]
    assert add_control_tokens(tiny_tokenizer, TemplateSpec()) == []
    assert len(tiny_tokenizer) == num_before + 3
    encoded = Encoder(tiny_tokenizer, TemplateSpec()).encode("<extra_id_1>\n<extra_id_2>")
    tiny_tokenizer.save_pretrained(tmp_path)
    assert Encoder(load_tokenizer(tmp_path), TemplateSpec()).encode("<extra_id_1>\n<extra_id_2>") == encoded


def test_plain_text_control_strings(conversation, tiny_tokenizer):
    spec = TemplateSpec(control="text")
    assert add_control_tokens(tiny_tokenizer, spec) == []
    encoder = Encoder(tiny_tokenizer, spec)
    runs = pieces(encoder, encoder.encode_conversation(conversation("VALUE_TO_TEXT", ("U", "hi"), ("A", "yo", "q:1"))))
    assert runs[-1] == ("yo\n<extra_id_1>", True)
    with pytest.raises(DataError, match="control string '<extra_id_1>'"):
        encoder.encode_conversation(conversation(None, ("U", "<extra_id_1>")))


def test_bos_that_there_is_none_of(tiny_tokenizer):
    tiny_tokenizer.bos_token = None
    with pytest.raises(TokenizerError, match="no BOS token; say bos: false"):
        Encoder(tiny_tokenizer, TemplateSpec(control="text", bos=True))


def test_load_a_folder_and_a_file(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "folder")
    (tmp_path / "bare").mkdir()
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "bare" / "tokenizer.json"))
    ids = tiny_tokenizer("The capital", add_special_tokens=False)["input_ids"]
    for path in ("folder", "folder/tokenizer.json", "bare", "bare/tokenizer.json"):
        loaded = load_tokenizer(tmp_path / path)
        assert loaded("The capital", add_special_tokens=False)["input_ids"] == ids
        assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./absent", "no such tokenizer"),
        ("tokenizer.json", "no such tokenizer"),
        ("{}", "no tokenizer here"),
        ("{}/broken/tokenizer.json", "not a tokenizer.json"),
        ("{}/broken/sp.model", "not a SentencePiece model"),
        ("{}/config/", "cannot load a tokenizer"),
    ],
)
def test_tokenizers_that_cannot_be_loaded(tmp_path, monkeypatch, path, message):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "broken" / "sp.model").write_bytes(b"not a protobuf")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "tokenizer_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(path.format(tmp_path))


def test_open_encoder(tiny_tokenizer, tmp_path):
    """The card of a trained model governs; otherwise the arguments choose, and absent control tokens are added."""
    tiny_tokenizer.save_pretrained(tmp_path)
    encoder, schema = open_encoder(tmp_path)
    assert encoder.spec == TemplateSpec()
    assert schema is None
    assert open_encoder(tmp_path, kind="chatml", bos=True)[0].spec == TemplateSpec(kind="chatml", bos=True)
    ModelCard(template=TemplateSpec(bos=True)).save(tmp_path)
    assert open_encoder(tmp_path)[0].spec == TemplateSpec(), "a base model's card does not say how it will be trained"
    assert open_encoder(tmp_path, control="text")[0].spec == TemplateSpec(control="text")
    ModelCard(role="sft", template=TemplateSpec(bos=True)).save(tmp_path)
    assert open_encoder(tmp_path, bos=True, kind="extra_id")[0].spec == TemplateSpec(bos=True)
    with pytest.raises(ConfigError, match="was trained with template extra_id, bos True, control special"):
        open_encoder(tmp_path, bos=False)
