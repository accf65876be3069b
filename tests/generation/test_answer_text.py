"""Text of an answer as its tokens come: whole characters only, stop strings wherever token boundaries lie."""

import pytest

from steersman.generation.answer_text import AnswerText

PIECES = [b"ab", b"cd", b"e", b"\xf0\x9f", b"\x98", b"\x80!", b"\xff", b"</s>", b" x", "é".encode()]


def decode(ids: list[int]) -> str:
    """A byte-level tokenizer's decoder."""
    return b"".join(PIECES[token] for token in ids).decode(errors="replace")


def feed(ids: list[int], stop: tuple[str, ...] = (), min_tokens: int = 0) -> tuple[AnswerText, list[str]]:
    """Push tokens until a stop string comes, collecting what may be shown."""
    text = AnswerText(decode, [0, 1], stop)
    shown = []
    for count, token in enumerate(ids, start=1):
        text.push(token, may_stop=count >= min_tokens)
        shown.append(text.take(complete=text.stop is not None))
        if text.stop is not None:
            return text, shown
    text.finish()
    return text, [*shown, text.take(complete=True)]


def test_a_character_is_shown_once_it_is_whole():
    text, shown = feed([0, 3, 4, 5, 2])
    assert shown == ["ab", "", "", "😀!", "e", ""]
    assert text.text == "ab😀!e"


def test_an_unfinished_character_at_the_end_is_left_out():
    text, shown = feed([0, 3, 4])
    assert text.text == "ab"
    assert "".join(shown) == "ab"


def test_bytes_that_are_no_character_are_replaced():
    assert feed([0, 6, 2])[0].text == "ab\ufffde"


def test_a_stop_string_across_tokens_is_cut_and_never_shown():
    text, shown = feed([0, 1, 2], stop=("bcde",))
    assert (text.text, text.stop) == ("a", "bcde")
    assert shown == ["a", "", ""]


def test_what_turns_out_not_to_be_a_stop_string_is_shown_late():
    text, shown = feed([0, 1, 0, 2], stop=("bcdx",))
    assert shown == ["a", "", "bcda", "be", ""]
    assert (text.text, text.stop) == ("abcdabe", None)


def test_the_stop_string_that_is_complete_first_counts_whatever_the_tokens():
    # character by character, "bc" is complete before "abcd"
    assert feed([0, 1], stop=("abcd", "bc"))[0].stop == "bc"
    assert feed([0, 1], stop=("cd", "bcd"))[0].text == "a"  # of two that end together, the longer


def test_stop_strings_before_min_tokens_are_text():
    text, _ = feed([0, 1, 0, 2], stop=("b",), min_tokens=3)
    assert (text.text, text.stop) == ("abcda", "b")


def test_a_stop_string_may_begin_in_text_that_could_not_stop():
    text, _ = feed([0, 1], stop=("bc",), min_tokens=2)
    assert (text.text, text.stop) == ("a", "bc")


@pytest.mark.parametrize(
    ("stop", "text", "found"), [((), "ab", None), (("</s>",), "ab", "</s>"), (("b</",), "a", "b</")]
)
def test_an_end_token_is_no_text_but_can_complete_a_stop_string(stop, text, found):
    answer = AnswerText(decode, [], stop)
    answer.push(0)
    answer.end(7)
    assert (answer.text, answer.stop) == (text, found)
    assert answer.take(complete=True) == text


def test_a_leading_space_depends_on_the_prompt():
    def strip_first(ids: list[int]) -> str:  # as SentencePiece decoders do
        return decode(ids).removeprefix(" ")

    after_prompt = AnswerText(strip_first, [0], ())
    at_the_start = AnswerText(strip_first, [], ())
    for answer in (after_prompt, at_the_start):
        answer.push(8)
        answer.push(8)
    assert after_prompt.text == " x x"
    assert at_the_start.text == "x x"
