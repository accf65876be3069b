"""When the garbage collector rests, and that it does not for longer."""

import gc
import sys
from types import ModuleType

import pytest

from steersman.cli.start import loading


def test_nothing_is_collected_while_libraries_load_and_they_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.modeling_utils", raising=False)
    frozen: list[None] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(None))
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert len(frozen) == 1


def test_the_collector_is_back_after_a_failed_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transformers.modeling_utils", raising=False)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_nothing_is_done_where_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.modeling_utils", ModuleType("loaded"))
    before = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
