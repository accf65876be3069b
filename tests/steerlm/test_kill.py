"""A job that is killed without warning, again and again, ends with the bytes of one that never was."""

import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

JOB = """
import random, sys, time
from steersman.attributes import AttributeSchema
from steersman.card import TemplateSpec
from steersman.records import Completion, Judgement
from steersman.steerlm.annotate import annotate
from steersman.steerlm.bootstrap import BootstrapConfig, Sampler, bootstrap
from steersman.text.template import Template

class Slow:
    schema = AttributeSchema.of("quality")

    reads_labels = True

    def judge(self, conversations, progress=None):
        time.sleep(0.01)
        values = [sum(map(ord, c.conversations[-1].value)) % 5 for c in conversations]
        return [Judgement(values={"quality": v}, expected={"quality": v + 0.25}) for v in values]

    def generate(self, requests, progress=None):
        time.sleep(0.01)
        words = [str(random.Random(request.sampling.seed).random()) for request in requests]
        return [Completion(text=word, token_ids=[1], finish_reason="stop") for word in words]

verb, source, output = sys.argv[1:]
print("begun", flush=True)
if verb == "annotate":
    annotate(source, output, Slow(), identity="slow", unit=2)
else:
    config = BootstrapConfig(attributes={"quality": 4}, samples=2, unit=2)
    models = {"generator": Slow(), "scorer": Slow()}
    sampler = Sampler(template=Template(TemplateSpec()), schema=Slow.schema, config=config, **models)
    bootstrap(source, output, sampler, identity="slow")
"""


def run(verb: str, source: Path, output: Path, kill_after: float | None) -> None:
    """Run the job to its end, or kill it so many seconds after it has begun."""
    command = [sys.executable, "-c", JOB, verb, str(source), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
        else:
            assert process.returncode == 0


@pytest.mark.parametrize("verb", ["annotate", "bootstrap"])
@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_continue_to_the_same_bytes(verb: str, num_kills: int, tmp_path: Path) -> None:
    num_records = 20 * num_kills
    turns = [{"from": "User", "value": "q"}, {"from": "Assistant", "value": "a"}]
    source = tmp_path / "in.jsonl"
    records = ([{**turn, "value": f"{turn['value']}{i}"} for turn in turns] for i in range(num_records))
    source.write_bytes(b"".join(orjson.dumps({"conversations": record}) + b"\n" for record in records))
    run(verb, source, tmp_path / "whole.jsonl", None)

    cut, moments, num_cut = tmp_path / "cut.jsonl", random.Random(0), 0
    for _ in range(num_kills):
        run(verb, source, cut, moments.uniform(0.0, 0.12))
        num_cut += not cut.exists()
    assert num_cut
    if not cut.exists():
        run(verb, source, cut, None)

    names = {path.name.removeprefix("whole") for path in tmp_path.glob("whole*")}
    assert {path.name.removeprefix("cut") for path in tmp_path.glob("cut*")} == names
    for name in names:
        assert (tmp_path / f"cut{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
