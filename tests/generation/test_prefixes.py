"""The prefix tree: what it finds, what it shares, what it forgets. Keys and values are the token ids themselves."""

from collections.abc import Callable, Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from steersman.generation.prefixes import PrefixCache, common_prefix


def reader(ids: Sequence[int], log: list[tuple[int, int]] | None = None) -> Callable[[int, int], torch.Tensor]:
    def read(start: int, end: int) -> torch.Tensor:
        if log is not None:
            log.append((start, end))
        return torch.tensor(ids[start:end]).view(1, 1, 1, -1, 1)

    return read


def found(cache: PrefixCache, ids: Sequence[int]) -> list[int]:
    return [token for piece in cache.match(ids) for token in piece.flatten().tolist()]


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2
    assert common_prefix([1, 2], (1, 2, 3)) == 2
    assert common_prefix([], [1]) == 0


def test_the_longest_known_prefix_is_found_and_only_new_tokens_are_read():
    cache, log = PrefixCache(100), []
    cache.insert([1, 2, 3, 4], reader([1, 2, 3, 4], log))
    cache.insert([1, 2, 3, 4, 5, 6], reader([1, 2, 3, 4, 5, 6], log))
    cache.insert([1, 2, 9], reader([1, 2, 9], log))
    cache.insert([1, 2], reader([1, 2], log))
    assert log == [(0, 4), (4, 6), (2, 3)]
    assert cache.num_tokens == 7
    assert found(cache, [1, 2, 3, 4, 5, 7]) == [1, 2, 3, 4, 5]
    assert found(cache, [1, 2, 9, 9]) == [1, 2, 9]
    assert found(cache, [1, 2, 8]) == [1, 2]
    assert found(cache, [2, 3]) == []
    assert cache.num_matched([1, 2, 3, 7]) == 3


def test_the_least_recently_used_leaf_goes_first():
    cache = PrefixCache(8)
    cache.insert([1, 2, 3], reader([1, 2, 3]))
    cache.insert([1, 2, 4], reader([1, 2, 4]))
    cache.insert([7, 8], reader([7, 8]))
    assert cache.num_tokens == 6
    assert found(cache, [1, 2, 3]) == [1, 2, 3]  # used: now [1, 2, 4] is the oldest, then [7, 8]
    cache.insert([5, 6, 7], reader([5, 6, 7]))
    assert cache.num_tokens == 8
    assert found(cache, [1, 2, 4]) == [1, 2]
    assert found(cache, [7, 8]) == [7, 8]
    assert found(cache, [1, 2, 3]) == [1, 2, 3]


def test_zero_tokens_turn_it_off_and_too_long_a_sequence_evicts_nothing():
    off = PrefixCache(0)
    off.insert([1], reader([1]))
    assert off.num_tokens == 0
    assert off.match([1]) == []
    cache = PrefixCache(3)
    cache.insert([1, 2], reader([1, 2]))
    cache.insert([3, 4, 5, 6], reader([3, 4, 5, 6]))
    assert found(cache, [1, 2]) == [1, 2]
    assert found(cache, [3]) == []


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=30), st.integers(8, 30))
def test_what_is_found_is_right_and_the_bound_holds(sequences: list[list[int]], max_tokens: int):
    cache = PrefixCache(max_tokens)
    for ids in sequences:
        cache.insert(ids, reader(ids))
        assert cache.num_tokens <= max_tokens
        assert found(cache, ids) == ids  # what was just stored is never evicted by itself
    for ids in sequences:
        longest = max((common_prefix(ids, other) for other in sequences), default=0)
        matched = found(cache, [*ids, 3])
        assert matched == ids[: len(matched)]
        assert len(matched) <= longest
