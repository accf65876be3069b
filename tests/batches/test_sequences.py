"""The next-token shift and the flat store."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from steersman.batches.packing import join
from steersman.batches.sequences import shift, shift_family, tokenise, tokenise_pairs, tokenise_valued
from steersman.records import Prompt
from steersman.text.template import Rendered
from steersman.text.tokenize import Tokenized


class FakeEncoder:
    """A text lists `id` or `id*`, a trained token."""

    def encode_rendered(self, rendered, seq_len):
        rows = [item.text.split()[: seq_len + 1] for item in rendered]
        return [Tokenized([int(w.strip("*")) for w in row], [w.endswith("*") for w in row]) for row in rows]


def rendered(text):
    return Rendered(text, (), ())


def tokenise_words(*texts, seq_len=100, max_family=0):
    return tokenise(map(rendered, texts), FakeEncoder(), seq_len, max_family)


def test_shift_by_hand():
    ids = np.array([10, 11, 12, 13, 14, 15])
    shifted = shift(ids, np.array([0, 0, 1, 0, 1, 0], bool))
    assert shifted.inputs_T.tolist() == [10, 11, 12, 13]  # 14 is the last trained target: nothing from it on goes in
    assert shifted.trained_M.tolist() == [1, 3]
    assert shifted.targets_M.tolist() == [12, 14]


def test_a_family_by_hand():
    """1 2 3 with 4 5 or 6 after it, and 1 7: what is shared goes in once, and a shared target counts for each."""
    paths = [[1, 2, 3, 4, 5], [1, 2, 3, 6], [1, 7, 8]]
    masks = [[0, 0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1]]
    family = shift_family([(np.array(ids), np.array(mask, bool)) for ids, mask in zip(paths, masks, strict=True)])
    assert family.inputs_T.tolist() == [1, 2, 3, 4, 7]
    assert family.positions_T.tolist() == [0, 1, 2, 3, 1]
    assert family.starts_N.tolist() == [0, 1, 3, 4]
    assert family.parents_N.tolist() == [-1, 0, 1, 0]
    assert family.trained_M.tolist() == [1, 3, 1, 2, 4]
    assert family.targets_M.tolist() == [3, 5, 3, 6, 8]


def test_the_same_answer_under_two_labels_is_cut_alike():
    """The longer label leaves room for one token less, and that is left out of both; a pair without room goes whole."""
    pair = ["1 2 5* 6* 7*", "1 3 4 5* 6* 7*"]
    kept = tokenise(map(rendered, [*pair, "1 2 3 4 5*", "1 5*"]), FakeEncoder(), 3, together=2)
    assert (len(kept), kept.sizes.tolist(), kept.num_skipped) == (1, [2], 1)
    assert kept[0].inputs_T.tolist() == [1, 2, 3, 4]
    assert kept[0].targets_M.tolist() == [5, 5]
    assert kept[0].sizes_B.tolist() == [1, 1]
    whole = tokenise(map(rendered, pair), FakeEncoder(), 100, together=2)
    assert whole[0].targets_M.tolist() == [5, 6, 7, 5, 6, 7]
    row = join([whole[0], kept[0]])
    assert row.sizes == [3, 3, 1, 1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=6), min_size=1, max_size=6).map(sorted))
def test_every_sequence_of_a_family_can_be_read_back(paths):
    pairs = [(np.array(ids), np.ones(len(ids), bool)) for ids in paths]
    family = shift_family(pairs)
    bounds = [*family.starts_N.tolist(), len(family.inputs_T)]

    def read(chunk):
        before = read(family.parents_N[chunk]) if family.parents_N[chunk] >= 0 else []
        return before + family.inputs_T[bounds[chunk] : bounds[chunk + 1]].tolist()

    ways = [read(chunk) for chunk in range(len(family.parents_N))]
    for way, chunk in zip(ways, range(len(ways)), strict=True):
        inside = slice(bounds[chunk], bounds[chunk + 1])
        assert family.positions_T[inside].tolist() == list(range(len(way)))[-(inside.stop - inside.start) :]
    assert all(ids[:-1] in ways for ids in paths)
    found = iter(zip(family.trained_M.tolist(), family.targets_M.tolist(), strict=True))
    for ids in paths:  # each predicts its every next token, from the place where its own past ends
        for position, target in enumerate(ids[1:]):
            place, predicted = next(found)
            assert predicted == target
            assert family.positions_T[place] == position
            assert family.inputs_T[place] == ids[position]
    assert next(found, None) is None


def test_neighbours_that_begin_alike_are_families_up_to_a_size(monkeypatch):
    monkeypatch.setattr("steersman.batches.sequences.MIN_SHARED", 2)
    texts = ["1 2 3 4*", "1 2 3 5 6*", "1 2 7*", "1 8*", "9 8*", "9 8 7*"]
    whole = tokenise_words(*texts, max_family=100)
    assert whole.families.tolist() == [0, 3, 4, 5, 6]  # 1 8 shares one input, 9 8 none, and 9 8 7 only one again
    assert (whole.lengths.tolist(), whole.sizes.tolist()) == ([4, 1, 1, 2], [3, 1, 1, 1])
    assert [len(whole[number].inputs_T) for number in range(4)] == [4, 1, 1, 2]
    assert tokenise_words(*texts, max_family=4).families.tolist() == [0, 3, 4, 5, 6]
    assert tokenise_words(*texts, max_family=3).families.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert tokenise_words(*texts).families.tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_shift_ignores_the_first_token_and_may_be_empty():
    shifted = shift(np.array([10, 11]), np.array([1, 0], bool))
    assert [part.tolist() for part in shifted] == [[], [], [], [], [], [], [0], [[]]]


def test_store_keeps_each_sequence():
    sequences = tokenise_words("1 2* 3 4* 5", "6 7 8*")
    assert len(sequences) == 2
    assert sequences.lengths.tolist() == [3, 2]
    assert sequences.num_trained == 3
    assert [part.tolist() for part in sequences[0]] == [[1, 2, 3], [0, 1, 2], [0], [-1], [0, 2], [2, 4], [2], [[]]]
    assert [part.tolist() for part in sequences[1]] == [[6, 7], [0, 1], [0], [-1], [1], [8], [1], [[]]]
    further = sequences.with_value(np.array([5, 7], np.float32)).with_value(np.array([6, 8], np.float32))
    assert (further[0].values_BA.tolist(), further[1].values_BA.tolist()) == ([[5, 6]], [[7, 8]])


def test_records_without_trained_tokens_are_counted():
    sequences = tokenise_words("1 2 3", "1* 2", "1 2 3 4*", "1 2*", seq_len=2)
    assert len(sequences) == 1
    assert sequences.num_skipped == 3


def test_many_records_are_tokenised_in_order_by_batches():
    sequences = tokenise_words(*(f"{number} {number + 1}*" for number in range(1200)))
    assert len(sequences) == 1200
    assert [int(sequences[index].inputs_T[0]) for index in (0, 511, 512, 1199)] == [0, 511, 512, 1199]


def test_prompts_with_values_by_hand():
    """The last token of each prompt predicts its values; a beginning that two share goes in once."""

    def prompt(*words):
        return Prompt(text=" ".join(words))

    shared = [str(number) for number in range(70)]
    given = [(prompt(*shared, "90"), [1.0, np.nan]), (prompt(*shared, "91", "92"), [0.0, 4.0])]
    too_long = (prompt(*["7"] * 73), [9.0, 9.0])
    sequences = tokenise_valued([*given, too_long, (prompt("5", "6"), [2.0, 2.0])], FakeEncoder(), 72, max_family=100)
    assert (len(sequences), sequences.num_skipped, sequences.sizes.tolist()) == (2, 1, [2, 1])
    family, alone = sequences[0], sequences[1]
    assert family.inputs_T.tolist() == [*range(70), 90, 91, 92]
    assert family.trained_M.tolist() == [70, 72]
    assert np.array_equal(family.values_BA, [[1, np.nan], [0, 4]], equal_nan=True)
    assert (alone.inputs_T.tolist(), alone.trained_M.tolist(), alone.values_BA.tolist()) == ([5, 6], [1], [[2, 2]])
    row = join([alone, family])
    assert row.trained_M.tolist() == [1, 72, 74]
    assert (row.sizes, row.values_BA.dtype) == ([1, 1, 1], torch.float32)
    assert torch.equal(row.values_BA[:1], torch.tensor([[2.0, 2.0]]))


def test_answers_that_are_compared_by_hand():
    """All of an answer is trained, however long its rival is; what follows it does not count; both fit, or neither."""
    texts = ["1 2 3* 4* 5", "1 2 6*", "7 8*", "7 9 9* 9* 9*", "1 2* 3* 4* 5 6", "1 2*", "1 1 1 1 1 2*", "1 2*"]
    valued = [(Rendered(text, (), ()), [float(number)]) for number, text in enumerate(texts)]
    sequences = tokenise_pairs(valued, FakeEncoder(), seq_len=3)
    assert (sequences.num_skipped, sequences.sizes.tolist(), sequences.lengths.tolist()) == (2, [2, 2], [3, 3])
    first, second = sequences[0], sequences[1]
    assert (first.inputs_T.tolist(), first.parents_N.tolist()) == ([1, 2, 3], [-1, 0])
    assert (first.trained_M.tolist(), first.targets_M.tolist()) == ([1, 2, 1], [3, 4, 6])
    assert first.sizes_B.tolist() == [2, 1]
    assert second.inputs_T.tolist() == [1, 2, 3]
    assert join([first, second]).values_BA.tolist() == [[0], [1], [4], [5]]


def pairs(*texts, seq_len=100, max_family=0):
    targets = [[1.0, 0.0], [0.0, 0.0]] * (len(texts) // 2)
    valued = zip([Prompt(text=text) for text in texts], targets, strict=True)
    return tokenise_valued(valued, FakeEncoder(), seq_len, max_family, together=2)


def test_pairs_stay_together_and_share_their_prompt():
    """However little they share, and whatever the size of families; too long for one is too long for both."""
    sequences = pairs("1 2 3", "1 2 4 5", "6", "7 8", "1 1 1 1 1", "1", "9", "9 9", seq_len=4)
    assert (sequences.num_skipped, sequences.sizes.tolist(), sequences.lengths.tolist()) == (1, [2, 2, 2], [5, 3, 2])
    shared, apart, extended = (sequences[number] for number in range(3))
    assert shared.inputs_T.tolist() == [1, 2, 3, 4, 5]
    assert (shared.parents_N.tolist(), shared.trained_M.tolist()) == ([-1, 0, 0], [2, 4])
    assert apart.parents_N.tolist() == [-1, -1]
    assert (extended.inputs_T.tolist(), extended.trained_M.tolist()) == ([9, 9], [0, 1])
    assert join([apart, shared]).values_BA.tolist() == [[1, 0], [0, 0]] * 2


def test_pairs_with_one_prompt_are_a_larger_family(monkeypatch):
    monkeypatch.setattr("steersman.batches.sequences.MIN_SHARED", 2)
    texts = ["1 2 3", "1 2 4", "1 2 3", "1 2 5", "6 7", "6 8"]
    sequences = pairs(*texts, max_family=100)
    assert (sequences.sizes.tolist(), sequences.lengths.tolist()) == ([4, 2], [6, 3])
    assert sequences[0].inputs_T.tolist() == [1, 2, 3, 4, 3, 5]
    assert sequences[0].trained_M.tolist() == [2, 3, 4, 5]
    assert pairs(*texts, max_family=5).sizes.tolist() == [2, 2, 2]
