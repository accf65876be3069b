"""Where candidates' tokens lie in a tokenised text."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steersman.card import TemplateSpec
from steersman.errors import DataError
from steersman.generation.continuations import ContinuationTokeniser
from steersman.records import Prompt
from steersman.seams import ScoreRequest
from steersman.text.tokenize import Encoder, add_control_tokens

DIGITS = tuple("01234")


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    spec = TemplateSpec(bos=True)
    add_control_tokens(tiny_tokenizer, spec)
    return Encoder(tiny_tokenizer, spec)


def merging_encoder() -> Encoder:
    """Characters, but "10", ":4" and "4," are single tokens."""
    characters = ["<s>", "<unk>", *"abq:,0123459 \n", "10", ":4", "4,"]
    model = models.BPE(
        {token: i for i, token in enumerate(characters)}, [("1", "0"), (":", "4"), ("4", ",")], unk_token="<unk>"
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    return Encoder(tokenizer, TemplateSpec(control="text", bos=True))


def locate(
    encoder: Encoder, prompt: str, text: str, place: str, candidates: tuple[str, ...]
) -> tuple[str, list[list[str]]]:
    """The text before the candidates, and each candidate's tokens as strings."""
    span = (text.index(place), text.index(place) + len(place))
    request = ScoreRequest(prompt=Prompt(text=prompt), continuation=text, alternatives={span: candidates})
    tokenised = ContinuationTokeniser(encoder)(request)
    found = tokenised.alternatives[span]
    decode = encoder.tokenizer.decode
    return decode(tokenised.ids[1 : found.start]), [[decode([t]) for t in tokens] for tokens in found.token_ids]


def test_digits_of_a_label_differ_in_one_token(encoder: Encoder):
    before, tokens = locate(encoder, "<extra_id_2>", "quality:4,humor:2\n", "4", DIGITS)
    assert before == "<extra_id_2>quality:"
    assert tokens == [["0"], ["1"], ["2"], ["3"], ["4"]]


def test_a_candidate_that_merges_with_what_comes_before():
    before, tokens = locate(merging_encoder(), "a", "q:4\n", "4", ("3", "4"))
    assert (before, tokens) == ("aq", [[":", "3"], [":4"]])


def test_a_candidate_that_merges_with_what_follows():
    # without the ":" that would take it, 4 merges with the comma
    before, tokens = locate(merging_encoder(), "a", "q4,b\n", "4", ("3", "4"))
    assert (before, tokens) == ("aq", [["3", ","], ["4,"]])


def test_one_candidate_that_begins_another_is_told_apart_by_what_follows(encoder: Encoder):
    _, tokens = locate(encoder, "The moon", " is 9, the sea", "9", ("9", "10", "1"))
    assert tokens == [["9", ","], ["1", "0", ","], ["1", ","]]
    # here "10" is one token, which no other begins
    assert locate(merging_encoder(), "a", " 9,\n", "9", ("9", "10", "1"))[1] == [["9"], ["10"], ["1"]]


def test_candidates_that_begin_alike_count_from_the_span_on(encoder: Encoder):
    before, tokens = locate(encoder, "a", "b 12.", "12", ("12", "13"))
    assert before + "".join(tokens[0]) == "ab 12"
    assert "".join(tokens[1]).lstrip() == "13"


def test_the_tail_alone_gives_what_the_whole_text_gives(encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    prompt = Prompt(
        text="<extra_id_1>User\nsay <extra_id_2> to me\n<extra_id_1>Assistant\nhi\n<extra_id_2>", literal=((21, 33),)
    )
    assert prompt.text[21:33] == "<extra_id_2>"
    text = "quality:4,toxicity:0\n"
    request = ScoreRequest(prompt=prompt, continuation=text, alternatives={(8, 9): DIGITS, (19, 20): DIGITS})
    by_tail = ContinuationTokeniser(encoder)(request)
    monkeypatch.setattr(ContinuationTokeniser, "_cut", lambda *_: (1, 0))  # from the first token after BOS
    assert ContinuationTokeniser(encoder)(request) == by_tail


def test_the_continuation_begins_with_the_first_token_that_reaches_into_it(encoder: Encoder):
    ids = encoder.encode("What is the capital").ids
    for boundary in range(1, len("What is the capital") + 1):
        prompt, continuation = "What is the capital"[:boundary], "What is the capital"[boundary:]
        tokenised = ContinuationTokeniser(encoder)(ScoreRequest(prompt=Prompt(text=prompt), continuation=continuation))
        assert tokenised.ids == ids
        rest = encoder.tokenizer.decode(ids[tokenised.first :])
        assert rest.endswith(continuation)
        assert len(encoder.tokenizer.decode(ids[tokenised.first + 1 :])) < max(len(continuation), 1)


def test_what_cannot_be_scored_is_refused(encoder: Encoder):
    tokenise = ContinuationTokeniser(encoder)
    with pytest.raises(DataError, match=r"alternatives for '4'.*must include it: \['0', '1'\]"):
        tokenise(ScoreRequest(prompt=Prompt(text="q:"), continuation="4", alternatives={(0, 1): ["0", "1"]}))
    without_bos = Encoder(encoder.tokenizer, TemplateSpec(bos=False))
    with pytest.raises(DataError, match="nothing comes before"):
        ContinuationTokeniser(without_bos)(ScoreRequest(prompt=Prompt(text=""), continuation="What"))
