"""All figures of `bench/results/` in one picture, `docs/performance.png`, each beside its target.

    python bench/picture.py [--toy]

Rates, times and memory are shown as how many times better than the peer's we are, so that longer is always better;
figures that are held against a limit as the share of it that we reach. What has not been measured is left out.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from result import TOYS, folder_of

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "performance.png"


@dataclass(frozen=True)
class Figure:
    """What is shown of a result.

    Attributes:
        target: the ratio to reach: at least, or for costs at most; None where there is none.
        cost: less is better.
    """

    label: str
    target: float | None = None
    cost: bool = False

    def goodness(self, ratio: float) -> float:
        return 1 / ratio if self.cost else ratio


PEERS = {
    "sft_rate": Figure("SFT, fp32 master weights", 2.5),
    "sft_memory": Figure("  its peak memory", 0.7, cost=True),
    "sft_rate_bf16": Figure("SFT, bf16 weights", 2.5),
    "sft_memory_bf16": Figure("  its peak memory", 0.7, cost=True),
    "lora_rate": Figure("SFT, LoRA", 2.5),
    "lora_memory": Figure("  its peak memory", cost=True),
    "reward_rate": Figure("reward model", 2.5),
    "reward_memory": Figure("  its peak memory", 0.7, cost=True),
    "annotate_rate": Figure("annotation", 8),
    "judge_rate": Figure("judging pairs", 3),
    "revise_rate": Figure("critique and revision", 3),
    "ppo_rate": Figure("PPO, LoRA", 3),
    "ppo_memory": Figure("  its peak memory", 0.6, cost=True),
    "ppo_overlap": Figure("PPO: a step, against its phases' sum", 0.75, cost=True),
    "generate_prefix": Figure("generation, shared prefix", 3),
    "generate_mixed": Figure("generation, mixed lengths", 1.5),
    "generate_mixed_vllm": Figure("  against vLLM", 1),
    "generate_single": Figure("generation, one stream", 1.3),
    "generate_single_vllm": Figure("  against vLLM", 1),
    "serve_rate_vllm": Figure("serving, against vLLM", 0.9),
    "prepare_time": Figure("prepare oasst", 1, cost=True),
    "prepare_memory_mb": Figure("  its peak memory, of 400 MB", 1, cost=True),
    "clean_rate": Figure("clean, against tokenising alone", 0.8),
}
LIMITS = {
    "sft_mfu": Figure("SFT: of the bf16 matmul rate", 0.4),
    "annotate_limit": Figure("annotation: of one forward pass", 0.75),
    "generate_single_limit": Figure("one stream: of the memory's read rate"),
    "serve_rate": Figure("serving: of the engine's rate", 0.9),
    "serve_rate_model": Figure("  the same, a real model", 0.9),
}


def draw(panel: Axes, figures: dict[str, Figure], results: dict[str, dict[str, Any]]) -> None:
    """Bars with the spread over the runs, and a line at each target."""
    shown = [(figure, results[name]) for name, figure in figures.items() if name in results]
    for row, (figure, result) in enumerate(shown):
        middle, *ends = (figure.goodness(result[key]) for key in ("ratio", "ratio_low", "ratio_high"))
        panel.barh(row, middle, color="#4878a8", height=0.6)
        panel.plot(ends, [row, row], color="black", linewidth=1)
        panel.annotate(f"{middle:.2f}", (max(ends), row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        if figure.target is not None:
            goal = figure.goodness(figure.target)
            panel.plot([goal, goal], [row - 0.4, row + 0.4], color="#d1495b", linewidth=2)
    panel.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    panel.set_yticks(range(len(shown)), [figure.label for figure, _ in shown])
    panel.invert_yaxis()
    panel.margins(x=0.12)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--toy", action="store_true", help="of toys' figures, beside them")
    asked = options.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in folder_of(asked.toy).glob("*.json")}
    panels = {"times better than the peer": PEERS, "share of the limit": LIMITS}
    counts = [sum(name in results for name in figures) for figures in panels.values()]
    figure, axes = plt.subplots(
        2, 1, figsize=(8, 1.6 + 0.32 * sum(counts)), height_ratios=[max(1, count) for count in counts],
        layout="constrained",
    )  # fmt: skip
    for panel, (title, figures) in zip(axes, panels.items(), strict=True):
        panel.set_title(f"{title} (red: target; black: spread over the runs)", fontsize=9, loc="left")
        draw(panel, figures, results)
    path = TOYS / "performance.png" if asked.toy else PICTURE
    figure.savefig(path, dpi=150)
    print(f"{sum(counts)} figures in {path}")


if __name__ == "__main__":
    main()
