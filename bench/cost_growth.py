"""How cost grows: a training step's time and memory with its packed length, generation's time with its batch.

    python bench/cost_growth.py [--model models/gemma-3-270m] [--work training generation] [--toy]

Steps have 512 to 8,192 tokens in one row, of conversations of at most 512 tokens; generation has 1 to 64 prompts of 64
tokens with 64 new tokens each. Each point is a process of its own. Writes a picture and a result for each, whose figure
is the slope of log(time) over log(size): 1 is proportional growth, less is better.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import inputs
import numpy as np
import sides
from generate_rate import ours as generate
from generate_rate import write_work
from matplotlib import pyplot as plt
from matplotlib import ticker
from result import folder_of, write
from sft_rate import KINDS, write_data
from sft_rate import ours as train

LENGTHS, BATCHES = (512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16, 32, 64)
STEPS = 3  # of the longest rows, were nothing shared


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Least squares through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def draw(path: Path, sizes: Sequence[float], costs: dict[str, Sequence[float]], across: str) -> None:
    """One panel a cost, both axes logarithmic, with the fitted line."""
    figure, panels = plt.subplots(1, len(costs), figsize=(5 * len(costs), 4), squeeze=False, layout="constrained")
    for panel, (name, values) in zip(panels[0], costs.items(), strict=True):
        power = slope(sizes, values)
        height = np.exp(np.mean(np.log(values)) - power * np.mean(np.log(sizes)))
        panel.loglog(sizes, values, "o", label="measured")
        panel.loglog(sizes, height * np.asarray(sizes, float) ** power, label=f"slope {power:.2f}")
        panel.set(xlabel=across, ylabel=name, xticks=sizes, xticklabels=[f"{size:.0f}" for size in sizes])
        panel.set_ylim(min(values) / 2, max(values) * 2)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    options = inputs.parser(__doc__)
    options.add_argument("--work", nargs="+", choices=("training", "generation"), default=["training", "generation"])
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.toy_model(Path(folder)) if asked.toy else asked.model
        if "training" in asked.work:
            growth_of_training(model, folder, asked.runs, asked.toy)
        if "generation" in asked.work:
            growth_of_generation(model, folder, asked.runs, asked.toy)


def growth_of_training(model: str, folder: str, num_runs: int, toy: bool) -> None:
    """Time and memory of a step by the tokens that it really has: as many whole sequences as fit."""
    lengths = LENGTHS[:2] if toy else LENGTHS
    write_data(model, Path(folder), STEPS * lengths[-1])
    us = partial(sides.run, train, model=model, folder=folder, file="train.jsonl", settings=KINDS["master"]["ours"])
    steps = [[us(tokens=length) for length in lengths] for _ in range(num_runs)]
    full = [float(np.mean([size for run in runs for size in run["tokens"][1:]])) for runs in zip(*steps, strict=True)]
    seconds = [[median(run["seconds"][1:]) for run in row] for row in steps]
    memory = [[run["peak_gb"] for run in row] for row in steps]
    report("growth_training", "tokens of a step", full, seconds, {"peak memory, GB": memory}, toy, model)


def growth_of_generation(model: str, folder: str, num_runs: int, toy: bool) -> None:
    """Time of equal prompts at once, by their number."""
    batches, runs = BATCHES[:2] if toy else BATCHES, []
    for _ in range(num_runs):
        row = []
        for batch in batches:
            write_work(model, Path(folder), "equal", toy, batch)
            found = sides.run(generate, model=model, folder=folder, precision="bfloat16", batch=batch)
            row.append(sum(map(len, found["answers"])) / found["rate"])
        runs.append(row)
    report("growth_generation", "prompts at once", batches, runs, {}, toy, model)


def report(
    name: str,
    across: str,
    sizes: Sequence[float],
    seconds: list[list[float]],
    further: dict[str, list[list[float]]],
    toy: bool,
    model: str,
) -> None:
    """The picture, and the slope of time; costs are by run and size."""
    costs = {label: [median(column) for column in zip(*rows, strict=True)] for label, rows in
             {"seconds": seconds, **further}.items()}  # fmt: skip
    slopes = [slope(sizes, row) for row in seconds]
    write(name, f"log(seconds) / log({across})", slopes, [1.0] * len(slopes), "proportional growth", toy=toy,
          sizes=list(sizes), costs=costs, slopes={label: slope(sizes, values) for label, values in costs.items()},
          model=Path(model).name)  # fmt: skip
    draw(folder_of(toy) / f"{name}.png", sizes, costs, across)


if __name__ == "__main__":
    main()
