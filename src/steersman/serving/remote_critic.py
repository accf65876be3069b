"""A Critic behind HTTP: the client of `serving.critic`.

The first thing that is said is a handshake: who answers, in which version, over which vocabulary. After a failure the
critic is no longer asked: what was to follow in the same run would meet a critic that missed a step.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from steersman import jsonl
from steersman.errors import RemoteError, SteersmanError
from steersman.generation.remote import Connection
from steersman.serving.critic_wire import BINARY, Hello, check_shapes, pack, unpack


class RemoteCritic:
    """A Critic that a server runs.

    Args:
        url: of `steersman serve-critic`.
        connection: options of `Connection`; `timeout` must suffice for one training step.

    Attributes:
        hello: what it says of itself; the actor checks it.

    Raises:
        UnavailableError: nothing answers there, or another kind of server.
    """

    def __init__(self, url: str, **connection: Any) -> None:
        self._connection = Connection(url, **connection)
        self.hello = self._greet()
        self._num_updates = self.hello.num_updates
        self._failure: SteersmanError | None = None

    def steps(self) -> list[int]:
        """The steps at which it can stand, ascending."""
        return self._greet().steps

    def start(self, step: int, num_updates: int) -> None:
        """Stand at this step, in a run of so many optimiser steps; later saves are forgotten."""
        answer = self._connection.call("POST", "/start", {"step": step, "num_updates": num_updates})
        self._num_updates = self._hello(answer).num_updates
        self._failure = None

    def infer(self, tokens_BS: Tensor, lengths_B: Tensor, next_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(values f32[B, T], 0 beyond a sequence; rewards f32[B]); bool `next_B` says of which it is to learn next.

        Raises:
            RemoteError: it failed, in its own words, or what failed before.
        """
        next_B = torch.zeros(len(tokens_BS), dtype=torch.bool) if next_B is None else next_B
        body = pack(self._num_updates, tokens=tokens_BS, sequence_lengths=lengths_B, next=next_B)
        _, (values_BT, rewards_B) = unpack(self._send("/infer", body), ["values", "rewards"])
        check_shapes(tokens_BS, values=(values_BT, 1), rewards=(rewards_B, -1))
        return values_BT, rewards_B

    def train(
        self, tokens_BS: Tensor, returns_BT: Tensor, prev_values_BT: Tensor, mask_BT: Tensor
    ) -> Mapping[str, float]:
        """One optimiser step, done once even when its answer is lost and asked for again.

        Raises:
            RemoteError: it failed, in its own words, or what failed before.
        """
        tensors = {"tokens": tokens_BS, "returns": returns_BT, "prev_values": prev_values_BT, "mask": mask_BT}
        numbers = jsonl.parse_json(self._send("/train", pack(self._num_updates, **tensors)))
        self._num_updates += 1
        return numbers

    def save(self, step: int) -> str:
        """Commit the state of `step`; returns where."""
        self._raise_failure()
        try:
            answer = self._connection.call("POST", "/save", {"step": step, "num_updates": self._num_updates})
        except SteersmanError as error:
            self._fail(error)
        return str(answer["path"])

    def _send(self, path: str, body: bytes) -> bytes:
        self._raise_failure()
        try:
            return self._connection.send("POST", path, content=body, headers=BINARY).content
        except SteersmanError as error:
            self._fail(error)

    def _fail(self, error: SteersmanError) -> NoReturn:
        self._failure = error
        raise error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RemoteError(f"the critic failed before: {self._failure}")

    def _greet(self) -> Hello:
        return self._hello(self._connection.call("GET", "/critic"))

    def _hello(self, answer: Any) -> Hello:
        try:
            return Hello.model_validate(answer)
        except ValidationError as error:
            raise RemoteError(f"{self._connection.url} is no critic of ours: {jsonl.explain(error)}") from None
