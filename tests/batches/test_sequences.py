"""The next-token shift and the flat store."""

import numpy as np

from steersman.batches.sequences import shift, tokenise
from steersman.text.template import Rendered
from steersman.text.tokenize import Tokenized


class FakeEncoder:
    """A text lists `id` or `id*`, a trained token."""

    def encode_rendered(self, rendered, seq_len):
        rows = [item.text.split()[: seq_len + 1] for item in rendered]
        return [Tokenized([int(w.strip("*")) for w in row], [w.endswith("*") for w in row]) for row in rows]


def tokenise_words(*texts, seq_len=100):
    return tokenise((Rendered(text, (), ()) for text in texts), FakeEncoder(), seq_len)


def test_shift_by_hand():
    ids = np.array([10, 11, 12, 13, 14, 15])
    inputs, trained, targets = shift(ids, np.array([0, 0, 1, 0, 1, 0], bool))
    assert inputs.tolist() == [10, 11, 12, 13]  # 14 is the last trained target, so nothing from it on goes in
    assert trained.tolist() == [1, 3]
    assert targets.tolist() == [12, 14]


def test_shift_ignores_the_first_token_and_may_be_empty():
    inputs, trained, targets = shift(np.array([10, 11]), np.array([1, 0], bool))
    assert (len(inputs), len(trained), len(targets)) == (0, 0, 0)


def test_store_keeps_each_sequence():
    sequences = tokenise_words("1 2* 3 4* 5", "6 7 8*")
    assert len(sequences) == 2
    assert sequences.lengths.tolist() == [3, 2]
    assert sequences.num_trained == 3
    assert [part.tolist() for part in sequences[0]] == [[1, 2, 3], [0, 2], [2, 4]]
    assert [part.tolist() for part in sequences[1]] == [[6, 7], [1], [8]]


def test_records_without_trained_tokens_are_counted():
    sequences = tokenise_words("1 2 3", "1* 2", "1 2 3 4*", "1 2*", seq_len=2)
    assert len(sequences) == 1
    assert sequences.num_skipped == 3


def test_many_records_are_tokenised_in_order_by_batches():
    sequences = tokenise_words(*(f"{number} {number + 1}*" for number in range(1200)))
    assert len(sequences) == 1200
    assert [int(sequences[index].inputs_T[0]) for index in (0, 511, 512, 1199)] == [0, 511, 512, 1199]
