"""200 clients at once against the engine's own batch rate; what the clients feel, and what the server keeps of it.

    python bench/serve_rate.py [MODEL] [RUNS] [TOKENS]

In fp32, so that every answer is known: the server's are compared with the engine's, also while every tenth client hangs
up midway. Answers have a tenth of TOKENS up to TOKENS. By default a model of the sandbox's size with random weights
answers, whose steps are so short that nothing but overheads shows; a real MODEL goes to `serve_rate_model`.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from result import write
from sides import free_port

from steersman.generation.engine import Engine
from steersman.models.load import load_model, save_model
from steersman.records import Prompt
from steersman.sandbox import world
from steersman.sandbox.model import write_base
from steersman.seams import GenerationRequest, Sampling

CLIENTS, EACH, RUNS, BATCH, TOKENS = 200, 5, 5, 64, 100
HANGS_UP = 10  # one request in so many
STEERSMAN = Path(sys.executable).with_name("steersman")


@dataclass
class Asked:
    """One request as a client lived through it.

    Attributes:
        said: the stream of events.
        first, whole: seconds to the first text, and to the end.
    """

    said: bytes = b""
    first: float = 0.0
    whole: float = 0.0
    hung_up: bool = False

    @property
    def text(self) -> str:
        """The answer."""
        events = [json.loads(line[6:]) for line in self.said.split(b"\n") if line.startswith(b"data: {")]
        assert not any("error" in event for event in events), events
        return "".join(choice["text"] for event in events for choice in event["choices"])


class Client:
    """A connection that is kept alive. It computes next to nothing, since client and server share this machine."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The chunks of the answer, as they come."""
        self._streams = self._streams or await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        content = json.dumps(body).encode()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)

    async def hang_up(self) -> None:
        """Close the connection; the next request opens another."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


def requests(most: int, seed: int) -> list[GenerationRequest]:
    """Prompts of 5 to 120 words, answers of a tenth of `most` tokens up to that. Each run has a seed of its own, since
    a server keeps what it has read."""
    choose, words = random.Random(seed), [word for text in world.words() for word in text.split()]
    return [
        GenerationRequest(
            prompt=Prompt(text=" ".join(choose.choices(words, k=choose.randint(5, 120)))),
            sampling=Sampling(max_tokens=(length := choose.randint(most // 10, most)), min_tokens=length, greedy=True),
        )
        for _ in range(CLIENTS * EACH)
    ]


def num_tokens(asked: Sequence[GenerationRequest]) -> int:
    """Of all answers."""
    return sum(request.sampling.max_tokens for request in asked)


async def ask(client: Client, model: str, request: GenerationRequest, hang_up: bool) -> Asked:
    sampling, asked = request.sampling, Asked(hung_up=hang_up)
    body = {"model": model, "prompt": request.prompt.text, "max_tokens": sampling.max_tokens,
            "min_tokens": sampling.min_tokens, "temperature": 0, "stream": True}  # fmt: skip
    start = time.perf_counter()
    async for chunk in client.post("/v1/completions", body):
        asked.said += chunk
        if not asked.first and asked.text:
            asked.first = time.perf_counter() - start
            if hang_up:
                await client.hang_up()
                return asked
    asked.whole = time.perf_counter() - start
    return asked


async def load(
    port: int, asked: Sequence[GenerationRequest], *, model: str = "", hang_up: bool = False
) -> tuple[list[Asked], float]:
    """All clients at once, each with its requests one after another; seconds in all."""

    async def one_client(own: range) -> list[Asked]:
        client = Client("127.0.0.1", port)
        found = [await ask(client, model, asked[i], hang_up and i % HANGS_UP == 0) for i in own]
        await client.hang_up()
        return found

    each = len(asked) // CLIENTS
    start = time.perf_counter()
    found = await asyncio.gather(*(one_client(range(i * each, (i + 1) * each)) for i in range(CLIENTS)))
    return [one for answers in found for one in answers], time.perf_counter() - start


def wait_until_ready(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(3000):
        assert server.poll() is None, "the server has ended"
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the server does not start")


def resident_mb(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text().split()
    return int(status[status.index("VmRSS:") + 1]) / 1024


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{p}": round(cuts[p - 1], 3) for p in (50, 95, 99)}


def random_model(folder: Path) -> Path:
    base = write_base(folder / "base")
    return save_model(load_model(base, precision="float32", from_scratch_seed=0), folder / "model")


def main(given: str = "", runs: int = RUNS, most: int = TOKENS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(given) if given else random_model(Path(folder))
        engine = Engine(load_model(model, precision="float32"), max_batch=BATCH)
        port = free_port()
        command = [str(STEERSMAN), "serve", str(model), "--port", str(port), "--precision", "float32",
                   "--batch", str(BATCH)]  # fmt: skip
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(port, server)
            ours, peer, memory = [], [], []
            answers: list[Asked] = []
            warm_up = requests(most, seed=runs)[:CLIENTS]
            engine.generate(warm_up)
            asyncio.run(load(port, warm_up))
            for run in range(runs):
                asked = requests(most, seed=run)
                engine.forget()
                start = time.perf_counter()
                expected = [answer.text for answer in engine.generate(asked)]
                peer.append(num_tokens(asked) / (time.perf_counter() - start))
                found, seconds = asyncio.run(load(port, asked))
                ours.append(num_tokens(asked) / seconds)
                answers += found
                assert [one.text for one in found] == expected, "an answer differs from the engine's"
                memory.append(resident_mb(server))
            found, _ = asyncio.run(load(port, asked, hang_up=True))
            stayed = [(one.text, text) for one, text in zip(found, expected, strict=True) if not one.hung_up]
            assert all(text == wanted for text, wanted in stayed), "an answer differs beside clients that hang up"
            print(f"{len(answers) + len(stayed)} answers equal the engine's, {len(found) - len(stayed)} were cut")
        finally:
            server.terminate()
            server.wait(60)
    write(
        "serve_rate_model" if given else "serve_rate", "tokens/s", ours, peer, "our engine, one batch, in process",
        first_token_seconds=percentiles([one.first for one in answers]),
        whole_answer_seconds=percentiles([one.whole for one in answers]),
        resident_mb=[round(size) for size in memory], clients=CLIENTS, longest_answer=most,
    )  # fmt: skip


if __name__ == "__main__":
    model, *numbers = sys.argv[1:] or [""]
    main(model, *map(int, numbers))
