"""A PPO step with its critic elsewhere against the sum of its phases, when actor and critic have a core each.

    python bench/ppo_overlap.py [--model models/gemma-3-270m] [--toy]

The step of `ppo_rate`, but the critic is `steersman serve-critic` on a core and a thread of its own. Phases are
sampling, the actor's and the reference's log-probabilities and the actor's updates, timed where they run, and the
critic's calls as the actor's side sees them. A step takes less than their sum by what runs at the same time.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import inputs
import sides
from ppo_rate import RESPONSE, critic_training, differences, run_ours, write_work
from result import write
from sides import Numbers

PARTS = 4  # of a rollout; each goes to the critic while the next is sampled
STEERSMAN = Path(sys.executable).with_name("steersman")
PHASES = ("generate", "logprobs", "ref_logprobs")


@contextmanager
def served_critic(folder: Path, core: int) -> Iterator[str]:
    """The address of a critic on this core."""
    port = sides.free_port()
    settings = critic_training()
    lora = settings.pop("lora")
    values = {f"optim.{name}": value for name, value in settings.pop("optim").items()}
    values |= {f"lora.{name}": value for name, value in lora.items()} | settings
    server = subprocess.Popen(
        [STEERSMAN, "serve-critic", folder / "reward", "--port", str(port), "--output", folder / "critic",
         *(f"{name}={value}" for name, value in values.items())],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            assert server.poll() is None, "the critic's server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def actor(model: str, folder: str, steps: int, response: int, url: str, core: int) -> Numbers:
    """Seconds of each step but the first, and of its phases."""
    os.sched_setaffinity(0, {core})
    import torch

    torch.set_num_threads(1)
    from steersman.serving.remote_critic import RemoteCritic
    from steersman.training import ppo

    spent = {"infer": 0.0, "critic_update": 0.0, "actor_update": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    RemoteCritic.infer = timed("infer", RemoteCritic.infer)  # type: ignore[method-assign]
    RemoteCritic.train = timed("critic_update", RemoteCritic.train)  # type: ignore[method-assign]
    ppo.update = timed("actor_update", ppo.update)
    times, phases = [time.perf_counter()], []

    def note(report: Any) -> None:
        times.append(time.perf_counter())
        phases.append({**{name: report.metrics[f"seconds.{name}"] for name in PHASES}, **spent})
        spent.update(dict.fromkeys(spent, 0.0))

    run_ours(model, folder, steps, response, PARTS, {"url": url}, note)
    return {"seconds": differences(times)[1:], "phases": phases[1:]}


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--steps", type=int, default=4, help="of a run; the first one warms up (%(default)s)")
    asked = options.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    assert len(cores) > 1, "actor and critic need a core each"
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        write_work(model, Path(folder))
        work = {"model": model, "folder": folder, "response": 8 if asked.toy else RESPONSE, "steps": asked.steps}
        runs = []
        for _ in range(asked.runs):
            with served_critic(Path(folder), cores[1]) as url:
                runs.append(sides.run(actor, **work, url=url, core=cores[0]))
    together = [median(run["seconds"]) for run in runs]
    apart = [median(sum(phases.values()) for phases in run["phases"]) for run in runs]
    write(
        "ppo_overlap", "seconds a step", together, apart, "the sum of its phases", toy=asked.toy,
        model=Path(model).name, phases={name: median(one[name] for run in runs for one in run["phases"])
                                        for name in runs[0]["phases"][0]},
    )  # fmt: skip


if __name__ == "__main__":
    main()
