"""Models behind HTTP: clients of `PUT /generate` and of OpenAI-compatible `/v1/completions` servers.

Requests go in; Completions and Scored come out, in order, as from the local engine (seams.Generator,
seams.ContinuationScorer). Calls run side by side on threads. Busy or failing servers (429, 5xx, a dropped connection)
are asked again with growing pauses, or after the pause that their Retry-After header names, which holds for all
requests to that server; a request that meets its rate limit queues for as long as others get through. Everything else
is a `RemoteError` that quotes the server's own words; a server that was never reached fails at once, since a wrong port
does not heal.
"""

import email.utils
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, TypeVar

import httpx2
import stamina

from steersman.errors import ConfigError, DataError, RemoteError, UnavailableError
from steersman.generation.continuations import ContinuationTokeniser
from steersman.records import Completion, Span
from steersman.seams import Failure, GenerationRequest, Progress, Sampling, Scored, ScoreRequest
from steersman.text.tokenize import Encoder

Job = TypeVar("Job")
Result = TypeVar("Result")

MAX_SENTENCES = 128
"""Most prompts that `PUT /generate` takes at once."""
MAX_PAUSE = 60.0
"""Longest pause in seconds between two attempts, whatever Retry-After says."""
ATTEMPTS = 8
RATE_LIMIT = "status 429"
UNSENDABLE = "unsendable request"
"""The kind of failure that lies with the request itself."""
GONE_AFTER = 3
"""A server that is too busy for so many requests in a row, each after all attempts, counts as gone."""


class _BusyError(Exception):
    """The server may answer if asked again: `pause` seconds from now, where it said so.

    Attributes:
        kind: see `RemoteError`.
        may_be_gone: whether this can be all that the server has to say to anybody.
    """

    def __init__(self, message: str, kind: str, *, may_be_gone: bool = True, pause: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.may_be_gone = may_be_gone
        self.pause = pause


def _backoff(error: Exception) -> bool | float:
    """stamina's question whether to try again, and when."""
    if not isinstance(error, _BusyError):
        return False
    return True if error.pause is None else min(error.pause, MAX_PAUSE)


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that a Retry-After header (a number, or an HTTP date) asks to wait."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _server_message(response: httpx2.Response) -> str:
    """What the server itself says is wrong: OpenAI's `error.message`, FastAPI's `detail`, or the text of the page."""
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:300] or "no explanation"
    for key in ("error", "message", "detail"):
        while isinstance(body, dict) and key in body:
            body = body[key]
    return str(body)[:1000]


class Connection:
    """One server: sends JSON, returns JSON, tries again where that can help.

    Args:
        url: base address; `http://` is assumed where no scheme is given.
        api_key: sent as a bearer token.
        timeout: seconds to wait for one answer.
        concurrency: how many requests are under way at once.
        transport: stands in for the network in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        concurrency: int = 16,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.timeout = timeout
        self.concurrency = concurrency
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{url!r} is not a URL ({error}); write http://host:port") from None
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=10.0, pool=None),
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            limits=httpx2.Limits(max_connections=concurrency),
            transport=transport,
        )
        self._reached = False
        self._num_given_up = 0  # requests in a row
        self._num_answered = 0
        self._resume_at = 0.0  # on the monotonic clock: the server wants to be left alone until then

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer of `method url/path` to a JSON body; see `send`."""
        response = self.send(method, path, json=body)
        try:
            return response.json()
        except ValueError:
            where = f"{method} {self.url}{path}"
            raise RemoteError(f"{where}: the answer is not JSON: {response.text[:200]!r}", "not JSON") from None

    def send(self, method: str, path: str, **body: Any) -> httpx2.Response:
        """The answer of `method url/path` to a body (`json=` anything, or `content=` bytes).

        Raises:
            UnavailableError: there is no such server, it is closed to us, or lost or overloaded for good.
            RemoteError: this request is refused, or its answer is too late, or an error at every attempt.
        """
        while True:
            num_answered = self._num_answered
            try:
                for attempt in stamina.retry_context(on=_backoff, attempts=ATTEMPTS, timeout=None, wait_max=MAX_PAUSE):
                    with attempt:
                        return self._send_once(method, path, body)
            except _BusyError as error:
                if error.kind == RATE_LIMIT and self._num_answered > num_answered:
                    continue  # others get through: this one has to queue, that is all
                self._num_given_up = self._num_given_up + 1 if error.may_be_gone else 0
                final = UnavailableError if self._num_given_up >= GONE_AFTER else RemoteError
                raise final(f"{error} (gave up after {ATTEMPTS} attempts)", error.kind) from None

    def _send_once(self, method: str, path: str, body: dict[str, Any]) -> httpx2.Response:
        where = f"{method} {self.url}{path}"
        time.sleep(max(0.0, self._resume_at - time.monotonic()))
        try:
            response = self._client.request(method, self.url + path, **body)
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise RemoteError(
                f"{where}: no answer within {self.timeout:.0f} s; allow more time, or ask for fewer tokens at once",
                "no answer in time",
            ) from None
        except httpx2.TransportError as error:
            if self._reached:
                raise _BusyError(f"{where}: connection lost ({error})", "connection lost") from None
            raise UnavailableError(
                f"nothing answers at {self.url} ({error}); is the server running, and are host and port right?"
            ) from None
        self._reached = True
        status = response.status_code
        refusal = f"{where} answered {status}: {_server_message(response)}" if status >= 400 else ""
        if status == 429 or status >= 500:
            may_be_gone = status in (429, 502, 503, 504)
            pause = _retry_after(response)
            if pause is not None:
                self._resume_at = max(self._resume_at, time.monotonic() + min(pause, MAX_PAUSE))
            raise _BusyError(refusal, f"status {status}", may_be_gone=may_be_gone, pause=pause)
        if status in (401, 403):
            raise UnavailableError(f"{refusal}; give the server's key with --api-key or STEERSMAN_API_KEY")
        if status in (404, 405):
            raise UnavailableError(f"{refusal}; there is a server, but not one that offers this; is the port right?")
        if refusal:
            raise RemoteError(refusal, f"status {status}")
        self._num_given_up = 0
        self._num_answered += 1
        return response

    def map(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], progress: Progress | None, size: Callable[[Job], int]
    ) -> list[Result]:
        """`work` applied to every job, `concurrency` at once, in order; the first error stops all."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            sizes = {pool.submit(work, job): size(job) for job in jobs}
            try:
                for future in as_completed(sizes):
                    future.result()
                    if progress:
                        progress(sizes[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in sizes]

    def attempt(
        self, work: Callable[[Job], Result], jobs: Iterable[Job], progress: Progress | None, size: Callable[[Job], int]
    ) -> list[Result | Failure]:
        """`map`, where a job that fails for its own sake gives a `Failure`; an `UnavailableError` still stops all."""

        def try_one(job: Job) -> Result | Failure:
            try:
                return work(job)
            except UnavailableError:
                raise
            except RemoteError as error:
                return Failure(reason=str(error), kind=error.kind)
            except DataError as error:
                return Failure(reason=str(error), kind=UNSENDABLE)

        return self.map(try_one, jobs, progress, size)


def _refuse_guidance(requests: Sequence[GenerationRequest]) -> None:
    if any(request.guidance for request in requests):
        raise ConfigError("attribute guidance needs the logits of the embedded engine; drop --url, or the guidance")


class SteersmanClient:
    """A Generator behind `PUT /generate` (steersman's server or NeMo's; see FORMATS).

    The protocol carries text, so a prompt in which somebody wrote a control string is refused; and no finish reason, so
    an answer shorter than its budget that no stop string ended is taken to have ended by itself.

    Args:
        url: base address of the server, with or without `/generate`.
        sentences: most prompts sent in one call. A sampled request with a seed goes alone: a server draws all of a
            call from one stream.
        connection: options of `Connection`.
    """

    def __init__(self, url: str, *, sentences: int = 16, **connection: Any) -> None:
        if not 1 <= sentences <= MAX_SENTENCES:
            raise ConfigError(f"sentences a call must lie in 1-{MAX_SENTENCES}, not {sentences}")
        self.sentences = sentences
        self._connection = Connection(url.rstrip("/").removesuffix("/generate"), **connection)

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order."""
        _refuse_guidance(requests)
        calls = self._calls(requests)
        answers = self._connection.map(lambda call: self._complete([requests[i] for i in call]), calls, progress, len)
        placed = zip(itertools.chain(*calls), itertools.chain(*answers), strict=True)
        return [answer for _, answer in sorted(placed, key=lambda pair: pair[0])]

    def try_generate(
        self, requests: Sequence[GenerationRequest], progress: Progress | None = None
    ) -> list[Completion | Failure]:
        """One completion a request, in order, or why there is none."""
        _refuse_guidance(requests)
        found: dict[int, Completion | Failure] = {}

        def attempt(calls: Sequence[list[int]], progress: Progress | None) -> None:
            def complete(call: list[int]) -> list[Completion]:
                return self._complete([requests[index] for index in call])

            for call, answers in zip(calls, self._connection.attempt(complete, calls, progress, len), strict=True):
                found.update(
                    dict.fromkeys(call, answers) if isinstance(answers, Failure) else zip(call, answers, strict=True)
                )

        attempt(self._calls(requests), progress)
        attempt(
            [[index] for index, answer in found.items() if isinstance(answer, Failure)], None
        )  # one may spoil a call
        return [found[index] for index in range(len(requests))]

    def _calls(self, requests: Sequence[GenerationRequest]) -> list[list[int]]:
        """Indices of the requests that share a call: equal sampling, and nothing random to share."""
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            sampling = request.sampling
            alone = not sampling.greedy and sampling.seed is not None
            groups.setdefault((replace(sampling, seed=None), index if alone else None), []).append(index)
        step = self.sentences
        return [group[i : i + step] for group in groups.values() for i in range(0, len(group), step)]

    def _complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """One call: the requests share their sampling."""
        for request in requests:
            for start, end in request.prompt.literal:
                raise DataError(
                    f"a prompt holds the control string {request.prompt.text[start:end]!r} in somebody's own words, "
                    "which PUT /generate cannot tell from a real one; use the embedded engine or /v1/completions"
                )
        sampling = requests[0].sampling
        prompts = [request.prompt.text for request in requests]
        body = {
            "sentences": prompts,
            "tokens_to_generate": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "greedy": sampling.greedy,
            "add_BOS": False,
            "repetition_penalty": sampling.repetition_penalty,
            "min_tokens_to_generate": sampling.min_tokens,
            "end_strings": list(sampling.stop) or ["<|endoftext|>"],
            "compute_logprob": sampling.logprobs,
            "random_seed": None if sampling.greedy else sampling.seed,
        }
        reply = self._connection.call("PUT", "/generate", body)
        if not isinstance(reply, dict) or len(reply.get("sentences") or ()) != len(prompts):
            # NeMo refuses a request with status 200 and a sentence
            raise RemoteError(f"PUT {self._connection.url}/generate: {str(reply)[:300]}")
        return [self._read(prompt, reply, row, sampling) for row, prompt in enumerate(prompts)]

    def _read(self, prompt: str, reply: dict[str, Any], row: int, sampling: Sampling) -> Completion:
        sentence = reply["sentences"][row]
        if not sentence.startswith(prompt):
            raise RemoteError(
                f"PUT {self._connection.url}/generate: the answer does not begin with its prompt; does the server's "
                "tokenizer know the template's control strings?"
            )
        text = sentence[len(prompt) :]
        new = [index for index, offset in enumerate(reply["offsets"][row]) if offset >= len(prompt)]
        stop = next((stop for stop in sampling.stop if text.endswith(stop)), None)
        ended = stop is not None or len(new) < sampling.max_tokens
        logprobs = reply["logprob"][row] if sampling.logprobs else None
        return Completion(
            text=text if stop is None else text.removesuffix(stop),
            token_ids=[reply["token_ids"][row][index] for index in new],
            finish_reason="stop" if ended else "length",
            stop=stop,
            logprobs=None if logprobs is None else [logprobs[index - 1] for index in new],
            num_prompt_tokens=len(reply["offsets"][row]) - len(new),
        )


def openai_base(url: str) -> str:
    """The address of an OpenAI-compatible server without the `/v1` that its paths begin with."""
    return url.rstrip("/").removesuffix("/v1")


def list_models(connection: Connection) -> list[dict[str, Any]]:
    """What an OpenAI-compatible server says of each model that it serves."""
    reply = connection.call("GET", "/v1/models")
    if not isinstance(reply, dict) or not isinstance(reply.get("data"), list):
        raise RemoteError(f"GET {connection.url}/v1/models: no list of models in {str(reply)[:300]}")
    return list(reply["data"])


def choose_model(connection: Connection, name: str | None) -> dict[str, Any]:
    """What an OpenAI-compatible server says of the model of that name, or of the only one that it serves."""
    listed = {str(entry["id"]): entry for entry in list_models(connection)}
    if name is not None:
        return listed.get(name, {"id": name})
    if len(listed) != 1:
        raise ConfigError(f"{connection.url} serves {', '.join(listed) or 'no model'}; say which one to use")
    return next(iter(listed.values()))


def served_folder(url: str, **connection: Any) -> str:
    """Folder or hub id of the only model that an OpenAI-compatible server serves, as far as it says so."""
    entries = list_models(Connection(openai_base(url), **connection))
    if len(entries) != 1:
        raise ConfigError(f"{url} serves {len(entries)} models; name the one to use with --model")
    return str(entries[0].get("root") or entries[0]["id"])


class OpenAIClient:
    """A Generator and ContinuationScorer behind an OpenAI-compatible `/v1/completions` (vLLM, SGLang, NIM, ...).

    Prompts travel as token ids, made here: BOS, control strings and users' own words are exactly what the card says,
    and no server's tokenizer setting can change them. Scoring needs `echo` with `logprobs` (llama.cpp's server and chat
    endpoints offer none).

    Args:
        url: base address of the server, with or without `/v1`.
        encoder: tokenizer and template of the model that is served.
        model: the name it is served under; the only one that the server lists, by default.
        top: how many likeliest tokens a position to ask for when scoring; alternatives that are not among them cost
            a request each.
        options: further keys of every generation request. With `return_token_ids` a completion has the very tokens that
            the server sampled, or there is none; otherwise its text may be tokenised again.
        connection: options of `Connection`.

    Attributes:
        model: the name that it asks for.
        window: most tokens that the server takes at once, if it says so.
    """

    def __init__(
        self,
        url: str,
        encoder: Encoder,
        *,
        model: str | None = None,
        top: int = 20,
        options: Mapping[str, Any] | None = None,
        **connection: Any,
    ) -> None:
        self.encoder = encoder
        self.top = top
        self._options = options or {}
        self._tokenise = ContinuationTokeniser(encoder)
        self._connection = Connection(openai_base(url), **connection)
        entry = choose_model(self._connection, model)
        self.model = entry["id"]
        self.window: int | None = entry.get("max_model_len")

    # --- Generator

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order."""
        _refuse_guidance(requests)
        return self._connection.map(self._complete, requests, progress, lambda request: 1)

    def try_generate(
        self, requests: Sequence[GenerationRequest], progress: Progress | None = None
    ) -> list[Completion | Failure]:
        """One completion a request, in order, or why there is none."""
        _refuse_guidance(requests)
        return self._connection.attempt(self._complete, requests, progress, lambda request: 1)

    def _complete(self, request: GenerationRequest) -> Completion:
        sampling = request.sampling
        ids = self.encoder.encode_prompt(request.prompt)
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": sampling.max_tokens,
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
        }
        # beyond OpenAI's own keys, sent only when they say something; vLLM, SGLang and NIM know them
        options = {
            "stop": list(sampling.stop),
            "skip_special_tokens": False if sampling.stop else None,  # or stop strings that are special never appear
            "top_k": 0 if sampling.greedy else sampling.top_k,
            "repetition_penalty": None if sampling.repetition_penalty == 1 else sampling.repetition_penalty,
            "min_tokens": sampling.min_tokens,
            "seed": None if sampling.greedy else sampling.seed,
            "logprobs": 1 if sampling.logprobs else None,
        }
        body |= {key: value for key, value in options.items() if value or value is False}
        body |= self._options
        choice, reply = self._ask(body)
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise RemoteError(f"{self._connection.url}: the server ended an answer with finish_reason {reason!r}")
        stop = choice.get("stop_reason")
        token_ids = choice.get("token_ids")
        if token_ids is None and self._options.get("return_token_ids"):
            raise RemoteError(
                f"{self._connection.url} does not say which tokens it sampled (return_token_ids); a newer vLLM does"
            )
        if token_ids is None:  # the protocol need not give them
            token_ids = [i for i in self.encoder.encode(choice["text"]).ids if i != self.encoder.bos_id]
        cached = ((reply.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Completion(
            text=choice["text"],
            token_ids=token_ids,
            finish_reason=reason,
            stop=stop if isinstance(stop, str) else None,
            logprobs=choice["logprobs"]["token_logprobs"] if sampling.logprobs else None,
            num_prompt_tokens=len(ids),
            num_cached_tokens=cached,
        )

    def _ask(self, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        reply = self._connection.call("POST", "/v1/completions", body)
        try:
            return reply["choices"][0], reply
        except (KeyError, IndexError, TypeError):
            raise RemoteError(
                f"POST {self._connection.url}/v1/completions: no completion in {str(reply)[:300]}"
            ) from None

    # --- ContinuationScorer

    def score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored]:
        """One result a request, in order."""
        return self._connection.map(self._score, requests, progress, lambda request: 1)

    def try_score(self, requests: Sequence[ScoreRequest], progress: Progress | None = None) -> list[Scored | Failure]:
        """One result a request, in order, or why there is none."""
        return self._connection.attempt(self._score, requests, progress, lambda request: 1)

    def _score(self, request: ScoreRequest) -> Scored:
        tokenised = self._tokenise(request)
        ids = tokenised.ids
        logprobs, likeliest = self._echo(ids)
        alternatives: dict[Span, list[float]] = {}
        for span, candidates in tokenised.alternatives.items():
            start = candidates.start
            known = likeliest[start]
            alternatives[span] = []
            for row in candidates.token_ids:
                stop = start + len(row)
                if row == ids[start:stop]:
                    value = sum(logprobs[start:stop])
                elif len(row) == 1 and row[0] in known:
                    value = known[row[0]]
                else:
                    value = sum(self._echo(ids[:start] + row)[0][start:stop])
                alternatives[span].append(value)
        first = tokenised.first
        return Scored(token_ids=ids[first:], logprobs=logprobs[first:], alternatives=alternatives)

    def _echo(self, ids: Sequence[int]) -> tuple[list[float], list[dict[int, float]]]:
        """Log-probability of each token (NaN for the first, which has none), and of the likeliest by id in its place.

        The latter are empty where the server names tokens by text alone, since texts of tokens need not differ.
        """
        body = {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": 0,
            "temperature": 0.0,
            "echo": True,
            "logprobs": self.top,
            "return_tokens_as_token_ids": True,  # vLLM's: keys read "token_id:123"
        }
        choice, _ = self._ask(body)
        found = choice.get("logprobs") or {}
        logprobs = (found.get("token_logprobs") or [])[: len(ids)]
        if len(logprobs) < len(ids) or None in logprobs[1:]:
            raise RemoteError(
                f"{self._connection.url} gives no log-probabilities of a prompt's own tokens (echo with logprobs), "
                "which scoring needs; serve the model with vLLM or SGLang, or score in process"
            )
        tops = (found.get("top_logprobs") or [])[: len(ids)]
        likeliest = [
            {int(key[9:]): value for key, value in (top or {}).items() if key.startswith("token_id:")} for top in tops
        ]
        return [math.nan, *logprobs[1:]], likeliest or [{}] * len(ids)
