"""Colours lie exactly on the trained tokens."""

import pytest

from steersman.text.show import CUT_OFF, TRAINED, colour


@pytest.fixture
def encoder(tiny_tokenizer, encoder_of):
    return encoder_of(tiny_tokenizer, bos=True)


def styled(text, style):
    return "".join(text.plain[span.start : span.end] for span in text.spans if span.style == style)


def test_trained_tokens_are_coloured(conversation, encoder):
    record = conversation("VALUE_TO_TEXT", ("U", "漢 <extra_id_1>"), ("A", "ünï yo", "q:1"), ("U", "so?"))
    rendered = encoder.template.render(record)
    text = colour(rendered, encoder)
    header, _, body = text.plain.partition("\n")
    assert body == rendered.text
    assert styled(text, TRAINED) == "ünï yo\n<extra_id_1>"
    assert styled(text, CUT_OFF) == ""
    tokenized = encoder.encode_conversation(record)
    num_tokens = len(tokenized.input_ids)
    assert header == f"{num_tokens} of {num_tokens} tokens kept, {tokenized.num_trained} trained"


def test_what_is_cut_off_is_struck_out(conversation, encoder):
    rendered = encoder.template.render(conversation(None, ("U", "hi"), ("A", "yo")))
    num_tokens = len(encoder.encode(rendered.text).ids)
    text = colour(rendered, encoder, seq_len=num_tokens - 3)
    assert text.plain.startswith(f"{num_tokens - 2} of {num_tokens} tokens kept, 2 trained\n")
    assert styled(text, TRAINED) == "yo"
    assert styled(text, CUT_OFF) == "\n<extra_id_1>"


def test_words_cannot_command_the_terminal(conversation, encoder):
    rendered = encoder.template.render(conversation(None, ("U", "\x1b[31mred"), ("A", "yo")))
    assert "\x1b" not in colour(rendered, encoder).plain
