"""Random streams depend on the seed and the keys alone, and on all of them."""

from hypothesis import given
from hypothesis import strategies as st

from steersman.randomness import derive_seed, stream

KEYS = st.lists(st.integers() | st.text(max_size=5), max_size=4)


@given(st.integers(), KEYS, st.integers(), KEYS)
def test_equal_arguments_give_equal_seeds_and_others_others(
    seed: int, keys: list[int | str], other: int, other_keys: list[int | str]
) -> None:
    first, second = derive_seed(seed, *keys), derive_seed(other, *other_keys)
    assert 0 <= first < 2**63
    assert first == derive_seed(seed, *keys)
    assert (first == second) == ((seed, keys) == (other, other_keys))


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive_seed(10, "record-1", "temperature") == 5000902552604377011
    assert derive_seed(10, "1") != derive_seed(10, 1)
    assert derive_seed(10, "a", "b") != derive_seed(10, "ab")


def test_a_stream_does_not_notice_its_neighbours() -> None:
    alone = stream(1, "a").random()
    stream(1, "b").random()
    assert stream(1, "a").random() == alone
    means = [sum(stream(0, i, j).random() for j in range(200)) / 200 for i in range(20)]
    assert all(0.4 < mean < 0.6 for mean in means)
