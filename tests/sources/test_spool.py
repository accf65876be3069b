"""Items parked on disk and grouped by key."""

from collections import defaultdict
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from steersman.sources.spool import Groups, Spool


def test_items_come_back_in_any_order_and_leave_no_file(tmp_path: Path) -> None:
    items = [b"a\nb\n", b"", "é".encode(), b"x" * 20_000]
    with Spool(tmp_path / "new") as spool:
        for item in items:
            spool.append(7, item)
        assert [spool[index] for index in (2, 0, 3, 1, 0)] == [items[index] for index in (2, 0, 3, 1, 0)]
        assert len(spool) == 4
        assert list((tmp_path / "new").iterdir()) == []
    assert list((tmp_path / "new").iterdir()) == []


@given(st.lists(st.integers(-3, 3), max_size=30), st.randoms())
def test_groups_of_equal_key(keys: list[int], shuffler: "np.random.Generator") -> None:
    expected = defaultdict(list)
    for index, key in enumerate(keys):
        expected[key].append(index)
    groups = Groups(np.array(keys, dtype=np.int64))
    assert [list(group) for group in groups] == list(expected.values())

    order = list(range(len(groups)))
    shuffler.shuffle(order)
    in_order = [index for number in order for index in list(expected.values())[number]]
    assert list(groups.items(np.array(order, dtype=np.int64))) == in_order
