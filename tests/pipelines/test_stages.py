"""Stages are skipped, resumed or run again for the right reasons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from steersman.pipelines.stages import Manifest, Stages, once


class Copy:
    """Work that copies its input and counts its calls; `cut` interrupts it half way."""

    def __init__(self, source: Path) -> None:
        self.source, self.calls, self.cut = source, 0, False

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.calls += 1
        once(folder / "half", lambda path: path.write_text(f"made in call {self.calls}"))
        if self.cut:
            raise KeyboardInterrupt
        (folder / "copy").write_text(self.source.read_text())
        return {"num_characters": len(self.source.read_text())}


@pytest.fixture
def work(tmp_path: Path) -> Copy:
    source = tmp_path / "source.txt"
    source.write_text("hello")
    return Copy(source)


def run(tmp_path: Path, work: Copy, **config: Any) -> list[str]:
    said: list[str] = []
    stages = Stages(tmp_path / "run", said.append)
    folder = stages.run("copy", work, config={"train": {"steps": 3, **config}}, inputs={"source": work.source})
    assert (folder / "copy").read_text() == work.source.read_text()
    assert stages.manifests["copy"].metrics == {"num_characters": len(work.source.read_text())}
    return said


def test_a_finished_stage_is_skipped_and_its_manifest_read_back(tmp_path: Path, work: Copy) -> None:
    assert run(tmp_path, work)[0] == "copy: runs"
    assert run(tmp_path, work) == ["copy: done and unchanged, skipped"]
    assert work.calls == 1


def test_a_changed_input_runs_it_again(tmp_path: Path, work: Copy) -> None:
    run(tmp_path, work)
    work.source.write_text("other words")
    assert run(tmp_path, work)[0] == "copy: runs again, since input source changed"
    assert (tmp_path / "run/copy/half").read_text() == "made in call 2", "the folder started afresh"


def test_a_changed_config_runs_it_again_and_says_which_key(tmp_path: Path, work: Copy) -> None:
    run(tmp_path, work)
    assert run(tmp_path, work, steps=4)[0] == "copy: runs again, since train.steps: 3 -> 4"
    assert run(tmp_path, work, steps=4, lr=0.1)[0] == "copy: runs again, since train.lr: None -> 0.1"


def test_a_cut_stage_continues_in_its_folder(tmp_path: Path, work: Copy) -> None:
    work.cut = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, work)
    work.cut = False
    assert run(tmp_path, work)[0] == "copy: was cut, continues"
    assert (tmp_path / "run/copy/half").read_text() == "made in call 1"
    manifest = Manifest.load(tmp_path / "run/copy")
    assert manifest
    assert (manifest.attempts, manifest.finished) == (2, True)


def test_a_cut_stage_whose_config_changed_starts_afresh(tmp_path: Path, work: Copy) -> None:
    work.cut = True
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, work)
    work.cut = False
    assert run(tmp_path, work, steps=9)[0].startswith("copy: runs again")
    assert (tmp_path / "run/copy/half").read_text() == "made in call 2"


def test_an_unreadable_manifest_counts_as_none(tmp_path: Path, work: Copy) -> None:
    run(tmp_path, work)
    (tmp_path / "run/copy/manifest.json").write_text('{"half')
    assert run(tmp_path, work)[0] == "copy: runs"


def test_a_hub_id_stands_for_itself(tmp_path: Path) -> None:
    stages = Stages(tmp_path, lambda line: None)
    folder = stages.run("load", lambda folder: {}, config={}, inputs={"model": "org/name"})
    manifest = Manifest.load(folder)
    assert manifest
    assert manifest.inputs == {"model": "org/name"}
