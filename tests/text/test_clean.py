"""Which records are dropped, and why."""

from itertools import islice

import pytest

from steersman.text import clean as cleaning
from steersman.text.clean import clean

QUESTION, ANSWER = ("U", "hi"), ("A", "yo", "quality:4")


@pytest.fixture
def encoder(characters, encoder_of):
    return encoder_of(characters)


def reasons(conversation_or_list, encoder, seq_len=1000):
    records = conversation_or_list if isinstance(conversation_or_list, list) else [conversation_or_list]
    kept, dropped = clean(records, encoder, seq_len)
    num_kept = len(list(kept))
    assert num_kept + sum(dropped.values()) == len(records)
    return dict(dropped)


def test_records_are_kept_or_dropped_for_a_reason(conversation, encoder):
    untrained = {"from": "Assistant", "value": "yo", "train": False}
    assert reasons(conversation("VALUE_TO_TEXT", QUESTION, ANSWER), encoder) == {}
    silent = {"the masked role never speaks": 1}
    assert reasons(conversation("TEXT_TO_VALUE", ANSWER), encoder) == silent
    assert reasons(conversation(None, QUESTION, ANSWER, mask="Critic"), encoder) == silent
    assert reasons(conversation(None, QUESTION, ANSWER, mask="Critic, User"), encoder) == {}
    nothing = {"nothing to train": 1}
    assert reasons(conversation("VALUE_TO_TEXT", QUESTION), encoder) == nothing
    assert reasons(conversation(None, QUESTION, ANSWER, mask="User,Assistant"), encoder) == nothing
    assert reasons(conversation(None, QUESTION, untrained), encoder) == nothing


def test_truncation(conversation, encoder):
    """Character tokens: the first trained one is the y of "yo"; seq_len + 1 tokens are kept."""
    record = conversation("VALUE_TO_TEXT", QUESTION, ANSWER)
    first_trained = encoder.encode_conversation(record).loss_mask.index(True)
    assert reasons(record, encoder, first_trained) == {}
    assert reasons(record, encoder, first_trained - 1) == {
        f"nothing left to train within {first_trained - 1} tokens": 1
    }


def test_order_and_counts_over_many_units(conversation, encoder, monkeypatch):
    monkeypatch.setattr(cleaning, "UNIT", 4)
    records = [conversation("VALUE_TO_TEXT", QUESTION, *([] if i % 3 else [ANSWER]), system=str(i)) for i in range(11)]
    done = []
    kept, dropped = clean(records, encoder, 1000, done.append)
    assert [record.system for record in kept] == ["0", "3", "6", "9"]
    assert dropped == {"nothing to train": 7}
    assert done == [4, 4, 3]


def test_records_stream(conversation, encoder, monkeypatch):
    """Nothing is read before it is asked for, so any number of records fits in memory."""
    monkeypatch.setattr(cleaning, "UNIT", 4)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield conversation("VALUE_TO_TEXT", QUESTION, ANSWER)

    kept, _ = clean(endless(), encoder, 1000)
    assert taken == []
    assert len(list(islice(kept, 6))) == 6
    assert len(taken) == 8
