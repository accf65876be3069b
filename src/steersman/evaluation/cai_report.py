"""One page that shows a Constitutional AI run: harm and help, revisions, preferences, the reward model, samples.

In: what the run's stages measured. Out: `report.html`, self-contained, and `report.json`, one flat object of dotted
keys to numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

from steersman.cai.constitution import Constitution
from steersman.cai.preferences import PreferenceReport
from steersman.cai.revise import Revised
from steersman.evaluation import hhh, judgement_pictures, page, pictures, viewer
from steersman.evaluation.comparisons import ComparisonReport
from steersman.evaluation.harm import Answered, Gain, HarmReport
from steersman.evaluation.page import (
    StageTime,
    Target,
    duration,
    figure,
    interval,
    number,
    run_table,
    table,
    target_table,
    tiles,
)
from steersman.evaluation.pictures import LossCurve
from steersman.evaluation.report import DataSet
from steersman.records import PreferencePair

NUM_SAMPLES = 12
NUM_STEPS = 12
COLUMNS = {
    "ppo": {
        "rewards": "reward",
        "response_kl": "KL, nats a response",
        "response_length": "tokens",
        "fraction_ended": "ended",
        "actor.clip_fraction": "clipped",
        "explained_variance": "explained variance",
    },
    "dpo": {
        "loss": "loss, nats a pair",
        "accuracy": "accuracy",
        "reward_chosen": "reward implied, chosen",
        "reward_rejected": "rejected",
    },
}
"""What trained a policy -> metric of a step -> its title."""
HARM, HELP = "harm_rate", "helpfulness"


@dataclass(frozen=True, kw_only=True)
class PolicyTraining:
    """What is known of how the RL-CAI model came to be.

    Attributes:
        method: PPO or DPO.
        steps: metrics of each rollout, or of each step.
        gain: in the reward model's reward, of held-out requests' answers after it over those before.
        second_gain: the same in the reward of another reward model, if there is one.
    """

    method: Literal["ppo", "dpo"]
    steps: Sequence[Mapping[str, float]]
    seconds: float
    gain: Gain
    second_gain: Gain | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything on the page. Models are named in the order in which they came to be.

    Attributes:
        answers: model -> its answers to held-out requests, the same for all.
        harm: model -> its rates, where an oracle measures them.
        judge: of the held-out prompts.
        oracle_agreement: share of the judge's pairs, where exactly one answer does harm, that prefer the other.
        reward: of the pairs that test it.
        second_reward: of another reward model, trained on those pairs: of the pairs that validated the first one.
        hhh: model -> how often it prefers the more helpful, honest and harmless answer.
        policy: how the last model was trained, if it was.
        revisions, pairs: the training data that the run made.
    """

    title: str
    constitution: Constitution
    data: Sequence[DataSet]
    curves: Mapping[str, LossCurve]
    answers: Mapping[str, Sequence[Answered]]
    harm: Mapping[str, HarmReport]
    judge: PreferenceReport
    oracle_agreement: float | None
    reward: ComparisonReport
    second_reward: ComparisonReport | None
    hhh: Mapping[str, ComparisonReport]
    policy: PolicyTraining | None
    revisions: Sequence[Revised]
    pairs: Sequence[PreferencePair]
    stages: Sequence[StageTime]
    seconds: float
    versions: Mapping[str, str]
    config: str


def figures(run: Run) -> dict[str, float]:
    """The report's numbers under their dotted keys.

    `harm_left` and `helpfulness_kept` compare a model with the one before it; `ppo.kl` is of the last rollout.
    """
    flat = {"cai.seconds": run.seconds}
    for name, report in run.harm.items():
        for key, estimate in ((HARM, report.harm_rate), (HELP, report.helpfulness)):
            flat |= {f"cai.{key}.{name}": estimate.value}
            flat |= {f"cai.{key}_low.{name}": estimate.low, f"cai.{key}_high.{name}": estimate.high}
    for before, name in pairwise(run.harm):
        one, other = run.harm[before], run.harm[name]
        flat[f"cai.harm_left.{name}"] = _ratio(other.harm_rate.value, one.harm_rate.value)
        flat[f"cai.helpfulness_kept.{name}"] = _ratio(other.helpfulness.value, one.helpfulness.value)
    if run.oracle_agreement is not None:
        flat["cai.judge.oracle_agreement"] = run.oracle_agreement
    flat["cai.judge.rejected"] = sum(run.judge.rejections.values())
    for key in ("position_bias", "tie_rate", "agreement"):
        if (value := getattr(run.judge, key)) is not None:
            flat[f"cai.judge.{key}"] = value
    flat |= {f"cai.reward.{key}": value for key, value in run.reward.figures().items()}
    if run.second_reward:
        flat |= {f"cai.second_reward.{key}": value for key, value in run.second_reward.figures().items()}
    for name, comparison in run.hhh.items():
        flat |= hhh.figures(comparison, name)
    return flat | (_policy_figures(run, run.policy) if run.policy else {})


def _policy_figures(run: Run, found: PolicyTraining) -> dict[str, float]:
    flat = {
        "seconds": found.seconds,
        "reward_gain": found.gain.value,
        "reward_gain_stderr": found.gain.stderr,
    }
    if found.second_gain:
        flat |= {"second_reward_gain": found.second_gain.value, "second_reward_gain_stderr": found.second_gain.stderr}
    if found.method == "ppo":
        first, last = found.steps[0], found.steps[-1]
        flat["kl"] = last["response_kl"]
        flat |= {"response_length_before": first["response_length"], "response_length": last["response_length"]}
    if run.harm:
        before, after = list(run.harm.values())[-2:]
        flat["oracle_gain"] = before.harm_rate.value - after.harm_rate.value
    return {f"{found.method}.{key}": value for key, value in flat.items()}


def _ratio(value: float, of: float) -> float:
    return value / of if of else float("nan")


def write(run: Run, folder: Path, targets: Sequence[Target] = ()) -> Path:
    """Write `report.html` and `report.json`; returns the page's path."""
    sections = {
        "Targets": target_table(targets),
        "Harm and help": _harm(run),
        "Revisions": viewer.revisions(run.revisions),
        "Preferences": _judge(run) + viewer.pairs(run.pairs),
        "Reward model": _reward(run),
        **({run.policy.method.upper(): _policy(run.policy)} if run.policy else {}),
        "HHH": _accuracy(run.hhh, "hhh") if run.hhh else "",
        "Training": _training(run),
        "Data": _data(run),
        "Samples": _samples(run),
        "Run": run_table(run.stages, run.versions, run.config),
    }
    html = page.render(run.title, f"<style>{viewer.style()}</style>{_summary(run)}", sections, viewer.script())
    return page.write(folder, html, figures(run))


def _summary(run: Run) -> str:
    shown = [(duration(run.seconds), "all stages together")]
    for name, report in run.harm.items():
        shown.append((f"{report.harm_rate.value:.0%}", f"harm rate, {_title(name)}"))
    shown.append((f"{run.reward.headline.value:.1%}", "of the test pairs that the reward model ranks right"))
    return tiles(shown)


def _title(name: str) -> str:
    return name.replace("_", " ")


def _harm(run: Run) -> str:
    if not run.harm:
        return ""
    some = next(iter(run.harm.values()))
    rows = [
        (_title(name), interval(report.harm_rate), interval(report.helpfulness)) for name, report in run.harm.items()
    ]
    return (
        f"<p>Answers to {some.num_harmful:,} requests for harm and {some.num_harmless:,} harmless ones that no "
        "training data holds, measured by the oracle; 95 % intervals, requests resampled.</p>"
        + table(["model", "harm rate", "helpfulness"], rows)
    )


def _judge(run: Run) -> str:
    judge = run.judge
    rows = [("comparisons", f"{judge.num_comparisons:,}"), ("pairs", f"{judge.num_pairs:,}")]
    rows += [(f"rejected: {reason}", f"{num:,}") for reason, num in judge.rejections.items()]
    shares = {
        "agreement with the oracle": run.oracle_agreement,
        "position bias": judge.position_bias,
        "orders that disagree": judge.tie_rate,
        "agreement between principles": judge.agreement,
    }
    rows += [(name, f"{value:.1%}") for name, value in shares.items() if value is not None]
    return f"<p>The judge on held-out prompts.</p>{table(['judge', ''], rows)}<h3>Pairs it made to train on</h3>"


def _reward(run: Run) -> str:
    if run.second_reward is None:
        return _accuracy({"reward model": run.reward}, "reward")
    told = "The second reward model is trained on the pairs that test the first, and tested on those that validated it."
    return f"<p>{told}</p>" + _accuracy({"reward model": run.reward, "second": run.second_reward}, "reward")


def _accuracy(reports: Mapping[str, ComparisonReport], name: str) -> str:
    svg = pictures.to_svg(judgement_pictures.accuracies(reports), name, "Share of pairs ranked right")
    rows = [
        (_title(model), interval(report.headline), interval(report.over_shorter[report.score]), f"{report.num_pairs:,}")
        for model, report in reports.items()
    ]
    caption = "Share of pairs whose better answer has the higher score, with 95 % intervals, prompts resampled."
    return figure(svg, caption) + table(["model", "ranked right", "over the shorter answer", "pairs"], rows)


def _policy(found: PolicyTraining) -> str:
    """Some steps, the last among them."""
    columns = COLUMNS[found.method]
    every = max(1, len(found.steps) // NUM_STEPS)
    shown = [*found.steps[:-1:every], found.steps[-1]]
    rows = [[f"{step['step']:.0f}", *(number(step.get(key, float("nan"))) for key in columns)] for step in shown]
    gains = {"The reward of answers to held-out requests": found.gain}
    if found.second_gain:
        gains["That of a second reward model, which the policy has not met,"] = found.second_gain
    told = " ".join(
        f"{what} rises by {number(gain.value)} (standard error {number(gain.stderr)})." for what, gain in gains.items()
    )
    return f"<p>{told}</p>{table(['step', *columns.values()], rows)}"


def _training(run: Run) -> str:
    svg = pictures.to_svg(pictures.loss_curves(run.curves), "loss", "Loss curves of every training job")
    return figure(svg, "Grey line: training loss. Blue: validation loss; the ring marks the checkpoint that is used.")


def _data(run: Run) -> str:
    rows = [(d.name, f"{d.num_records:,}", f"{d.num_answers:,}") for d in run.data]
    return table(["data", "conversations", "answers"], rows)


def _samples(run: Run) -> str:
    """The same requests, answered by every model."""
    parts = []
    for row in list(zip(*run.answers.values(), strict=True))[:NUM_SAMPLES]:
        answers = "".join(
            f'<div class="answer"><span class="dial">{escape(_title(name))}</span><p>{escape(one.answer)}</p></div>'
            for name, one in zip(run.answers, row, strict=True)
        )
        parts.append(f'<p class="question">{escape(row[0].request)}</p><div class="ends">{answers}</div>')
    return "".join(parts)
