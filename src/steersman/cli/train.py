"""`steersman train`: a recipe -> a trained model folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from steersman.training.loop import Report

app = typer.Typer(help="Run one training job from a recipe; run it again to continue one that was cut.")

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe keys to change, such as optim.lr=5e-6.")
]


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fine-tune a model on the answers of conversations, conditioned on their labels where they have any.

    Several processes share the work under torchrun.

    ```
    steersman train sft sft.yaml model=models/gemma-3-270m output=runs/sft optim.lr=5e-6
    torchrun --nproc-per-node 2 -m steersman train sft sft.yaml
    ```
    """
    _train("sft", recipe, overrides or [])


@app.command()
def attributes(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train an attribute predictor: it writes the label string after an answer, or reads the values off its end.

    ```
    steersman train attributes predictor.yaml steps=1000
    steersman train attributes predictor.yaml head=values
    ```
    """
    _train("attributes", recipe, overrides or [])


@app.command()
def probe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Fit an attribute predictor to the states of a frozen model: no training steps, a few hundred labels, minutes.

    ```
    steersman train probe probe.yaml model=models/gemma-3-270m layers=6 output=models/predictor
    ```
    """
    from steersman import config
    from steersman.cli.output import wrote
    from steersman.cli.progress import progress_bar
    from steersman.pipelines.probes import ProbeConfig, run_probe

    job = config.validate(config.read_recipe(recipe, overrides or []), ProbeConfig, str(recipe))
    found = run_probe(job, progress_bar)
    too_long = f"; {found['num_too_long']:,} longer than the model's window" if found["num_too_long"] else ""
    wrote(job.output, f"{', '.join(found['penalties'])}, from {found['num_turns']:,} labelled turns{too_long}")


@app.command()
def reward(recipe: Recipe, overrides: Overrides = None) -> None:
    """Train a reward model: on pairs of answers (Bradley-Terry), or on the values of attributes (head=regression).

    ```
    steersman train reward reward.yaml model=runs/sft/best output=runs/reward
    steersman train reward regression.yaml head=regression attributes=merged
    ```
    """
    _train("reward", recipe, overrides or [])


@app.command()
def dpo(recipe: Recipe, overrides: Overrides = None) -> None:
    """Improve a model's answers by direct preference optimisation on pairs of answers: no reward model, no sampling.

    What the model says of the pairs before its first step is its reference; `beta` is what leaving that costs.

    ```
    steersman train dpo recipes/dpo-cai.yaml model=runs/sl-cai/best output=runs/dpo
    steersman train dpo recipes/dpo-cai.yaml model=runs/sl-cai/best output=runs/dpo-lora lora.rank=16 optim.lr=1e-4
    ```
    """
    _train("dpo", recipe, overrides or [])


@app.command()
def ppo(recipe: Recipe, overrides: Overrides = None) -> None:
    """Improve a model's answers by PPO against a reward model, a Python function, or a predictor's attributes.

    The critic runs in this process, or elsewhere (`steersman serve-critic`). Responses are sampled in this process, or
    by a vLLM server that sees the output folder under the same path and takes weights from it: of an adapter when it
    runs under VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 with --enable-lora --max-lora-rank RANK, of the whole model under
    VLLM_SERVER_DEV_MODE=1. In a terminal a table follows rewards, divergence, lengths and a sample of every step.

    ```
    steersman train ppo recipes/ppo-gemma-270m.yaml model=runs/sft/best output=runs/ppo
    steersman train ppo ppo.yaml critic.url=http://127.0.0.1:5567 critic.model=null critic.training=null
    steersman train ppo ppo.yaml rollout_server.url=http://127.0.0.1:8000/v1
    ```
    """
    from steersman import config
    from steersman.cli.output import wrote
    from steersman.cli.ppo_view import ppo_view
    from steersman.pipelines.ppo import PPORecipe, run_ppo

    loaded = config.load(recipe, PPORecipe, overrides or [])
    with ppo_view() as on_step:
        result = run_ppo(loaded, on_step)
    if result.best != result.last:
        wrote(result.best, f"the highest mean validation score, {result.metrics['best_validation_rewards']:.4f}")
    wrote(result.last, f"after {result.metrics['step']:,} steps, mean score {result.metrics['rewards']:.4f}")


def _train(role: str, recipe: Path, overrides: list[str]) -> None:
    from steersman import config
    from steersman.cli.output import wrote
    from steersman.cli.progress import progress_bar
    from steersman.errors import ConfigError
    from steersman.parallel.mesh import join, leave
    from steersman.pipelines.jobs import TrainConfig, run_training

    data = {"role": role, **config.read_recipe(recipe, overrides)}
    if data["role"] != role:
        raise ConfigError(f"{recipe} is a recipe of role {data['role']}; run steersman train {data['role']} {recipe}")
    with training_progress("train") as on_step:
        result = run_training(config.validate(data, TrainConfig, str(recipe)), on_step, progress_bar)
    if join().rank == 0:
        if result.best != result.last:
            wrote(result.best, f"the lowest validation loss, {result.metrics['best_validation_loss']:.4f}")
        wrote(result.last, f"after {result.metrics['step']:,} steps, training loss {result.metrics['loss']:.4f}")
    leave()


@contextlib.contextmanager
def training_progress(description: str) -> Iterator[Callable[["Report"], None]]:
    """Yields what `run_training` tells of each step: a bar of the steps left to do, with loss, token rate and lr."""
    from steersman.cli.progress import Advance, progress_bar

    with contextlib.ExitStack() as bars:
        advance: Advance | None = None

        def on_step(report: "Report") -> None:
            nonlocal advance
            if advance is None:
                num_left = report.num_steps - report.step + 1
                advance = bars.enter_context(progress_bar(description, total=num_left, unit="steps"))
            rate = report.num_tokens / report.seconds
            note = f"loss {report.loss:.4f}, {rate:,.0f} tokens/s, lr {report.lr:.2e}"
            for name, numbers in report.validation.items():
                note += f", {name} {numbers['loss']:.4f}"
            advance(1, note)

        yield on_step
