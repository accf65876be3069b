"""What a server counts, in Prometheus' text format at `/metrics`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from steersman.records import Completion
from steersman.seams import Scored

LATENCIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._running = Gauge("steersman_batch_size", "Sequences in the running batch.", registry=registry)
        self._waiting = Gauge(
            "steersman_queue_length", "Sequences that wait for a place in the batch.", registry=registry
        )
        self._prompt = Counter("steersman_prompt_tokens", "Prompt tokens of ended answers.", registry=registry)
        self._cached = Counter(
            "steersman_cached_prompt_tokens", "Those that were not computed again.", registry=registry
        )
        self._generated = Counter("steersman_generated_tokens", "Tokens of ended answers.", registry=registry)
        self._answers = Counter("steersman_answers", "Engine requests that ended.", ["kind"], registry=registry)
        self._seconds = Histogram(
            "steersman_answer_seconds", "From request to whole answer.", ["kind"], buckets=LATENCIES, registry=registry
        )
        self._first = Histogram(
            "steersman_first_token_seconds", "From request to the first text.", buckets=LATENCIES, registry=registry
        )
        self._cancelled = Counter("steersman_cancelled", "Engine requests whose client has gone.", registry=registry)
        self._responses = Counter("steersman_http_responses", "HTTP responses.", ["path", "status"], registry=registry)

    def batch(self, num_running: int, num_waiting: int) -> None:
        """What the engine has before it."""
        self._running.set(num_running)
        self._waiting.set(num_waiting)

    def answered(self, result: Completion | Scored, seconds: float) -> None:
        """An engine request has ended."""
        kind = "generation" if isinstance(result, Completion) else "scoring"
        self._answers.labels(kind).inc()
        self._seconds.labels(kind).observe(seconds)
        if isinstance(result, Completion):
            self._prompt.inc(result.num_prompt_tokens)
            self._cached.inc(result.num_cached_tokens)
            self._generated.inc(len(result.token_ids))

    def first_token(self, seconds: float) -> None:
        """A stream has shown its first text."""
        self._first.observe(seconds)

    def cancelled(self) -> None:
        """A client has gone."""
        self._cancelled.inc()

    def responded(self, path: str, status: int) -> None:
        """An HTTP response has begun."""
        self._responses.labels(path, str(status)).inc()

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
