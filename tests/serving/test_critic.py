"""The critic's server: nothing is done twice or out of turn, and what fails says why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from starlette.testclient import TestClient

from steersman.errors import ConfigError, RemoteError
from steersman.models.load import load_model
from steersman.pipelines.critics import CriticSettings, open_critic
from steersman.serving.critic import create_critic_app
from steersman.serving.critic_wire import PROTOCOL, pack, unpack
from steersman.serving.remote_critic import RemoteCritic

URL = "http://127.0.0.1:5567"
TOKENS, LENGTHS, NEXT = torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]), torch.tensor([True])
MASK = torch.tensor([[False, True, True]])
RETURNS, VALUES = torch.ones(1, 3), torch.zeros(1, 3)


@pytest.fixture
def client(tiny_policy_reward_folder: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = CriticSettings.model_validate({"optim": {"lr": 1e-3}, "precision": "float32"})
    served = open_critic(str(tiny_policy_reward_folder), settings, tmp_path / "critic")
    with TestClient(create_critic_app(served, hosts=None), base_url=URL, raise_server_exceptions=False) as client:
        yield client


class Line(httpx2.BaseTransport):
    """The network, in which something happens to the requests of one path."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_lost, self.calls = inner, 0, []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self.inner.handle_request(request)
        self.calls.append(request.url.path)
        if self.num_lost and request.url.path == "/train":
            self.num_lost -= 1
            raise httpx2.ReadError("the line is dead")
        return response


@pytest.fixture
def line(client: TestClient) -> Line:
    return Line(client._transport)


@pytest.fixture
def critic(line: Line) -> RemoteCritic:
    critic = RemoteCritic(URL, transport=line)
    critic.start(0, 10)
    return critic


def test_a_step_whose_answer_was_lost_is_done_once(critic: RemoteCritic, line: Line, client: TestClient) -> None:
    values, _ = critic.infer(TOKENS, LENGTHS)
    line.num_lost = 2
    first = critic.train(TOKENS, values + 1, values, MASK)
    assert line.calls.count("/train") == 3
    assert client.get("/critic").json()["num_updates"] == 1
    second = critic.train(TOKENS, values + 1, values, MASK)
    assert first["loss"] == pytest.approx(0.5)
    assert second["loss"] < 0.5
    assert client.get("/critic").json()["num_updates"] == 2


def test_a_critic_that_was_restarted_is_noticed(critic: RemoteCritic, client: TestClient) -> None:
    critic.train(TOKENS, RETURNS, VALUES, MASK)
    RemoteCritic(URL, transport=client._transport).start(0, 10)  # somebody else starts a run with it
    with pytest.raises(RemoteError, match="has done 0 updates, and the run expects 1") as refusal:
        critic.infer(TOKENS, LENGTHS)
    assert "Run the training again" in str(refusal.value)
    # From then on this client asks for nothing: a step would be missing.
    with pytest.raises(RemoteError, match=r"failed before: .*expects 1"):
        critic.train(TOKENS, RETURNS, VALUES, MASK)
    with pytest.raises(RemoteError, match="failed before"):
        critic.save(1)
    critic.start(0, 10)
    critic.train(TOKENS, RETURNS, VALUES, MASK)


def test_a_critic_that_nobody_started_waits(line: Line) -> None:
    with pytest.raises(RemoteError, match="has just been started"):
        RemoteCritic(URL, transport=line).infer(TOKENS, LENGTHS)


def test_a_failure_is_told_in_its_own_words_and_at_once(critic: RemoteCritic, line: Line) -> None:
    with pytest.raises(RemoteError, match=r"the critic's loss nan"):
        critic.train(TOKENS, RETURNS * torch.nan, VALUES, MASK)
    assert line.calls.count("/train") == 1


def test_a_bug_is_told_too(critic: RemoteCritic, line: Line) -> None:
    with pytest.raises(RemoteError, match="IndexError: index out of range"):
        critic.infer(TOKENS + 1000, LENGTHS)
    assert line.calls.count("/infer") == 1


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/infer", b"nonsense", "not safetensors"),
        ("/infer", pack(0, tokens=TOKENS), "needs sequence_lengths"),
        ("/infer", pack(0, tokens=TOKENS[0], sequence_lengths=LENGTHS, next=NEXT), r"tokens must be \[B, S\]"),
        ("/infer", pack(0, tokens=TOKENS, sequence_lengths=LENGTHS + 1, next=NEXT), "must lie in 2-4"),
        ("/infer", pack(0, tokens=TOKENS, sequence_lengths=LENGTHS), "needs next"),
        ("/train", pack(0, tokens=TOKENS, returns=RETURNS[:, 1:], prev_values=VALUES, mask=MASK), "returns must be"),
        ("/train", pack(0, tokens=TOKENS, returns=RETURNS, prev_values=VALUES, mask=~MASK & MASK), "nothing to learn"),
    ],
)
def test_malformed_requests_are_refused(critic: RemoteCritic, client: TestClient, path, body, message) -> None:
    reply = client.post(path, content=body)
    assert reply.status_code == 422
    with pytest.raises(RemoteError, match=message):
        raise RemoteError(reply.json()["error"]["message"])
    assert client.get("/critic").json()["num_updates"] == 0


def test_a_step_that_it_lacks_is_refused(critic: RemoteCritic) -> None:
    with pytest.raises(RemoteError, match=r"no checkpoint of step 3, only \[0\]"):
        critic.start(3, 10)


def test_another_version_or_vocabulary_is_refused_at_the_handshake(
    critic: RemoteCritic, tiny_policy_folder: Path, tiny_model_folder: Path
) -> None:
    tokenizer = load_model(tiny_policy_folder).encoder.tokenizer
    critic.hello.check(tokenizer)
    with pytest.raises(ConfigError, match="another vocabulary"):
        critic.hello.check(load_model(tiny_model_folder).encoder.tokenizer)
    newer = critic.hello.model_copy(update={"protocol": PROTOCOL + 1, "steersman": "9.9"})
    with pytest.raises(ConfigError, match=rf"steersman 9\.9\) speaks version {PROTOCOL + 1}"):
        newer.check(tokenizer)


def test_a_server_of_another_kind_is_no_critic(listening: Any) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"ready": true}'})

    with listening(other) as port, pytest.raises(RemoteError, match="is no critic of ours: protocol"):
        RemoteCritic(f"http://127.0.0.1:{port}")


def test_tensors_survive_the_way() -> None:
    number, (values, rewards) = unpack(pack(7, values=VALUES + 0.1, rewards=RETURNS[0]), ["values", "rewards"])
    assert number == 7
    assert torch.equal(values, VALUES + 0.1)
    assert torch.equal(rewards, RETURNS[0])
