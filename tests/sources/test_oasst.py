"""OpenAssistant trees and rows: exact records, order, labels, splits, and what is refused."""

import gzip
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steersman.attributes import AttributeSchema
from steersman.errors import DataError
from steersman.records import Conversation, PreferencePair
from steersman.sources.oasst import OasstConfig, prepare_oasst
from steersman.sources.summary import DataSummary

Json = dict[str, Any]
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.\n\n"
)
NAMES = [
    "quality", "toxicity", "humor", "creativity", "violence", "helpfulness", "not_appropriate", "hate_speech",
    "sexual_content", "fails_task", "political_content", "moral_judgement",
]  # fmt: skip


def message(role: str, text: str, *replies: Json, labels: dict[str, float] | None = None, **rest: Any) -> Json:
    judged = labels and {name: {"value": value, "count": 3} for name, value in labels.items()}
    return {"message_id": text, "role": role, "text": text, "labels": judged, "replies": list(replies), **rest}


def ask(text: str, *replies: Json, **rest: Any) -> Json:
    return message("prompter", text, *replies, **rest)


def answer(text: str, *replies: Json, **rest: Any) -> Json:
    return message("assistant", text, *replies, **rest)


def tree(name: str, prompt: Json) -> Json:
    return {"message_tree_id": name, "tree_state": "ready_for_export", "prompt": prompt}


def pair(name: str) -> Json:
    """A tree of a question and its answer."""
    return tree(name, ask(f"{name}?", answer(f"{name}!", labels={"quality": 0.5})))


def write(path: Path, objects: Iterable[Any]) -> Path:
    text = "".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in objects)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def unzip(path: Path) -> list[Json]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


Run = Callable[..., tuple[list[Json], list[Json], DataSummary]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(objects_or_path, **options)` -> (training records, validation records, summary); everything trains unless
    said otherwise."""

    def prepare(source: Iterable[Any] | Path, **options: Any) -> tuple[list[Json], list[Json], DataSummary]:
        path = source if isinstance(source, Path) else write(tmp_path / "in.jsonl", source)
        prefix = tmp_path / "out"
        config = OasstConfig(
            **{"input": (str(path),), "output_prefix": str(prefix), "split_ratio": 1.0, "overwrite": True, **options}
        )
        summary = prepare_oasst(config)
        return lines(tmp_path / "out_train.jsonl"), lines(tmp_path / "out_val.jsonl"), summary

    return prepare


BRANCHING = tree(
    "T",
    ask(
        "q",
        answer("a", ask("q a", answer("a q a", labels={"helpfulness": 1.0})), ask("q a 2"), labels={"quality": 0.8}),
        answer("b", labels={"toxicity": 0.125, "quality": 0.375, "spam": 1.0}),
        labels={"quality": 1.0},
    ),
)


def texts(record: Json) -> list[str]:
    return [turn["value"] for turn in record["conversations"]]


def test_a_branching_tree_record_by_record(run: Run) -> None:
    train, val, summary = run([BRANCHING])

    def user(text: str) -> Json:
        return {"from": "User", "value": text, "label": None}

    def assistant(text: str, label: str) -> Json:
        return {"from": "Assistant", "value": text, "label": label}

    common = {"system": SYSTEM, "mask": "User", "type": "TEXT_TO_VALUE", "tree_id": "T"}
    first = assistant("a", "quality:3")  # round(0.8 * 4)
    assert train == [
        {**common, "conversations": [user("q"), first, user("q a"), assistant("a q a", "helpfulness:4")]},
        {**common, "conversations": [user("q"), first, user("q a 2")]},
        {**common, "conversations": [user("q"), assistant("b", "quality:2,toxicity:0")]},  # 1.5 -> 2, 0.5 -> 0
    ]
    assert list(train[0]) == ["system", "mask", "type", "conversations", "tree_id"]
    assert val == []
    assert (summary.train.groups, summary.train.records) == (1, 3)
    assert (summary.train.turns, summary.train.labelled_turns) == (6, 3)
    assert summary.attributes is not None
    assert summary.attributes.names == ("quality", "toxicity", "helpfulness")
    assert summary.label_counts == {
        "quality": (0, 0, 1, 1, 0),
        "toxicity": (1, 0, 0, 0, 0),
        "helpfulness": (0, 0, 0, 0, 1),
    }


@pytest.mark.parametrize("train_once", [False, True])
def test_records_are_conversations_in_their_json_form(run: Run, train_once: bool) -> None:
    for record in run([BRANCHING], train_once=train_once, label_turns="all")[0]:
        again = Conversation.model_validate(record).to_json()
        assert json.dumps(again) == json.dumps(record)  # the order of the keys too


def test_labels_stand_in_the_order_of_the_schema(run: Run) -> None:
    train, _, _ = run([tree("T", ask("q", answer("a", labels=dict.fromkeys(reversed(NAMES), 0.25))))])
    assert train[0]["conversations"][1]["label"] == ",".join(f"{name}:1" for name in NAMES)


def test_options_that_shape_a_record(run: Run) -> None:
    options = {"type": None, "mask_role": "User,Assistant", "system": "Be brief.", "label_turns": "all"}
    train, _, _ = run([BRANCHING], **options)
    assert (train[2]["type"], train[2]["mask"], train[2]["system"]) == (None, "User,Assistant", "Be brief.")
    assert [turn["label"] for turn in train[2]["conversations"]] == ["quality:4", "quality:2,toxicity:0"]


def test_language_ends_the_label_without_its_country(run: Run) -> None:
    asked = ask("q", answer("a", labels={"humor": 1.0}, lang="pt-BR"), answer("b", lang="en"), lang="en")
    train, _, summary = run([tree("T", asked)], lang=True, derive=("verbosity",))
    assert train[0]["conversations"][1]["label"] == "humor:4,verbosity:0,lang:pt"
    assert train[1]["conversations"][1]["label"] is None
    assert summary.attributes is not None
    assert summary.attributes.language


def test_judgements_that_are_no_attribute_make_no_label(run: Run) -> None:
    train, _, summary = run([tree("T", ask("q", answer("a", labels={"spam": 0.0})))])
    assert train[0]["conversations"][1]["label"] is None
    assert summary.attributes is None


def test_a_message_alone_is_no_record_but_counts_in_the_split(run: Run) -> None:
    alone = [tree(f"alone {n}", ask("?")) for n in range(5)]
    train, val, summary = run([pair("A"), *alone], split_ratio=0.5, seed=1)
    order = list(range(6))
    random.Random(1).shuffle(order)
    assert len(train) == int(0 in order[:3])
    assert len(train) + len(val) == summary.train.groups + summary.val.groups == 1


@pytest.mark.parametrize("seed", [10, 3])
def test_the_split_is_that_of_nemo(run: Run, seed: int) -> None:
    trees = [pair(f"t{n}") for n in range(11)]
    train, val, _ = run(trees, seed=seed, split_ratio=0.7)
    shuffled = list(trees)
    random.seed(seed)
    random.shuffle(shuffled)
    assert [record["tree_id"] for record in train] == [item["message_tree_id"] for item in shuffled[:7]]
    assert [record["tree_id"] for record in val] == [item["message_tree_id"] for item in shuffled[7:]]


def test_limit_reads_the_first_lines_of_all_inputs_before_the_shuffle(tmp_path: Path, run: Run) -> None:
    inputs = [write(tmp_path / f"{n}.jsonl", [pair(f"{n}{i}") for i in range(3)]) for n in "ab"]
    train, _, _ = run([], input=tuple(map(str, inputs)), limit=4)
    assert sorted(record["tree_id"] for record in train) == ["a0", "a1", "a2", "b0"]


def test_train_once_trains_every_answer_in_one_record(run: Run) -> None:
    train, _, summary = run([BRANCHING], train_once=True)
    assert [texts(record) for record in train] == [["q", "a", "q a", "a q a"], ["q", "b"]]  # "q a 2" trains nothing
    assert [turn.get("train", True) for turn in train[0]["conversations"]] == [True] * 4
    assert [turn.get("train", True) for turn in train[1]["conversations"]] == [False, True]
    assert summary.train.labelled_turns == 3


def test_train_once_keeps_a_question_that_was_only_in_a_dropped_path(run: Run) -> None:
    prompt = ask("q", answer("a"), ask("again", ask("?"), answer("b")))
    train, _, _ = run([tree("T", prompt)], train_once=True, type="VALUE_TO_TEXT")
    assert [texts(record) for record in train] == [["q", "a"], ["q", "again", "b"]]
    assert [turn.get("train", True) for turn in train[1]["conversations"]] == [False, True, True]


def test_train_once_does_not_count_an_opening_answer_unless_its_label_is_learned(run: Run) -> None:
    prompt = answer("a", ask("q"), labels={"quality": 1.0})
    assert len(run([tree("T", prompt)], train_once=True, type="TEXT_TO_VALUE")[0]) == 1
    assert len(run([tree("T", prompt)], train_once=True, type="VALUE_TO_TEXT")[0]) == 0


def test_train_once_teaches_a_predictor_labels_and_no_text(run: Run) -> None:
    prompt = ask("q", answer("a", ask("more", answer("b")), labels={"quality": 0.5}), answer("c"))
    train, _, _ = run([tree("T", prompt)], train_once=True, type="TEXT_TO_VALUE")
    assert [texts(record) for record in train] == [["q", "a", "more", "b"]]  # "c" has no label, and nothing to teach
    assert [turn.get("train", True) for turn in train[0]["conversations"]] == [True, True, True, False]


def test_labels_keep_the_attributes_asked_for_in_the_schemas_order(run: Run) -> None:
    full = {"quality": 1.0, "toxicity": 0.25, "humor": 0.5}
    prompt = ask("q", answer("a", labels=full), answer("b", labels={"toxicity": 1.0}))
    train, _, summary = run([tree("T", prompt)], attributes=("humor", "quality"))
    assert [record["conversations"][1]["label"] for record in train] == ["quality:4,humor:2", None]
    assert summary.attributes == AttributeSchema.of("quality", "humor")
    with pytest.raises(ValidationError, match="did you mean 'quality'"):
        run([], attributes=("qualty",))


def test_derived_verbosity_is_the_fifth_of_the_training_lengths(run: Run) -> None:
    def sized(length: int, *replies: Json) -> Json:
        return tree(f"{length}", ask("q", answer("x" * length, *replies, labels={"quality": 1.0})))

    trees = [sized(n) for n in (10, 20, 30, 40)] + [
        sized(50, ask("y"), ask("z"))
    ]  # the last answer stands in 2 records
    train, _, summary = run(trees, derive=("verbosity",))
    verbosity = {len(texts(record)[1]): record["conversations"][1]["label"] for record in train}
    assert verbosity == {10 * (n + 1): f"quality:4,verbosity:{n}" for n in range(5)}
    assert summary.thresholds == {"verbosity": (10, 20, 30, 40)}
    assert [summary.measure("verbosity", "x" * n) for n in (0, 10, 11, 40, 41, 999)] == [0, 0, 1, 3, 4, 4]
    assert summary.attributes is not None
    assert summary.attributes.names == ("quality", "verbosity")
    assert [a.derived for a in summary.attributes.attributes] == [False, True]
    assert summary.label_counts["verbosity"] == (1, 1, 1, 1, 1)


def test_thresholds_know_nothing_of_the_validation_split(run: Run, tmp_path: Path) -> None:
    held_out = write(tmp_path / "val.jsonl", [tree("V", ask("q", answer("x" * 9, labels={"quality": 0.0})))])
    _, val, summary = run([pair("A")], val_input=(str(held_out),), derive=("verbosity",))
    assert summary.thresholds["verbosity"] == (2, 2, 2, 2)
    assert val[0]["conversations"][1]["label"] == "quality:0,verbosity:4"


def test_nothing_to_derive_from(run: Run) -> None:
    with pytest.raises(DataError, match="no assistant turn in the training split has a label"):
        run([tree("T", ask("q", answer("a")))], derive=("verbosity",))


def test_preferences_are_all_pairs_of_differently_ranked_answers(run: Run) -> None:
    prompt = ask(
        "q",
        answer("middling", rank=1),
        answer("best", ask("why?", answer("so", rank=0), answer("thus", rank=2)), rank=0),
        answer("unranked"),
        answer("as middling", rank=1),
        ask("rank of a question", rank=5),
    )
    train, _, summary = run([tree("T", prompt)], preferences=True)
    pairs = [(record["chosen"], record["rejected"], record["margin"]) for record in train]
    assert pairs == [("best", "middling", 1.0), ("best", "as middling", 1.0), ("so", "thus", 2.0)]
    assert train[2]["prompt"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "best"},
        {"role": "user", "content": "why?"},
    ]
    parsed = [PreferencePair.model_validate(record) for record in train]
    assert len({record.id for record in parsed}) == 3
    assert {(record.judge, record.source, record.soft_label) for record in parsed} == {("human", "oasst", 1.0)}
    assert {record["tree_id"] for record in train} == {"T"}
    assert summary.attributes is None


# --- flat rows


def rows_of(item: Json) -> list[Json]:
    """The hub's form of a tree: one row a message, parents before replies, replies in their order."""
    rows, waiting = [], [(item["prompt"], None)]
    while waiting:
        node, parent = waiting.pop()
        labels = node["labels"] and {
            "name": list(node["labels"]),
            "value": [entry["value"] for entry in node["labels"].values()],
            "count": [3] * len(node["labels"]),
        }
        keys = {key: value for key, value in node.items() if key != "replies"}
        rows.append({**keys, "message_tree_id": item["message_tree_id"], "parent_id": parent, "labels": labels})
        waiting.extend((reply, node["message_id"]) for reply in reversed(node["replies"]))
    return rows


def test_rows_become_the_records_of_their_trees(run: Run) -> None:
    trees = [BRANCHING, pair("A"), pair("B"), tree("lonely", ask("hm"))]
    expected = run(trees, split_ratio=0.5)
    rows = [row for item in trees for row in rows_of(item)]
    assert run(rows, split_ratio=0.5) == expected

    # Rows of different trees may be interleaved, and replies may come before what they answer.
    by_tree = [rows_of(item) for item in trees]
    interleaved = [by_tree[0][0], by_tree[1][0], by_tree[2][0], by_tree[3][0]]
    interleaved += [by_tree[2][1], *by_tree[0][1:], by_tree[1][1]]
    assert run(interleaved, split_ratio=0.5) == expected
    backwards = [by_tree[0][0], by_tree[1][1], by_tree[1][0], *by_tree[0][1:], *by_tree[2], *by_tree[3]]
    assert run(backwards, split_ratio=0.5) == expected


def test_rows_from_parquet(run: Run, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    trees = [BRANCHING, pair("A"), pair("B")]
    rows = [row for item in trees for row in rows_of(item)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=3)
    assert run(tmp_path / "rows.parquet") == run(trees)


def test_rows_that_make_no_tree(run: Run) -> None:
    root, reply = rows_of(pair("A"))
    cases = [
        ([root, {**reply, "parent_id": "gone"}], "the message it answers, gone, is not in the data"),
        ([root, {**root, "message_id": "second"}], "has 2 first messages"),
        ([root, reply, reply], "stand twice or answer one another"),
        (
            [root, {**reply, "message_id": "x", "parent_id": "y"}, {**reply, "message_id": "y", "parent_id": "x"}],
            "stand twice or answer one another",
        ),
    ]
    for rows, reason in cases:
        with pytest.raises(DataError, match=f"in.jsonl:1: .*{reason}"):
            run(rows)
    train, _, summary = run([*cases[0][0], *rows_of(pair("B"))], on_error="skip")
    assert [record["tree_id"] for record in train] == ["B"]
    assert summary.rejects == 1


# --- bad input

GOOD = pair("good")


def broken(**change: Any) -> Json:
    item = json.loads(json.dumps(pair("bad")))
    item["prompt"]["replies"][0].update(change)
    return item


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"message_tree_id": "T", "prompt"', "not valid JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ({"message_tree_id": "T"}, 'neither a tree \\(no "prompt"\\) nor a message'),
        ({"prompt": ask("q")}, '"message_tree_id" is missing'),
        (tree("T", None), "message T/0: expected an object, found NoneType"),  # type: ignore[arg-type]
        (tree("T", ask("q", "a")), "message T/1: expected an object, found str"),  # type: ignore[arg-type]
        (broken(role="moderator"), "message bad!: unknown role 'moderator'"),
        (broken(role=["assistant"]), "unknown role"),
        (broken(text=None), '"text" must be a string'),
        (broken(replies={}), '"replies" must be a list, not dict'),
        (broken(replies=None), '"replies" must be a list, not NoneType'),
        (broken(labels={"quality": {"value": 1.01}}), "label must lie in \\[0, 1\\], not 1.01"),
        (broken(labels={"humor": {"value": -0.1}}), "not -0.1"),
        (broken(labels={"humor": {"value": None}}), "humor must be a number, not None"),
        (broken(labels={"humor": {"value": True}}), "humor must be a number, not True"),
        (broken(labels={"name": ["humor"], "value": []}), "lists of equal length"),
        (broken(labels=[0.5]), "labels: expected an object, found list"),
        (broken(rank="first"), "\"rank\" must be a whole number, not 'first'"),
        (broken(lang=3), '"lang" must be a string'),
    ],
)
def test_a_bad_tree_stops_at_its_line_or_is_skipped(run: Run, tmp_path: Path, line: Any, reason: str) -> None:
    source = [GOOD, line, pair("also good")]
    with pytest.raises(DataError, match=reason) as caught:
        run(source)
    assert str(caught.value).startswith(f"{tmp_path / 'in.jsonl'}:2: ")
    assert not (tmp_path / "out_train.jsonl").exists()

    train, _, summary = run(source, on_error="skip")
    assert {record["tree_id"] for record in train} == {"good", "also good"}
    assert summary.rejects == 1
    (reject,) = lines(tmp_path / "out_rejects.jsonl")
    assert reject["line"] == 2
    assert reject["text"] == (line if isinstance(line, str) else json.dumps(line))
    run([GOOD])
    assert not (tmp_path / "out_rejects.jsonl").exists()  # those of the run before are gone


def test_a_tree_of_any_depth(run: Run) -> None:
    depth = 5_000
    opening = '{"message_tree_id": "deep", "prompt": '
    nested = "".join(
        f'{{"role": "{"assistant" if level % 2 else "prompter"}", "text": "{level}", "replies": ['
        for level in range(depth)
    )
    train, _, summary = run([opening + nested + "]}" * depth + "}"])
    assert len(train) == 1
    assert texts(train[0]) == [str(level) for level in range(depth)]
    assert summary.train.turns == depth


def test_a_gzip_file_that_ends_too_soon(run: Run, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl.gz", [pair(random.Random(n).randbytes(500).hex()) for n in range(300)])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut.jsonl.gz:1\d\d: gzip data damaged or cut short"):
        run(cut)
    train, _, summary = run(cut, on_error="skip")
    assert 100 < len(train) < 200
    assert summary.rejects == 1
    assert len(run(whole)[0]) == 300


def test_options_that_contradict(tmp_path: Path) -> None:
    base = {"input": ("x",), "output_prefix": "y"}
    for options in (
        {"preferences": True, "derive": ("verbosity",)},
        {"fold": "1/2", "val_input": ("z",)},
        {"fold": "3/2"},
        {"fold": "1/1"},
        {"mask_role": " ,"},
        {"derive": ("humour",)},
        {"limit": 0},
        {"input": ()},
    ):
        with pytest.raises(ValidationError):
            OasstConfig.model_validate({**base, **options})


# --- the real data


def reference(trees: list[Json], type: str) -> list[Json]:
    """NeMo's rules once more, by recursion."""

    def paths(node: Json) -> list[list[Json]]:
        role = {"prompter": "User", "assistant": "Assistant"}[node["role"]]
        judged = node.get("labels") or {}
        label = ",".join(f"{name}:{round(judged[name]['value'] * 4)}" for name in NAMES if name in judged)
        turn = {"from": role, "value": node["text"], "label": label if role == "Assistant" and label else None}
        below = [path for reply in node["replies"] for path in paths(reply)]
        return [[turn, *path] for path in below] or [[turn]]

    return [
        {"system": SYSTEM, "mask": "User", "type": type, "conversations": path, "tree_id": item["message_tree_id"]}
        for item in trees
        for path in paths(item["prompt"])
        if len(path) > 1
    ]


@pytest.mark.parametrize("name", ["oasst1_trees", "oasst2_trees", "oasst_unlabelled_trees"])
def test_real_trees_as_nemo_prepares_them(run: Run, shared_data: Path, name: str) -> None:
    path = shared_data / f"{name}.jsonl.gz"
    trees = unzip(path)
    train, val, _ = run(path, type="VALUE_TO_TEXT", split_ratio=0.95, seed=10)
    random.seed(10)
    random.shuffle(trees)
    num_train = int(len(trees) * 0.95)
    assert train == reference(trees[:num_train], "VALUE_TO_TEXT")
    assert val == reference(trees[num_train:], "VALUE_TO_TEXT")


@pytest.mark.parametrize(("name", "num_labelled"), [("oasst1_trees", 960), ("oasst2_trees", 531)])
def test_every_labelled_answer_of_the_real_trees(run: Run, shared_data: Path, name: str, num_labelled: int) -> None:
    # oasst1 has 966 judged answers: 4 were judged as spam or not, and nothing else; 2 are trees by themselves.
    path = shared_data / f"{name}.jsonl.gz"
    _, _, summary = run(path)
    assert summary.train.labelled_turns == num_labelled
    train, _, once = run(path, train_once=True)
    assert once.train.labelled_turns == num_labelled
    assert once.label_counts == summary.label_counts
    trained = sum(
        turn["label"] is not None and turn.get("train", True) for record in train for turn in record["conversations"]
    )
    assert trained == num_labelled


def test_real_rows_make_the_same_records_as_their_trees(run: Run, shared_data: Path) -> None:
    path = shared_data / "oasst1_messages_300.jsonl.gz"
    rows = unzip(path)
    kept = {row["message_id"] for row in rows}
    ids = list(dict.fromkeys(row["message_tree_id"] for row in rows))
    whole = {item["message_tree_id"]: item for item in unzip(shared_data / "oasst1_trees.jsonl.gz")}

    def cut(node: Json) -> Json:
        return {**node, "replies": [cut(reply) for reply in node["replies"] if reply["message_id"] in kept]}

    trees = [{**whole[name], "prompt": cut(whole[name]["prompt"])} for name in ids]
    for options in ({"derive": ("verbosity",), "lang": True}, {"preferences": True}):
        assert run(path, split_ratio=0.8, **options) == run(trees, split_ratio=0.8, **options)
