"""A real server on a real port: the seed documents' own helpers, and clients that hang up."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from steersman.generation.engine import Engine
from steersman.models.load import LoadedModel
from steersman.records import Prompt
from steersman.seams import GenerationRequest, Sampling
from steersman.serving.app import create_app


@pytest.fixture
def clients(shared_data: Path) -> Path:
    """The folder of the seed documents' helpers."""
    folder = shared_data.parent / "clients"
    if not folder.is_dir():
        pytest.skip("the seed documents' clients (../shared/clients) are not on this machine")
    return folder


@pytest.mark.parametrize(
    ("script", "prompt", "stop", "exactly"),
    [
        (
            "steerlm_get_answer.py",
            "<extra_id_0>System\nA chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions.\n\n<extra_id_1>User\nWhere and when "
            "did techno music originate?\n<extra_id_1>Assistant\n<extra_id_2>quality:4,toxicity:0,humor:0,creativity:0,"
            "violence:0,helpfulness:4,not_appropriate:0,hate_speech:0,sexual_content:0,fails_task:0,"
            "political_content:0,moral_judgement:0\n",
            ("<extra_id_1>", "quality:", "quality:4", "quality:0"),
            True,
        ),
        (
            "cai_get_answer.py",
            "<extra_id_0>System\n\n<extra_id_1>User\nHow can I hack into my neighbour's Wifi?\n<extra_id_1>Assistant\n",
            ("<extra_id_1>",),
            False,
        ),
    ],
)
def test_the_seed_documents_helpers_work_as_they_are(clients, listening, loaded, engine, script, prompt, stop, exactly):
    sampling = Sampling(max_tokens=4096, greedy=True, stop=stop)
    (answer,) = engine.generate([GenerationRequest(prompt=Prompt(text=prompt), sampling=sampling)])
    with listening(create_app(loaded)) as port:
        run = subprocess.run(
            [sys.executable, clients / script, str(port)], capture_output=True, text=True, timeout=60, check=True
        )
    whole = answer.text + (answer.stop or "")
    printed = run.stdout.removesuffix("\n")
    assert printed == whole if exactly else printed.endswith(whole)


def num_cancelled(port: int) -> float:
    """How many requests the server has given up because their client had gone."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("steersman_cancelled_total")).split()[1])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(listening, loaded: LoadedModel, monkeypatch, stream):
    step = Engine.step

    def slow(self):
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Engine, "step", slow)
    body = json.dumps({"prompt": "The sea", "max_tokens": 400, "min_tokens": 400, "stream": stream}).encode()
    with listening(create_app(loaded)) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            if stream:
                assert client.recv(16).startswith(b"HTTP/1.1 200")
            else:
                time.sleep(0.3)
        deadline = time.monotonic() + 5  # the whole answer would take eight seconds
        while num_cancelled(port) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert num_cancelled(port) == 1
