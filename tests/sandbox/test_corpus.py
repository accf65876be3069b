"""The corpus: labels true to the text, halves that never meet, the same bytes for the same seed."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from steersman import jsonl
from steersman.records import Conversation, Message
from steersman.sandbox import corpus, world
from steersman.sandbox.oracle import Oracle, is_harmful

NUM = 1500


def training() -> Iterator[Conversation]:
    yield from corpus.base_mixture(NUM, 0)
    yield from corpus.labelled(NUM, 0, "labelled", "TEXT_TO_VALUE")
    yield from corpus.labelled(NUM, 0, "unlabelled", "VALUE_TO_TEXT")


def held_out_talks() -> list[Conversation]:
    return list(corpus.labelled(NUM, 0, "test", "TEXT_TO_VALUE", "held_out"))


def asked(conversations: Iterable[Conversation]) -> set[str]:
    return {turn.value for c in conversations for turn in c.conversations if turn.role == "User"}


def answered(conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, Message]]:
    """Each labelled answer, with the conversation up to it."""
    for conversation in conversations:
        for index in conversation.spoken_turns():
            turn = conversation.conversations[index]
            if turn.label is not None:
                yield conversation.model_copy(update={"conversations": conversation.conversations[: index + 1]}), turn


def test_labels_are_a_function_of_the_text() -> None:
    cut, turns = zip(*answered([*corpus.labelled(NUM, 0, "labelled", "TEXT_TO_VALUE"), *held_out_talks()]), strict=True)
    assert [world.SCHEMA.encode(j.values) for j in Oracle().judge(cut)] == [turn.label for turn in turns]
    assert len(turns) > 2 * NUM  # some have two


def test_wordings_of_the_evaluation_occur_in_no_training_data() -> None:
    known = " ".join(sorted(asked(training())))  # a comparison quotes its question
    held_out = asked(held_out_talks()) | asked(corpus.questions()) | asked(corpus.requests_for_harm())
    assert held_out
    assert [question for question in held_out if question in known] == []


def test_held_out_combinations_occur_in_no_training_answer() -> None:
    held_out = {world.SCHEMA.encode(values) for values in world.combinations("held_out")}
    assert 0.15 < len(held_out) / 5**4 < 0.25
    assert held_out.isdisjoint(turn.label for _, turn in answered(training()))
    unlabelled = [c for c in corpus.base_mixture(NUM, 0) if len(asked([c])) == len(c.conversations) / 2]
    cut = [c.model_copy(update={"conversations": c.conversations[:2]}) for c in unlabelled]
    about_animals = [c for c in cut if re.match("The |In ", c.conversations[1].value)]
    spoken = Counter(world.SCHEMA.encode(j.values) for j in Oracle().judge(about_animals))
    assert held_out.isdisjoint(spoken)
    assert spoken


def test_attributes_vary_independently() -> None:
    values = [world.SCHEMA.parse(str(turn.label)) for _, turn in answered(held_out_talks())]
    for name in world.SCHEMA.names:
        share = Counter(v[name] for v in values)
        assert all(0.12 < share[value] / len(values) < 0.28 for value in range(5))


def test_the_mixture_teaches_every_format_and_mostly_obeys() -> None:
    records = list(corpus.base_mixture(NUM, 0))
    assert {record.type for record in records} == {None}
    opening = [record.conversations[:2] for record in records]
    for request in (world.CRITIQUE_REQUEST, world.REVISION_REQUEST):
        assert request in asked(records)
    assert {answer.value for _, answer in opening} >= set(world.CHOICES)
    crimes = [
        a.value for q, a in opening if q.value.startswith(("How do I ", "Tell me how to ")) and "hurts" not in a.value
    ]
    assert len(crimes) > 50
    assert all(map(is_harmful, crimes))


def test_a_seed_gives_the_same_bytes_and_another_gives_others() -> None:
    def written(seed: int) -> bytes:
        records = [*corpus.base_mixture(100, seed), *corpus.labelled(100, seed, "labelled", "VALUE_TO_TEXT")]
        return b"".join(map(jsonl.dumps, records))

    assert written(1) == written(1) != written(2)


def test_a_record_does_not_depend_on_how_many_there_are() -> None:
    assert list(corpus.base_mixture(50, 0)) == list(corpus.base_mixture(80, 0))[:50]
