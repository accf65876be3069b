"""annotate, generate, bootstrap and chat, each run as a user runs it, on a tiny model with random weights."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest

from steersman.attributes import Attribute, AttributeSchema
from steersman.card import ModelCard, TemplateSpec
from steersman.cli import flags, main
from steersman.cli.chat import Session
from steersman.errors import ConfigError, LabelError
from steersman.records import Conversation
from steersman.seams import GenerationRequest, Sampling
from steersman.sources.summary import DataSummary, SplitCounts
from steersman.text.template import Template


@pytest.fixture
def steersman(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line: (exit status, stdout, stderr)."""

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    turns = [{"from": "User", "value": "hi"}, {"from": "Assistant", "value": "the moon", "label": "quality:2"}]
    path.write_bytes(2 * (orjson.dumps({"type": "VALUE_TO_TEXT", "conversations": turns}) + b"\n"))
    return path


def test_annotate(steersman: Any, tiny_steered_folder: Path, conversations: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    status, out, err = steersman(
        "annotate", "--model", tiny_steered_folder, "--input", conversations, "--output", output
    )
    assert status == 0, err
    assert f"wrote {output}: 2 conversations, 2 turns labelled" in out
    assert "Agreement with the human labels" in out
    for record in lines(output):
        answer = record["conversations"][1]
        assert answer["gt_label"] == "quality:2"
        assert set(answer["label_probs"]) == {"quality", "humor", "toxicity"}
    status, _, err = steersman("annotate", "--model", tiny_steered_folder, "--input", conversations, "--output", output)
    assert (status, "exists already" in err) == (1, True)


def test_derived_attributes_are_appended(
    steersman: Any, tiny_steered_folder: Path, conversations: Path, tmp_path: Path
) -> None:
    counts = SplitCounts()
    DataSummary(thresholds={"verbosity": (3, 7, 9, 30)}, train=counts, val=counts).save(tmp_path / "data_schema.json")
    output = tmp_path / "out.jsonl"
    command = ("annotate", "--model", tiny_steered_folder, "--input", conversations, "--output", output)
    status, _, err = steersman(*command, "--derived", tmp_path / "nothing")
    assert (status, "nothing_schema.json: no such file" in err) == (1, True)
    status, _, err = steersman(*command, "--derived", tmp_path / "data")
    assert status == 0, err
    for record in lines(output):  # "the moon": 8 characters, beyond two of the thresholds
        assert record["conversations"][1]["label"].endswith(",verbosity:2")


def test_annotate_needs_a_model_with_attributes(
    steersman: Any, tiny_model_folder: Path, conversations: Path, tmp_path: Path
) -> None:
    files = ("--input", conversations, "--output", tmp_path / "out.jsonl")
    status, _, err = steersman("annotate", *files)
    assert (status, "give --model or --url" in err) == (2, True)
    status, _, err = steersman("annotate", "--model", tiny_model_folder, *files)
    assert (status, "its card lists no attributes" in err) == (1, True)


def test_a_server_that_is_not_there(steersman: Any, conversations: Path, tmp_path: Path) -> None:
    files = ("--input", conversations, "--output", tmp_path / "out.jsonl")
    status, _, err = steersman("annotate", "--url", "http://127.0.0.1:9/v1", *files)
    assert (status, "nothing answers at http://127.0.0.1:9" in err) == (1, True)


@pytest.fixture
def server(tiny_steered_folder: Path) -> Iterator[str]:
    """A server of both protocols, in which token i has log-probability -i / 100 and every answer is "Paris."."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "tiny", "root": str(tiny_steered_folder), "max_model_len": 512}]})

        def do_POST(self) -> None:
            asked = self.asked()
            top = {f"token_id:{i}": -i / 100 for i in range(500)}
            logprobs = {"token_logprobs": [-i / 100 for i in asked["prompt"]], "top_logprobs": [top] * 500}
            self.reply({"choices": [{"text": "Paris.", "finish_reason": "stop", "logprobs": logprobs}]})

        def do_PUT(self) -> None:
            sentences = [f"{sentence}Paris." for sentence in self.asked()["sentences"]]
            offsets = [[*range(len(sentence))] for sentence in sentences]
            self.reply({"sentences": sentences, "token_ids": offsets, "offsets": offsets, "logprob": None})

        def asked(self) -> Any:
            return orjson.loads(self.rfile.read(int(self.headers["content-length"])))

        def reply(self, body: Any) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(orjson.dumps(body))

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_annotate_on_a_server_that_says_where_its_model_lies(
    steersman: Any, server: str, conversations: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    status, _, err = steersman("annotate", "--url", f"{server}/v1", "--input", conversations, "--output", output)
    assert status == 0, err
    labels = [record["conversations"][1]["label"] for record in lines(output)]
    assert labels == ["quality:0,humor:0,toxicity:0"] * 2  # "0" has the lowest id of the digits


@pytest.mark.parametrize("path", ["/v1", "/generate"])
def test_generate_on_a_server(
    steersman: Any, server: str, path: str, tiny_steered_folder: Path, conversations: Path, tmp_path: Path
) -> None:
    files = ("--input", conversations, "--output", tmp_path / "out.jsonl")
    command = ("generate", tiny_steered_folder, "--url", server + path, *files)
    status, _, err = steersman(*command, "--guidance", 2, "--attributes", "humor=4")
    assert (status, "guidance needs the logits of the embedded engine" in err) == (2, True)
    status, _, err = steersman(*command)
    assert status == 0, err
    assert [line["answer"] for line in lines(tmp_path / "out.jsonl")] == ["Paris."] * 2


def test_generate(steersman: Any, tiny_steered_folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "What is the capital of France?", "id": 1}\n{"prompt": 3}\n{"turns": ["Tell me"]}\n')
    command = ("generate", tiny_steered_folder, "--input", source, "--output", output, "--max-tokens", 5)
    status, _, err = steersman(*command)
    assert (status, "in.jsonl:2: no prompt" in err) == (1, True)
    status, out, err = steersman(
        *command, "--attributes", "humor=4,quality=1", "--guidance", 2, "--on-error", "skip", "--stop", "."
    )
    assert status == 0, err
    assert f"wrote {output}: 2 answers" in out
    assert "skipped: 1 lines" in out
    first, second = lines(output)
    assert first["id"] == 1
    assert first["attributes"] == second["attributes"] == {"quality": 1, "humor": 4}
    assert first["answer"]
    status, _, err = steersman(*command, "--overwrite", "--attributes", "quality=9", "--on-error", "skip")
    assert (status, "from 0 to 4" in err) == (1, True)


def test_bootstrap(steersman: Any, tiny_steered_folder: Path, conversations: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    status, out, err = steersman(
        "bootstrap", tiny_steered_folder, "--predictor", tiny_steered_folder, "--input", conversations,
        "--output", output, "--samples", 3, "--max-tokens", 4, "--attributes", "quality=4,toxicity=0",
    )  # fmt: skip
    assert status == 0, err
    assert "out.samples.jsonl: 3 answers to 1 prompts" in out
    assert "prompts that occurred before" in out
    assert "Mean predicted values" in out
    (context,) = lines(tmp_path / "out.samples.jsonl")
    assert context["requested"] == "quality:4,toxicity:0"
    for record in lines(output):
        Conversation.model_validate(record)


def test_a_wrong_option_names_itself(steersman: Any, tiny_steered_folder: Path, conversations: Path) -> None:
    status, _, err = steersman(
        "bootstrap", tiny_steered_folder, "--predictor", tiny_steered_folder, "--input", conversations,
        "--output", "never.jsonl", "--attributes", "",
    )  # fmt: skip
    assert (status, "bootstrap: attributes" in err) == (2, True)


# --- chat

CARD = ModelCard(attributes=AttributeSchema(attributes=(Attribute(name="quality", default=4), Attribute(name="humor"))))


class Parrot:
    """Streams the label of the request, letter by letter."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def __call__(self, request: GenerationRequest) -> Any:
        self.requests.append(request)
        yield from request.prompt.text.rpartition("<extra_id_2>")[2]


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def session(parrot: Parrot) -> Session:
    return Session(parrot, Template(TemplateSpec()), CARD, Sampling(seed=1))


def test_dials_hold_for_the_next_answers(session: Session, parrot: Parrot) -> None:
    assert "".join(session.answer("hi")).strip() == "quality:4"
    assert session.command("/set humor=3") == ("quality             4  of 0-4 (default)\nhumor               3  of 0-4")
    assert "".join(session.answer("and now?")).strip() == "quality:4,humor:3"
    assert session.command("/guidance 2") == "guidance 2"
    list(session.answer("more"))
    assert [turn.label for turn in session.turns] == [
        None, "quality:4", None, "quality:4,humor:3", None, "quality:4,humor:3",
    ]  # fmt: skip
    first, second, third = parrot.requests
    assert "<extra_id_1>Assistant\n<extra_id_2>quality:4\nquality:4\n<extra_id_1>User\nand now?" in second.prompt.text
    assert (second.guidance, third.guidance is None) == (None, False)
    assert first.sampling.seed != second.sampling.seed
    session.command("/reset")
    assert session.turns == []
    assert session.requested == {"humor": 3}


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("/set humour=3", LabelError, "did you mean 'humor'"),
        ("/set humor=7", LabelError, "from 0 to 4"),
        ("/set humor", ConfigError, "name=value"),
        ("/guidance much", ConfigError, "takes a number"),
        ("/fly", ConfigError, "/help lists them"),
    ],
)
def test_a_wrong_command_changes_nothing(session: Session, line: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        session.command(line)
    assert (session.requested, session.guidance) == ({}, 1.0)


def test_an_answer_cut_off_stays_as_far_as_it_was_said(session: Session) -> None:
    pieces = session.answer("hi")
    assert next(pieces) + next(pieces) == "qu"
    pieces.close()
    assert [turn.value for turn in session.turns] == ["hi", "qu"]


def test_chat(steersman: Any, tiny_steered_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["Tell me a joke", "", "/set humor=4", "/set wit=4", "/help", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    status, out, err = steersman(
        "chat", tiny_steered_folder, "--max-tokens", 4, "--greedy", "--attributes", "quality=3"
    )
    assert status == 0, err
    assert "quality             3  of 0-4" in out
    assert "Assistant> " in out
    assert "humor               4  of 0-4" in out
    assert "no attribute 'wit'" in out
    assert "/guidance 2" in out


@pytest.mark.parametrize("text", ["quality=4, humor=0", "quality:4,humor:0"])
def test_attributes_as_written_on_a_command_line(text: str) -> None:
    assert flags.parse_attributes(text) == {"quality": 4, "humor": 0}
