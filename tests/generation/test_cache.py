"""Slots and attention over them, against attention written out for one sequence at a time."""

import os
import sys
from pathlib import Path

import pytest
import torch

from steersman.generation.cache import MIN_CAPACITY, CachedAttention, KVCache, Slot, row_order

L, K, H, D = 2, 2, 4, 8


def make_cache() -> KVCache:
    return KVCache(L, K, D, torch.float32, torch.device("cpu"))


def fill(slot: Slot, length: int, seed: int) -> torch.Tensor:
    kv = torch.randn(L, 2, K, length, D, generator=torch.Generator().manual_seed(seed))
    slot.append(kv)
    return kv


def test_slots_keep_their_contents_while_others_come_and_go():
    cache = make_cache()
    slots = [cache.allocate(20) for _ in range(5)]
    contents = [fill(slot, 10 + i, i) for i, slot in enumerate(slots)]
    cache.release(slots.pop(1))
    contents.pop(1)
    cache.reserve(slots[0], MIN_CAPACITY + 1)
    assert slots[0].slab is not slots[1].slab
    slots.append(cache.allocate(5))
    contents.append(fill(slots[-1], 3, 99))
    for slot, content in zip(slots, contents, strict=True):
        assert torch.equal(slot.read(0, slot.length), content)
        assert slot.slab.slots[slot.row] is slot


def test_capacities_are_powers_of_two_and_a_freed_place_is_taken_again():
    cache = make_cache()
    slots = [cache.allocate(length) for length in (1, MIN_CAPACITY, MIN_CAPACITY + 1, 5 * MIN_CAPACITY)]
    assert [slot.slab.capacity for slot in slots] == [MIN_CAPACITY, MIN_CAPACITY, 2 * MIN_CAPACITY, 8 * MIN_CAPACITY]
    for slot in slots:
        cache.release(slot)
    slabs = dict(cache._slabs)
    assert cache.allocate(2 * MIN_CAPACITY).slab is slabs[2 * MIN_CAPACITY]
    assert cache._slabs == slabs


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_slab_takes_memory_for_what_is_written_to_it():
    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    cache, before = KVCache(2, 4, 64, torch.float32, torch.device("cpu")), resident_mb()
    for _ in range(16):
        cache.allocate(16384).append(torch.ones(2, 2, 4, 10, 64))
    (slab,) = cache._slabs.values()
    assert slab.kv_L2NKCD.nbytes == 1 << 30
    assert resident_mb() - before < 600  # 1; in huge pages 512
    kept = slab.slots[7].read(0, 12)
    assert bool((kept[..., :10, :] == 1).all() and (kept[..., 10:, :] == 0).all())


def attend_alone(query_HD, key_KSD, value_KSD, window, softcap):
    """Attention of the last position of one sequence, written out."""
    first = 0 if window is None else max(0, key_KSD.shape[1] - window)
    outputs = []
    for head in range(H):
        key_SD, value_SD = key_KSD[head // (H // K), first:], value_KSD[head // (H // K), first:]
        scores_S = key_SD @ query_HD[head] * 0.3
        scores_S = scores_S if softcap is None else softcap * torch.tanh(scores_S / softcap)
        outputs.append(scores_S.softmax(0) @ value_SD)
    return torch.stack(outputs)


@pytest.mark.parametrize("window", [None, 1, 6, 300])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_every_token_attends_to_its_own_past_within_the_window(window, softcap):
    cache = make_cache()
    # (tokens before, new tokens): decoding in two slabs, prefill from the start, in the middle, longer than a block
    sizes = [(5, 1), (0, 1), (17, 1), (150, 1), (0, 4), (9, 3), (0, 700), (20, 600)]
    slots = [cache.allocate(past + new) for past, new in sizes]
    bystander = cache.allocate(30)  # holds a row, has nothing new
    fill(bystander, 30, 1000)
    pasts = [fill(slot, past, i) for i, (slot, (past, _)) in enumerate(zip(slots, sizes, strict=True))]
    keys = [row_order(slot, new) for slot, (_, new) in zip(slots, sizes, strict=True)]
    assert keys == sorted(keys)
    num_tokens = sum(new for _, new in sizes)
    generator = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(1, heads, num_tokens, D, generator=generator) for heads in (H, K, K))
    context = CachedAttention([(slot, new) for slot, (_, new) in zip(slots, sizes, strict=True)])
    options = {"scaling": 0.3, "sliding_window": window, "softcap": softcap}
    context.attend(0, query, key, value, **options)  # another layer, with the same plan
    output = context.attend(1, query, key, value, **options)
    start = 0
    for past_kv, (past, new) in zip(pasts, sizes, strict=True):
        keys = torch.cat([past_kv[1, 0], key[0, :, start : start + new]], dim=1)
        values = torch.cat([past_kv[1, 1], value[0, :, start : start + new]], dim=1)
        for i in {0, new // 2, new - 1}:
            end = past + i + 1
            expected = attend_alone(query[0, :, start + i], keys[:, :end], values[:, :end], window, softcap)
            torch.testing.assert_close(output[0, start + i], expected, rtol=1e-4, atol=1e-5)
        start += new


def test_new_keys_and_values_are_stored():
    cache = make_cache()
    decoding, prefilling = cache.allocate(10), cache.allocate(10)
    before = fill(decoding, 4, 0)
    query, key, value = (
        torch.randn(1, heads, 4, D, generator=torch.Generator().manual_seed(heads)) for heads in (H, K, K)
    )
    context = CachedAttention([(decoding, 1), (prefilling, 3)])
    for layer in range(L):
        context.attend(layer, query, key, value, scaling=1.0, sliding_window=None, softcap=None)
    decoding.length, prefilling.length = 5, 3
    assert torch.equal(decoding.read(0, 4), before)
    for layer in range(L):
        assert torch.equal(decoding.read(4, 5)[layer], torch.stack([key[0, :, :1], value[0, :, :1]]))
        assert torch.equal(prefilling.read(0, 3)[layer], torch.stack([key[0, :, 1:], value[0, :, 1:]]))
