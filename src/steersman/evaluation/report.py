"""One page that shows a SteerLM run: data, losses, predictor, steering, samples, timings.

In: what the run's stages measured. Out: `report.html`, self-contained (no request leaves it, light and dark), and
`report.json`, one flat object of dotted keys to numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.evaluation import pictures
from steersman.evaluation.pictures import LossCurve
from steersman.evaluation.predictor import PredictorReport
from steersman.evaluation.statistics import Estimate
from steersman.evaluation.steerability import Measured, SteeringReport

MAX_ANSWER = 1200
"""Characters of a sample that are shown."""


@dataclass(frozen=True)
class Target:
    """A figure and the bound it is held to.

    Attributes:
        name: the figure's key.
        low, high, magnitude: least and greatest value, greatest absolute value; one of them is given.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    magnitude: float | None = None

    @property
    def met(self) -> bool:
        """Whether the bound holds; not for a figure that is NaN, which means that there is none."""
        if self.low is not None:
            return self.value >= self.low
        if self.high is not None:
            return self.value <= self.high
        assert self.magnitude is not None
        return abs(self.value) <= self.magnitude

    @property
    def bound(self) -> str:
        if self.low is not None:
            return f"≥ {self.low:g}"
        return f"≤ {self.high:g}" if self.high is not None else f"within ±{self.magnitude:g}"


class DataSet(BaseModel):
    """Counts of one data file, and how often each label value occurs in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_records: int = 0
    num_answers: int = 0
    num_labelled: int = 0
    labels: dict[str, dict[int, int]] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """A stage's manifest, as far as the page shows it."""

    name: str
    seconds: float
    attempts: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Steering:
    """What is known of how the final model obeys.

    Attributes:
        final: the model at the end of the chain.
        before: before bootstrapping.
        unseen: the final model on attribute combinations that no training data had.
        unconditioned: a model trained on the same answers without labels.
        gain: conditioning gain, nats a trained token.
        answers: of the final model, from which samples are shown.
    """

    final: SteeringReport
    before: SteeringReport | None = None
    unseen: SteeringReport | None = None
    unconditioned: SteeringReport | None = None
    gain: Estimate
    answers: Sequence[Measured] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything on the page."""

    title: str
    schema: AttributeSchema
    data: Sequence[DataSet]
    curves: Mapping[str, LossCurve]
    predictor: PredictorReport
    predictor_note: str
    steering: Steering
    steering_note: str
    stages: Sequence[StageTime]
    seconds: float
    versions: Mapping[str, str]
    config: str
    num_samples: int = 4


def figures(run: Run) -> dict[str, float]:
    """The report's numbers under their dotted keys."""
    steering = run.steering
    flat = {"steerlm.seconds": run.seconds}
    flat |= {f"steerlm.predictor.{key}": value for key, value in run.predictor.figures().items()}
    flat |= {f"steerlm.steering.{key}": value for key, value in steering.final.figures().items()}
    for kind in ("unseen", "unconditioned", "before"):
        report: SteeringReport | None = getattr(steering, kind)
        for name, response in report.attributes.items() if report else ():
            flat[f"steerlm.steering.spearman_{kind}.{name}"] = response.spearman.value
    flat |= {f"steerlm.conditioning_gain.{key}": getattr(steering.gain, at) for key, at in _GAIN_KEYS.items()}
    if steering.before:
        change = _mean_spearman(steering.final) - _mean_spearman(steering.before)
        flat["steerlm.bootstrap.spearman_change"] = change
    return flat


_GAIN_KEYS = {"mean": "value", "low": "low", "high": "high"}


def _mean_spearman(report: SteeringReport) -> float:
    return sum(r.spearman.value for r in report.attributes.values()) / len(report.attributes)


def write(run: Run, folder: Path, targets: Sequence[Target] = ()) -> Path:
    """Write `report.html` and `report.json`; returns the page's path."""
    content = orjson.dumps(figures(run), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    jsonl.write_bytes(folder / "report.json", content)
    jsonl.write_bytes(folder / "report.html", page(run, targets).encode())
    return folder / "report.html"


def page(run: Run, targets: Sequence[Target] = ()) -> str:
    """The whole page as HTML."""
    sections = {
        "Targets": _targets(targets),
        "Data": _data(run),
        "Training": _training(run),
        "Predictor": _predictor(run),
        "Steering": _steering(run),
        "Samples": _samples(run),
        "Run": _run(run),
    }
    shown = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in shown)
    body = "".join(f'<section><h2 id="{title.lower()}">{title}</h2>{body}</section>' for title, body in shown.items())
    css = files("steersman.evaluation").joinpath("report.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.title)}</title><style>{css}</style></head><body>"
        f"<header><h1>{escape(run.title)}</h1>{_summary(run)}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Rows of cells; a cell that begins with `<td` brings its own tag, any other is text."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _interval(estimate: Estimate) -> str:
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _summary(run: Run) -> str:
    steering = run.steering
    tiles = [
        (_duration(run.seconds), "all stages together"),
        (f"{_mean_spearman(steering.final):.2f}", "mean Spearman, requested against measured"),
        (f"{steering.gain.value:.3f}", "nats a token that knowing the labels saves"),
        (f"{run.predictor.num_turns:,}", "held-out turns that the predictor was tested on"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{escape(what)}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{cells}</div>'


def _targets(targets: Sequence[Target]) -> str:
    if not targets:
        return ""
    rows = [
        (
            target.name.removeprefix("steerlm."),
            f"{target.value:.3f}",
            target.bound,
            '<td class="good">✓ met</td>' if target.met else '<td class="bad">✗ missed</td>',
        )
        for target in targets
    ]
    return _table(["figure", "value", "target", ""], rows)


def _data(run: Run) -> str:
    rows = [(d.name, f"{d.num_records:,}", f"{d.num_answers:,}", f"{d.num_labelled:,}") for d in run.data]
    parts = [_table(["data", "conversations", "answers", "with labels"], rows)]
    for index, data in enumerate(run.data):
        if data.labels:
            picture = pictures.label_shares(data.labels, run.schema)
            svg = pictures.to_svg(picture, f"labels-{index}", f"Shares of label values, {data.name}")
            parts.append(f"<h3>Labels: {escape(data.name)}</h3><figure>{svg}</figure>")
    return "".join(parts)


def _training(run: Run) -> str:
    svg = pictures.to_svg(pictures.loss_curves(run.curves), "loss", "Loss curves of every training job")
    return _figure(svg, "Grey line: training loss. Blue: validation loss; the ring marks the checkpoint that is used.")


def _predictor(run: Run) -> str:
    svg = pictures.to_svg(pictures.predictor_quality(run.predictor), "predictor", "Predictor quality by attribute")
    caption = "Bars are 95 % intervals, trees resampled. The constant is the median of the training labels."
    rows = [
        (
            name,
            _interval(quality.spearman),
            _number(quality.spearman_length),
            _interval(quality.gain_over_length),
            _interval(quality.mae),
            _number(quality.mae_constant),
            f"{quality.exact_match:.1%}",
            f"{quality.num_turns:,}",
        )
        for name, quality in run.predictor.attributes.items()
    ]
    head = ["attribute", "Spearman", "of length", "gain over length", "error", "of constant", "exact", "turns"]
    return f"<p>{escape(run.predictor_note)}</p>{_figure(svg, caption)}{_table(head, rows)}"


def _steering(run: Run) -> str:
    steering = run.steering
    picture = pictures.response_curves(steering.final, run.schema, steering.unconditioned)
    svg = pictures.to_svg(picture, "steering", "Measured against requested value of each attribute")
    caption = "Mean measured value at each requested one, with 95 % intervals, questions resampled. Dotted: obedience."
    rows = [
        (name, _interval(response.spearman), _interval(response.mae), _interval(response.cross_talk))
        for name, response in steering.final.attributes.items()
    ]
    reports = {
        "final": steering.final,
        "before bootstrap": steering.before,
        "unseen combinations": steering.unseen,
        "not conditioned": steering.unconditioned,
    }
    shown = {title: report for title, report in reports.items() if report}
    compared = [
        (name, *(_number(report.attributes[name].spearman.value) for report in shown.values()))
        for name in steering.final.attributes
    ]
    gain = (
        f"Knowing a held-out answer's true labels instead of another record's saves {steering.gain.value:.4f} nats "
        f"a token [{steering.gain.low:.4f}, {steering.gain.high:.4f}]: the conditioning gain."
    )
    return (
        f"<p>{escape(run.steering_note)}</p>{_figure(svg, caption)}"
        f"{_table(['attribute', 'Spearman', 'error', 'cross-talk'], rows)}<p>{gain}</p>"
        f"<h3>Spearman of requested and measured</h3>{_table(['attribute', *shown], compared)}"
        "<h3>Cross-talk</h3><p>How far a measured value (column) moves when a dial (row) is turned by one step.</p>"
        f"{_cross_talk(steering.final)}"
    )


def _cross_talk(report: SteeringReport) -> str:
    measured = list(next(iter(report.attributes.values())).slopes)
    rows = []
    for name, response in report.attributes.items():
        cells = [_slope_cell(response.slopes[other], other == name) for other in measured]
        rows.append([name, *cells])
    return _table(["turned", *measured], rows, "matrix")


def _slope_cell(slope: float, own: bool) -> str:
    colour = "accent" if own else "contrast"
    strength = round(min(abs(slope), 1.0) * 60)
    background = f"color-mix(in srgb, var(--{colour}) {strength}%, transparent)"
    return f'<td style="background:{background}">{_number(slope)}</td>'


def _samples(run: Run) -> str:
    answers = run.steering.answers
    questions = list(dict.fromkeys(answer.question for answer in answers))[: run.num_samples]
    parts = []
    for question in questions:
        mine = [answer for answer in answers if answer.question == question]
        parts.append(f'<p class="question">{escape(mine[0].conversation.conversations[-1].value)}</p>')
        for name in run.steering.final.attributes:
            swept = sorted((a for a in mine if name in a.swept), key=lambda a: a.attributes[name])
            if len(swept) >= 2:
                parts.append(f'<div class="ends">{_answer(swept[0], name)}{_answer(swept[-1], name)}</div>')
    if not parts:
        return ""
    return "<p>The same question with each dial at either end, the others alike.</p>" + "".join(parts)


def _answer(answer: Measured, name: str) -> str:
    text = answer.answer if len(answer.answer) <= MAX_ANSWER else answer.answer[:MAX_ANSWER] + " …"
    measured = f", measured {answer.measured[name]:.1f}" if name in answer.measured else ""
    return (
        f'<div class="answer"><span class="dial">{escape(name)} <b>{answer.attributes[name]}</b>{measured}</span>'
        f"<p>{escape(text) or '<i>(empty)</i>'}</p></div>"
    )


def _run(run: Run) -> str:
    rows = [
        (
            stage.name,
            _duration(stage.seconds),
            "" if stage.attempts == 1 else f"resumed {stage.attempts - 1}×",
            stage.version,
        )
        for stage in run.stages
    ]
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"{_table(['stage', 'time', '', 'steersman'], rows)}<p class='note'>{escape(versions)}</p>"
        f"<h3>Resolved recipe</h3><pre>{escape(run.config)}</pre>"
    )
