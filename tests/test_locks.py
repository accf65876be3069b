"""Who works in a folder keeps others out of it, as long as it lives."""

import subprocess
import sys

import pytest

from steersman import jsonl
from steersman.errors import OutputError
from steersman.locks import LOCK, hold
from steersman.pipelines.stages import Stages

HOLDER = """
import sys, time
from pathlib import Path
from steersman.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start_holder():
    """`start_holder(folder)` -> another process that holds it."""
    started = []

    def start(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(start_holder, tmp_path):
    folder = tmp_path / "run"
    holder = start_holder(folder)
    with pytest.raises(OutputError, match="run: another process is at work there; let it end, or choose"), hold(folder):
        pass
    holder.kill()
    holder.wait()
    with hold(folder):
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_folder_that_cannot_be_made_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="run: cannot write here"), hold(tmp_path / "file" / "run"):
        pass


def test_an_error_of_the_work_stays_what_it_is(tmp_path):
    """Only what befalls the output is the output's."""

    def work(unit):
        raise PermissionError(13, "Permission denied", "an input")

    with pytest.raises(PermissionError, match="an input"):
        jsonl.Journal(tmp_path / "out.jsonl", unit=2, settings="one").run([1], work)


def test_two_processes_are_not_at_one_job(start_holder, tmp_path):
    output = tmp_path / "out.jsonl"
    journal = jsonl.Journal(output, unit=2, settings="one")
    holder = start_holder(journal.folder)
    with pytest.raises(OutputError, match="another process is at work there"):
        journal.run([1, 2, 3], lambda unit: ({"n": n} for n in unit))
    holder.kill()
    holder.wait()
    journal.run([1, 2, 3], lambda unit: ({"n": n} for n in unit))
    assert output.read_bytes() == b'{"n":1}\n{"n":2}\n{"n":3}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]  # no lock is left beside it


def test_two_processes_are_not_at_one_pipeline(start_holder, tmp_path):
    work = []
    stages = Stages(tmp_path, lambda line: None)
    holder = start_holder(tmp_path)
    with pytest.raises(OutputError, match="another process is at work there"):
        stages.run("data", lambda folder: work.append(folder) or {}, config={}, inputs={})
    assert not work
    holder.kill()
    holder.wait()
    stages.run("data", lambda folder: work.append(folder) or {}, config={}, inputs={})
    assert work == [tmp_path / "data"]
