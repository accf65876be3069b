"""What the benchmarks share: runs in processes of their own, alternation, and what is counted."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by their bare names, as Python lets a script do."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_run_measures_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sides

    source = "import os\n\ndef side(megabytes):\n    held = bytes(megabytes << 20)\n    print('words before')\n" + (
        "    return {'pid': os.getpid(), 'held': len(bytearray(held))}\n"
    )
    (tmp_path / "script.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    import os

    import script

    small, large = (sides.run(script.side, megabytes=size) for size in (1, 200))
    assert small["held"] == 1 << 20
    assert os.getpid() != small["pid"] != large["pid"]
    assert 0.15 < large["peak_gb"] - small["peak_gb"] < 1


def test_sides_take_turns() -> None:
    import sides

    order: list[str] = []

    def side(name: str) -> sides.Numbers:
        order.append(name)
        return {"name": name, "turn": len(order)}

    ours, peer = sides.alternate(2, lambda: side("ours"), lambda: side("peer"))
    assert order == ["ours", "peer", "ours", "peer"]
    assert [run["turn"] for run in ours] == [1, 3]
    assert [run["turn"] for run in peer] == [2, 4]
    assert sides.fastest({"slow": lambda: {"rate": 1.0}, "quick": lambda: {"rate": 3.0}})[0] == "quick"


def test_the_first_training_step_warms_up() -> None:
    import sft_rate

    found = sft_rate.summary([9.0, 1.0, 2.0], [1.0, 2.0, 4.0], [10, 20, 10])
    assert found["rate"] == 30 / 3
    assert found["loss"] == (10 + 40 + 40) / 40


def test_losses_must_be_the_same() -> None:
    import sft_rate

    one = sft_rate.summary([1.0, 1.0], [2.0, 2.0], [5, 5])
    sft_rate.check_same([one, sft_rate.summary([2.0, 2.0], [2.001, 2.001], [6, 4])])
    with pytest.raises(AssertionError, match="losses"):
        sft_rate.check_same([one, sft_rate.summary([1.0, 1.0], [2.0, 2.2], [5, 5])])
    with pytest.raises(AssertionError, match="tokens were trained"):
        sft_rate.check_same([one, sft_rate.summary([1.0, 1.0], [2.0, 2.0], [5, 6])])


def test_paths_of_a_tree() -> None:
    import prepare_time

    leaf = {"replies": []}
    assert prepare_time.num_paths(leaf) == 0  # a single message is no conversation
    assert prepare_time.num_paths({"replies": [leaf, {"replies": [leaf, leaf]}]}) == 3


def test_slope_is_the_power() -> None:
    import cost_growth

    assert cost_growth.slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
