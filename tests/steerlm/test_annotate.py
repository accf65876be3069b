from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from steersman import jsonl
from steersman.attributes import AttributeSchema
from steersman.errors import DataError, OutputError
from steersman.generation.engine import Engine
from steersman.generation.window import Window
from steersman.models.load import load_model
from steersman.records import Conversation, Judgement
from steersman.scoring.attributes import AttributePredictor
from steersman.seams import Progress
from steersman.steerlm.annotate import Agreement, annotate, summarize

SCHEMA = AttributeSchema.of("quality", "humor")


class RuleScorer:
    """quality: exclamation marks of the last turn; humor: quality in the label of the turn labelled before it."""

    schema = SCHEMA

    def __init__(self, fail_at_call: int | None = None) -> None:
        self.batches: list[int] = []
        self.fail_at_call = fail_at_call

    reads_labels = True

    def judge(self, conversations: Sequence[Conversation], progress: Progress | None = None) -> list[Judgement]:
        if len(self.batches) == self.fail_at_call:
            raise KeyboardInterrupt
        self.batches.append(len(conversations))
        if progress:
            progress(len(conversations))
        return [self._judge(conversation) for conversation in conversations]

    def _judge(self, conversation: Conversation) -> Judgement:
        spoken = [conversation.conversations[i] for i in conversation.spoken_turns()]
        earlier = [turn.label for turn in conversation.conversations[:-1] if turn.label]
        values = {
            "quality": spoken[-1].value.count("!"),
            "humor": SCHEMA.parse(earlier[-1])["quality"] if earlier else 0,
        }
        probabilities = {name: [0.6 if v == value else 0.1 for v in range(5)] for name, value in values.items()}
        expected = {name: sum(p * v for v, p in enumerate(probs)) for name, probs in probabilities.items()}
        return Judgement(values=values, probabilities=probabilities, expected=expected)


Turn = tuple[str, str] | tuple[str, str, str]


def record(*turns: Turn, **more: Any) -> dict[str, Any]:
    made = [{"from": t[0], "value": t[1], "label": t[2] if len(t) == 3 else None} for t in turns]
    return {"system": "", "mask": "User", "type": "VALUE_TO_TEXT", "conversations": made, **more}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_records(*records: dict[str, Any]) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in records))
        return path

    return write_records


def run(source: Path, output: Path, scorer: Any = None, **options: Any) -> list[dict[str, Any]]:
    annotate(source, output, scorer or RuleScorer(), identity="rules", **options)
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def labels(record: dict[str, Any]) -> list[str | None]:
    return [turn["label"] for turn in record["conversations"]]


def test_labels_are_replaced_and_human_ones_kept(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write(record(("User", "hi"), ("Assistant", "yes!!!", "quality:1,humor:2"), tree_id="t7"))
    (written,) = run(source, tmp_path / "out.jsonl")
    user, answer = written["conversations"]
    assert user == {"from": "User", "value": "hi", "label": None}
    assert answer == {
        "from": "Assistant",
        "value": "yes!!!",
        "label": "quality:3,humor:0",
        "gt_label": "quality:1,humor:2",
        "label_probs": {"quality": [0.1, 0.1, 0.1, 0.6, 0.1], "humor": [0.6, 0.1, 0.1, 0.1, 0.1]},
        "label_expected": {"quality": pytest.approx(2.5), "humor": pytest.approx(1.0)},
    }
    assert (written["type"], written["tree_id"]) == ("VALUE_TO_TEXT", "t7")


def test_earlier_predicted_labels_stand_in_context(write: Callable[..., Path], tmp_path: Path) -> None:
    turns = [("User", "a"), ("Assistant", "b!!", "quality:4"), ("User", "c"), ("Assistant", "d!!!")]
    (written,) = run(write(record(*turns, ("User", "e"), ("Assistant", "f"))), tmp_path / "out.jsonl")
    assert labels(written) == [None, "quality:2,humor:0", None, "quality:3,humor:2", None, "quality:0,humor:3"]


def test_a_scorer_that_reads_no_labels_judges_all_turns_at_once(write: Callable[..., Path], tmp_path: Path) -> None:
    turns = [("User", "a"), ("Assistant", "b!!", "quality:4"), ("User", "c"), ("Assistant", "d!!!")]
    source = write(record(*turns), record(("User", "e"), ("Assistant", "f")))
    scorer = RuleScorer()
    run(source, tmp_path / "turn_by_turn.jsonl", scorer)
    assert scorer.batches == [2, 1]
    scorer = RuleScorer()
    scorer.reads_labels = False
    first, second = run(source, tmp_path / "at_once.jsonl", scorer)
    assert scorer.batches == [3]
    assert (labels(first)[1], labels(second)) == ("quality:2,humor:0", [None, "quality:0,humor:0"])


def test_all_turns_can_be_labelled(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write(record(("User", "a!"), ("Assistant", "b!!"), ("User", "c")))
    (written,) = run(source, tmp_path / "out.jsonl", turns="all")
    assert labels(written) == ["quality:1,humor:0", "quality:2,humor:1", "quality:0,humor:2"]
    assert written["mask"] == "User"


def test_every_role_that_the_mask_leaves_is_labelled(write: Callable[..., Path], tmp_path: Path) -> None:
    turns = [("User", "a!"), ("Tool", "b!"), ("Critic", "c!"), ("Assistant", "d!")]
    (written,) = run(write(record(*turns, mask="User, Tool")), tmp_path / "out.jsonl")
    assert [label is not None for label in labels(written)] == [False, False, True, True]


def test_a_record_without_a_type_gets_one_that_shows_labels(write: Callable[..., Path], tmp_path: Path) -> None:
    turns = [("User", "a"), ("Assistant", "b")]
    written = run(write(record(*turns, type=None), record(*turns, type="TEXT_TO_VALUE")), tmp_path / "out.jsonl")
    assert [one["type"] for one in written] == ["VALUE_TO_TEXT", "TEXT_TO_VALUE"]


def test_annotating_again_keeps_the_first_human_label(write: Callable[..., Path], tmp_path: Path) -> None:
    first = tmp_path / "first.jsonl"
    run(write(record(("User", "a"), ("Assistant", "b!", "quality:4"))), first)
    (again,) = run(first, tmp_path / "second.jsonl")
    assert again["conversations"][1]["gt_label"] == "quality:4"
    assert first.read_bytes() == (tmp_path / "second.jsonl").read_bytes()


def dialogues(count: int) -> list[dict[str, Any]]:
    return [
        record(*[(role, f"{i}{'!' * (i % 4)}") for _ in range(i % 3 + 1) for role in ("User", "Assistant")], id=i)
        for i in range(count)
    ]


def test_conversations_of_a_unit_advance_together(write: Callable[..., Path], tmp_path: Path) -> None:
    scorer = RuleScorer()
    done: list[int] = []
    run(write(*dialogues(7)), tmp_path / "out.jsonl", scorer, unit=4, progress=done.append)
    # units of 4 and 3 conversations with 1, 2, 3, 1 and 2, 3, 1 answers
    assert scorer.batches == [4, 2, 1, 3, 2, 1]
    assert sum(done) == 13


@pytest.mark.parametrize("call", [0, 1, 4, 7])
def test_an_interrupted_run_continues_to_the_same_bytes(write: Callable[..., Path], tmp_path: Path, call: int) -> None:
    source = write(*dialogues(10))
    run(source, tmp_path / "whole.jsonl", unit=3)
    cut = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(source, cut, RuleScorer(fail_at_call=call), unit=3)
    assert not cut.exists()
    scorer, done = RuleScorer(), list[int]()
    run(source, cut, scorer, unit=3, progress=done.append)
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    num_turns = sum(i % 3 + 1 for i in range(10))
    assert sum(done) == num_turns
    assert sum(scorer.batches) == num_turns - 6 * (call // 3)  # committed units (6 answers each) are not judged again


def test_another_jobs_unfinished_work_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    source, output = write(*dialogues(10)), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(source, output, RuleScorer(fail_at_call=4), unit=3)
    with pytest.raises(OutputError, match="other inputs or settings"):
        run(source, output, unit=3, turns="all")


def test_an_output_that_exists_is_kept(write: Callable[..., Path], tmp_path: Path) -> None:
    source, output = write(*dialogues(1)), tmp_path / "out.jsonl"
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        run(source, output)
    assert output.read_text() == "precious"
    assert len(run(source, output, overwrite=True)) == 1


def test_bad_lines_stop_or_are_kept_aside(write: Callable[..., Path], tmp_path: Path) -> None:
    source, output = write(*dialogues(1)), tmp_path / "out.jsonl"
    source.write_bytes(source.read_bytes() + b'{"conversations": [{"from": "User"\n' + source.read_bytes())
    with pytest.raises(DataError, match=r"in\.jsonl:2: not valid JSON"):
        run(source, output)
    report = annotate(source, output, RuleScorer(), identity="rules", on_error="skip")
    assert (report.num_conversations, report.num_rejected) == (2, 1)
    (reject,) = (orjson.loads(line) for line in (tmp_path / "out.jsonl.rejects.jsonl").read_bytes().splitlines())
    assert (reject["line"], reject["text"]) == (2, '{"conversations": [{"from": "User"')


def test_what_does_not_fit_has_no_label_and_is_counted(write: Callable[..., Path], tmp_path: Path) -> None:
    turns = [("User", "a"), ("Assistant", "b!"), ("User", "c"), ("Assistant", "d", "quality:2")]
    source, output = write(record(*turns), record(*turns[:2])), tmp_path / "out.jsonl"
    done: list[int] = []
    report = annotate(
        source,
        output,
        RuleScorer(),
        identity="rules",
        fits=lambda conversation: len(conversation.conversations) < 3,
        progress=done.append,
    )
    assert (report.num_labelled, report.unlabelled) == (2, {"longer than the window": 1})
    assert sum(done) == 3
    long, _ = jsonl.read(output, Conversation)
    assert long.conversations[3].label is None
    assert long.conversations[3].model_extra == {"gt_label": "quality:2", "label_error": "longer than the window"}


def test_a_conversation_that_cannot_be_rendered_is_a_bad_line(write: Callable[..., Path], tmp_path: Path) -> None:
    def fits(conversation: Conversation) -> bool:
        if conversation.conversations[-1].value.startswith("1"):
            raise DataError("holds a control string")
        return True

    with pytest.raises(DataError, match=r"in\.jsonl:2: holds a control string"):
        run(write(*dialogues(3)), tmp_path / "out.jsonl", fits=fits)


def test_agreement_with_human_labels(tmp_path: Path) -> None:
    def turn(label: str, human: str, probabilities: list[float] | None) -> dict[str, Any]:
        probs = {"label_probs": {"quality": probabilities} if probabilities else {}}
        return {"from": "Assistant", "value": "x", "label": label, "gt_label": human, **probs}

    path = tmp_path / "annotated.jsonl"
    turns = [
        turn("quality:4,humor:1", "quality:4", [0.0, 0.0, 0.3, 0.3, 0.4]),  # median 3
        turn("quality:0,humor:1", "humor:1,quality:2", [0.4, 0.3, 0.3, 0.0, 0.0]),  # median 1
        turn("quality:1,humor:1", "quality:3,humor:4,violence:0,lang:en", None),  # exact scorer: the value itself
        turn("quality:1,humor:1", "quality:3,wit:4", None),  # another schema
    ]
    jsonl.write(path, [{"conversations": turns}])
    report = summarize(path, SCHEMA)
    assert report.agreement["quality"] == Agreement(num=3, exact=pytest.approx(1 / 3), mae=pytest.approx(4 / 3))
    assert report.agreement["humor"] == Agreement(num=2, exact=0.5, mae=1.5)
    assert report.num_foreign == 1


def chats(count: int) -> list[dict[str, Any]]:
    """Dialogues of one to three answers in words that the tiny model knows."""
    words = ["The moon", "a joke about the sea", "12 pears and 3 apples", "Paris!"]
    return [
        record(*[(role, f"{words[(i + n) % 4]}, {i}") for n in range(i % 3 + 1) for role in ("User", "Assistant")])
        for i in range(count)
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_interrupted_model_continues_to_the_same_bytes(
    tiny_steered_folder: Path, write: Callable[..., Path], tmp_path: Path, precision: Any
) -> None:
    loaded = load_model(tiny_steered_folder, precision=precision)
    assert loaded.card.attributes is not None
    source = write(*chats(12))

    def label(output: Path, num_units: int | None = None) -> bytes:
        engine = Engine(loaded, max_batch=3)
        predictor = AttributePredictor(engine, engine.encoder.template, loaded.card.attributes)
        units_left = iter(range(num_units or 100))

        def forget() -> None:
            engine.forget()
            if next(units_left, None) is None:
                raise KeyboardInterrupt

        annotate(source, output, predictor, identity="tiny", unit=4, forget=forget)
        return output.read_bytes()

    with pytest.raises(KeyboardInterrupt):
        label(tmp_path / "cut.jsonl", num_units=1)
    assert label(tmp_path / "cut.jsonl") == label(tmp_path / "whole.jsonl")


def test_a_model_labels_alike_in_any_unit(
    tiny_steered_folder: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_model(tiny_steered_folder, precision="float32")
    assert loaded.card.attributes is not None
    source = write(*chats(6))
    outputs = []
    for unit in (1, 6):
        engine = Engine(loaded, max_batch=4)
        window = Window(engine.encoder, 130)
        predictor = AttributePredictor(engine, engine.encoder.template, loaded.card.attributes, window)
        path = tmp_path / f"{unit}.jsonl"
        report = annotate(source, path, predictor, identity="tiny", unit=unit, fits=predictor.fits)
        assert report.num_labelled + sum(report.unlabelled.values()) == 12
        outputs.append(list(jsonl.read(path, Conversation)))
    assert 0 < report.num_labelled < 12
    for alone, together in zip(*outputs, strict=True):
        for one, other in zip(alone.conversations, together.conversations, strict=True):
            assert (one.label, (one.model_extra or {}).keys()) == (other.label, (other.model_extra or {}).keys())
            for name, probabilities in (one.model_extra or {}).get("label_probs", {}).items():
                assert probabilities == pytest.approx((other.model_extra or {})["label_probs"][name], abs=1e-4)
