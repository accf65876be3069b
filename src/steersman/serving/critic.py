"""The critic server: a `LocalCritic` behind HTTP (see `critic_wire`), for one PPO run at a time.

Requests are done one at a time, in order. A training step whose answer was lost is answered again and not done again. A
request for another state than the critic's is refused with 409: the critic was restarted meanwhile, or serves two runs;
what fails inside is answered with 422 and its own words. Neither is worth trying again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from steersman import __version__
from steersman.errors import DataError, SteersmanError
from steersman.serving.critic_wire import BINARY, PROTOCOL, Hello, Stand, check_shapes, pack, unpack
from steersman.serving.guard import Guard
from steersman.serving.metrics import Metrics
from steersman.training.critic import LocalCritic

logger = logging.getLogger(__name__)

MAX_BODY = 1 << 30

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class StateError(SteersmanError):
    """A request is meant for another state of the critic."""


@dataclass(frozen=True, kw_only=True)
class ServedCritic:
    """A critic with what it says of itself.

    Attributes:
        critic: does the work.
        model, vocabulary, window, gives_rewards: see `critic_wire.Hello`.
    """

    critic: LocalCritic
    model: str
    vocabulary: str
    window: int
    gives_rewards: bool

    def hello(self) -> Hello:
        """What it says of itself now."""
        return Hello(
            protocol=PROTOCOL,
            steersman=__version__,
            model=self.model,
            vocabulary=self.vocabulary,
            window=self.window,
            gives_rewards=self.gives_rewards,
            num_updates=self.critic.num_updates,
            steps=self.critic.steps(),
        )


class _Desk:
    """Does the requests, one at a time."""

    def __init__(self, served: ServedCritic) -> None:
        self.served, self.critic = served, served.critic
        self.lock = asyncio.Lock()
        self.started = False
        self.last: Mapping[str, float] | None = None
        """What the last training step returned."""

    async def do(self, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """The result of `work`, done on a thread when it is its turn."""
        async with self.lock:
            return await run_in_threadpool(work, *args, **kwargs)

    def start(self, stand: Stand) -> Hello:
        if stand.step not in self.critic.steps():
            raise StateError(f"the critic has no checkpoint of step {stand.step}, only {self.critic.steps()}")
        self.critic.start(stand.step, stand.num_updates)
        self.started, self.last = True, None
        return self.served.hello()

    def check(self, num_updates: int) -> None:
        if not self.started or num_updates != self.critic.num_updates:
            here = f"has done {self.critic.num_updates} updates" if self.started else "has just been started"
            raise StateError(
                f"the critic {here}, and the run expects {num_updates}: was it restarted, or do two runs share it? Run "
                "the training again: it continues from the last step that actor and critic both have"
            )

    def infer(self, body: bytes) -> bytes:
        num_updates, (tokens, lengths, learns_next) = unpack(body, ["tokens", "sequence_lengths", "next"])
        check_shapes(tokens, sequence_lengths=(lengths, -1), next=(learns_next, -1))
        self.check(num_updates)
        if int(lengths.max()) > min(self.served.window, tokens.shape[1]) or int(lengths.min()) < 2:
            raise DataError(f"sequence_lengths must lie in 2-{min(self.served.window, tokens.shape[1])}")
        values, rewards = self.critic.infer(tokens, lengths, learns_next)
        return pack(num_updates, values=values, rewards=rewards)

    def train(self, body: bytes) -> Mapping[str, float]:
        num_updates, (tokens, returns, values, mask) = unpack(body, ["tokens", "returns", "prev_values", "mask"])
        check_shapes(tokens, returns=(returns, 1), prev_values=(values, 1), mask=(mask, 1))
        if self.started and self.last is not None and num_updates + 1 == self.critic.num_updates:
            return self.last  # done before; its answer was lost
        self.check(num_updates)
        if not mask.any():
            raise DataError("mask is False everywhere: there is nothing to learn")
        self.last = self.critic.train(tokens, returns, values, mask)
        return self.last

    def save(self, stand: Stand) -> dict[str, str]:
        self.check(stand.num_updates)
        return {"path": self.critic.save(stand.step)}


def create_critic_app(served: ServedCritic, *, api_key: str | None = None, hosts: frozenset[str] | None) -> ASGIApp:
    """The application. `api_key` and `hosts`: see `guard.Guard`."""
    desk = _Desk(served)
    app = FastAPI(title="Steersman critic", version=__version__, docs_url=None, redoc_url=None)

    @app.get("/critic")
    async def hello() -> Hello:
        """Who this is."""
        return await desk.do(served.hello)

    @app.post("/start")
    async def start(stand: Stand) -> Hello:
        """Stand at a step."""
        return await desk.do(desk.start, stand)

    @app.post("/infer")
    async def infer(http: Request) -> Response:
        """Values and rewards."""
        return Response(await desk.do(desk.infer, await http.body()), headers=BINARY)

    @app.post("/train")
    async def train(http: Request) -> Mapping[str, float]:
        """One optimiser step."""
        return await desk.do(desk.train, await http.body())

    @app.post("/save")
    async def save(stand: Stand) -> dict[str, str]:
        """Commit a step."""
        return await desk.do(desk.save, stand)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    async def refuse(http: Request, error: Exception) -> JSONResponse:
        words = str(error) if isinstance(error, SteersmanError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, SteersmanError):
            logger.error("%s %s failed", http.method, http.url.path, exc_info=error)
        status = 409 if isinstance(error, StateError) else 422
        return JSONResponse({"error": {"message": words, "code": status}}, status)

    for kind in (SteersmanError, Exception):
        app.add_exception_handler(kind, refuse)
    return Guard(app, api_key=api_key, hosts=hosts, max_body=MAX_BODY, metrics=Metrics())
