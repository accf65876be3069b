"""The embedded engine: generation and scoring requests of any lengths advance together, one packed forward call a step.

Each step takes, as one row, the newest token of every sequence that is generating and up to `prefill_tokens` tokens of
prompts that are not computed yet; finished requests leave and waiting ones join between steps (continuous batching).
Keys and values of what was computed before are reused for the longest known prefix of a new sequence, and of several
sequences that arrive together with a common prefix the first computes it while the others wait. Logits are computed
only where a token is drawn or scored.

With attribute guidance two sequences share the drawn tokens (x: logits; classifier-free guidance, arXiv 2306.17806):

    x = x_against + scale (x_wanted - x_against)

on plain logits: normalising either by its log-sum-exp adds a constant to x, which no softmax sees, and scale 1 is
exactly no guidance. Penalty, temperature and truncation follow (see `sampling`); log-probs are of softmax(x).

Shapes: T tokens of a row, R rows of logits, H hidden size, V vocabulary.
"""

import math
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor

from steersman.errors import ConfigError, DataError, ModelError
from steersman.generation.answer_text import AnswerText
from steersman.generation.cache import CachedAttention, KVCache, row_order
from steersman.generation.continuations import ContinuationTokeniser, TokenisedContinuation
from steersman.generation.heap import keep_freed_memory
from steersman.generation.jobs import DrawnToken, Generation, Scoring, TokenSequence
from steersman.generation.prefixes import PrefixCache, common_prefix
from steersman.generation.sampling import Draw, check_finite, choose, penalise
from steersman.models.inference import speed_up
from steersman.models.last_layer import read_only
from steersman.models.load import LoadedModel, backbone, head_weight, logit_softcap, plain_model
from steersman.models.packed import PackedLinear
from steersman.records import Completion
from steersman.seams import GenerationRequest, Progress, Scored, ScoreRequest, TokenScoreRequest

LOGITS_AT_ONCE = 1 << 25
"""Most logits in memory while scoring (128 MB)."""
WORTH_WAITING = 16
"""Common tokens for which a sequence lets another go first."""

BUSY = "requests are running already; a server uses submit and step alone"

Result = TypeVar("Result", Completion, Scored)


@dataclass(frozen=True)
class Event:
    """What a step did for one request.

    Attributes:
        handle: of the request.
        text: further text of its answer; together, the events' texts are `Completion.text`.
        drawn: the tokens drawn since the last event, when log-probabilities are asked for.
        result: the whole answer, in the request's last event.
    """

    handle: int
    text: str = ""
    drawn: tuple[DrawnToken, ...] = ()
    result: Completion | Scored | None = None

    def after(self, earlier: "Event") -> "Event":
        """This event and one before it, of the same request, as one."""
        return replace(self, text=earlier.text + self.text, drawn=earlier.drawn + self.drawn)


class Engine:
    """A Generator and a ContinuationScorer on one local model.

    `generate`, `score` and `stream` run requests to their end. A server drives the engine itself, from one thread:
    `submit` and `cancel` between calls of `step`.

    An answer depends on its request alone (its seed included): in fp32 never on what else is in the batch or the cache.

    Args:
        loaded: the model, its tokenizer and template.
        max_batch: most sequences in flight (a guided request takes two).
        prefill_tokens: most prompt tokens in one forward call; longer prompts take several.
        prefix_cache_tokens: how many tokens of finished work are kept for reuse; 0 turns that off.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch: int = 32,
        prefill_tokens: int = 2048,
        prefix_cache_tokens: int = 65536,
    ) -> None:
        if max_batch < 1 or prefill_tokens < 1 or prefix_cache_tokens < 0:
            raise ConfigError("max_batch and prefill_tokens must be at least 1, prefix_cache_tokens 0 or more")
        if loaded.card.head != "lm":
            raise ModelError(f"{loaded.path} judges answers and writes none: its head gives attribute values")
        self.encoder = loaded.encoder
        self.window = loaded.window
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens
        self._model = loaded.model.eval()
        speed_up(self._model)
        self._device = loaded.device
        if self._device.type == "cpu":
            keep_freed_memory()
        config = plain_model(loaded.model).config.get_text_config()
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._cache = KVCache(
            config.num_hidden_layers, config.num_key_value_heads, head_size, loaded.model.dtype, self._device
        )
        self._prefixes = PrefixCache(prefix_cache_tokens)
        self._tokenise = ContinuationTokeniser(loaded.encoder)
        self._end_ids = list(loaded.encoder.eos_ids)
        self.vocabulary = head_weight(loaded.model).shape[0]
        self._handles = count()
        self._jobs: dict[int, Generation | Scoring] = {}
        self._waiting: deque[tuple[int, list[TokenSequence]]] = (
            deque()
        )  # a handle, and sequences that must start together
        self._running: dict[TokenSequence, int] = {}  # -> handle, in order of admission
        self._scored: list[Scoring] = []

    # --- The seams

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order.

        Raises:
            DataError: a prompt is empty, or leaves no room for an answer in the model's window.
        """
        return self._run(requests, Completion, progress)

    def score(
        self, requests: Sequence[ScoreRequest | TokenScoreRequest], progress: Progress | None = None
    ) -> list[Scored]:
        """One result a request, in order.

        Raises:
            DataError: a text is longer than the model's window, has nothing before its continuation, or a span with
                alternatives does not hold one of them; a token is not of the vocabulary.
        """
        return self._run(requests, Scored, progress)

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """The answer's text, in pieces as they become certain: never a part of a character, or of a stop string."""
        assert not self._jobs, BUSY
        handle = self.submit(request)
        try:
            while handle in self._jobs:
                yield from (event.text for event in self.step() if event.text)
        finally:
            self.cancel(handle)

    def forget(self) -> None:
        """Drop what is kept for reuse: what follows then depends on nothing before it, to the last bit."""
        self._prefixes = PrefixCache(self._prefixes.max_tokens)

    def check_vocabulary(self, ids: Sequence[int]) -> None:
        """Raise `DataError` for a token that the model does not know; only given ids can hold one."""
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise DataError(f"token ids must lie in 0-{self.vocabulary - 1}")

    def _run(
        self,
        requests: Sequence[GenerationRequest | ScoreRequest | TokenScoreRequest],
        result_type: type[Result],
        progress: Progress | None,
    ) -> list[Result]:
        assert not self._jobs, BUSY
        results: dict[int, Result] = {}
        handles: list[int] = []
        try:
            for request in requests:
                handles.append(self.submit(request))
            while self._jobs:
                for event in self.step():
                    if isinstance(event.result, result_type):
                        results[event.handle] = event.result
                        if progress:
                            progress(1)
        finally:
            for handle in handles:
                self.cancel(handle)
        return [results[handle] for handle in handles]

    # --- For servers

    @property
    def num_running(self) -> int:
        """Sequences in flight."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences not begun for want of room."""
        return sum(len(sequences) for _, sequences in self._waiting)

    def submit(self, request: GenerationRequest | ScoreRequest | TokenScoreRequest) -> int:
        """Queue a request; the handle that its events bear.

        Raises:
            DataError, ConfigError: see `generate` and `score`; the engine's other requests go on undisturbed.
        """
        handle = next(self._handles)
        if isinstance(request, GenerationRequest):
            generation = self._generation(handle, request)
            self._jobs[handle] = generation
            self._waiting.append((handle, generation.sequences))
        else:
            if isinstance(request, TokenScoreRequest):
                tokenised = TokenisedContinuation(list(request.token_ids), 1, {}, top=request.top)
                self.check_vocabulary(tokenised.ids)
            else:
                tokenised = self._tokenise(request)
            if len(tokenised.ids) > self.window:
                raise DataError(f"a text of {len(tokenised.ids)} tokens exceeds the model's window of {self.window}")
            scoring = Scoring(handle, tokenised)
            self._jobs[handle] = scoring
            self._waiting.extend((handle, [sequence]) for sequence in scoring.sequences)
            if not scoring.sequences:
                self._scored.append(scoring)
        return handle

    @torch.inference_mode()
    def cancel(self, handle: int) -> None:
        """Forget a request and free its place; nothing happens when it has ended already."""
        if self._jobs.pop(handle, None) is not None:
            self._waiting = deque(entry for entry in self._waiting if entry[0] != handle)
            for sequence in [sequence for sequence, owner in self._running.items() if owner == handle]:
                self._stop(sequence)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance every request that has room by one forward call; what came of it."""
        self._admit()
        row = self._plan_row()
        if row:
            self._forward(row)
        return [*self._draw(), *self._collect_scores()]

    # --- A request begins

    def _generation(self, handle: int, request: GenerationRequest) -> Generation:
        sampling, guidance = request.sampling, request.guidance
        prompts = [request.prompt] if guidance is None else [request.prompt, guidance.against]
        if len(prompts) > self.max_batch:
            raise ConfigError("a guided request takes two sequences: set max_batch to 2 or more")
        sequences = [TokenSequence(self.encoder.encode_prompt(prompt)) for prompt in prompts]
        for sequence in sequences:
            self.check_vocabulary(sequence.ids)
        longest = max(len(sequence.ids) for sequence in sequences)
        if not all(sequence.ids for sequence in sequences):
            raise DataError("the prompt is empty: there is nothing to continue")
        if longest >= self.window:
            raise DataError(
                f"the prompt has {longest} tokens; the model's window of {self.window} leaves no room to answer"
            )
        return Generation(
            handle=handle,
            sampling=sampling,
            sequences=sequences,
            scale=1.0 if guidance is None else guidance.scale,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            budget=min(sampling.max_tokens, self.window - longest),
            num_prompt=len(sequences[0].ids),
            text=AnswerText(self.encoder.decode, sequences[0].ids, sampling.stop),
        )

    def _admit(self) -> None:
        while self._waiting and len(self._running) + len(self._waiting[0][1]) <= self.max_batch:
            handle, sequences = self._waiting.popleft()
            self._running.update(dict.fromkeys(sequences, handle))

    def _start(self, sequence: TokenSequence) -> None:
        """Give a sequence its slot, filled with what is known of it."""
        pieces = self._prefixes.match(sequence.ids[: sequence.num_reusable])
        sequence.slot = self._cache.allocate(len(sequence.ids))
        for piece in pieces:
            sequence.slot.append(piece)
        sequence.num_cached = sequence.slot.length

    def _stop(self, sequence: TokenSequence) -> None:
        del self._running[sequence]
        if sequence.slot is not None:
            self._cache.release(sequence.slot)
            sequence.slot = None

    # --- One step

    def _plan_row(self) -> list[tuple[TokenSequence, int]]:
        """The sequences of this step and how many new tokens each: those with one to go, and prompts within budget."""
        row, budget = [], self.prefill_tokens
        for sequence in self._running:
            if sequence.slot is None:
                if budget == 0 or self._should_wait(sequence):
                    continue
                self._start(sequence)
            if sequence.num_missing == 1:
                row.append((sequence, 1))
            elif num_new := min(sequence.num_missing, budget):
                row.append((sequence, num_new))
                budget -= num_new
        return row

    def _should_wait(self, sequence: TokenSequence) -> bool:
        """Whether a sequence under way is computing a prefix that this one could reuse."""
        for other in self._running:
            if other.slot is not None and other.num_missing > 1:
                common = min(common_prefix(other.ids, sequence.ids), sequence.num_reusable)
                if WORTH_WAITING <= common <= self._prefixes.max_tokens:
                    known = self._prefixes.num_matched(sequence.ids[:common])
                    if common - known >= WORTH_WAITING:
                        return True
        return False

    def _forward(self, row: list[tuple[TokenSequence, int]]) -> None:
        """Compute a row's new tokens: keys and values, hidden states at the ends, log-probs where asked for."""
        segments = [(sequence, sequence.slot, num_new) for sequence, num_new in row if sequence.slot is not None]
        for _, slot, num_new in segments:
            self._cache.reserve(slot, slot.length + num_new)
        segments.sort(key=lambda segment: row_order(*segment[1:]))
        spans = [(sequence, range(slot.length, slot.length + num_new)) for sequence, slot, num_new in segments]
        ids = [token for sequence, span in spans for token in sequence.ids[span.start : span.stop]]
        positions = [position for _, span in spans for position in span]
        asked: list[tuple[TokenSequence, int, int]] = []
        ends: list[int] = []
        for sequence, span in spans:
            first = ends[-1] + 1 if ends else 0
            asked += [(sequence, at, first + at - span.start) for at in span if at in sequence.targets]
            ends.append(first + len(span) - 1)
        read_M = torch.tensor([*ends, *(index for *_, index in asked)], device=self._device)
        with read_only(backbone(self._model), len(ids), read_M):
            hidden_TH = backbone(self._model)(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                attention_context=CachedAttention([(slot, num_new) for _, slot, num_new in segments]),
                use_cache=False,
            ).last_hidden_state[0]
        for (sequence, slot, num_new), end in zip(segments, ends, strict=True):
            slot.length += num_new
            sequence.hidden_H = hidden_TH[end]
            if num_new > 1:
                self._prefixes.insert(sequence.ids[: slot.length], slot.read)
        self._measure(hidden_TH, asked)
        for sequence, _ in row:
            if sequence.targets and sequence.num_missing == 0:
                self._end_scoring(sequence)

    def _measure(self, hidden_TH: Tensor, asked: Sequence[tuple[TokenSequence, int, int]]) -> None:
        """Log-probs of the targets: `asked` names sequences, positions in them and indices into the row."""
        self._compare(hidden_TH, [place for place in asked if place[0].compare_only])
        asked = [place for place in asked if not place[0].compare_only]
        at_once = max(1, LOGITS_AT_ONCE // head_weight(self._model).shape[0])
        for first in range(0, len(asked), at_once):
            part = asked[first : first + at_once]
            logits_RV = self._logits(hidden_TH[[index for _, _, index in part]]).float()
            wanted = [(r, token) for r, (sequence, at, _) in enumerate(part) for token in sorted(sequence.targets[at])]
            row_M, token_M = torch.tensor(wanted, device=self._device).T
            log_sum_R = logits_RV.logsumexp(-1)
            logprob_M = logits_RV[row_M, token_M] - log_sum_R[row_M]
            check_finite(logprob_M)
            for r, (sequence, position, _) in enumerate(part):
                if sequence.top:
                    sequence.top_logprobs[position] = _likeliest(logits_RV[r] - log_sum_R[r], sequence.top)
            for (r, token), logprob in zip(wanted, logprob_M.tolist(), strict=True):
                sequence, position, _ = part[r]
                sequence.logprobs[position, token] = logprob

    def _compare(self, hidden_TH: Tensor, asked: Sequence[tuple[TokenSequence, int, int]]) -> None:
        """Logits of the targets alone, where candidates are compared: a few rows of the head."""
        wanted = [
            (sequence, at, index, token) for sequence, at, index in asked for token in sorted(sequence.targets[at])
        ]
        if not wanted:
            return
        hidden_MH = hidden_TH[[index for _, _, index, _ in wanted]].float()
        weight_MH = head_weight(self._model)[[token for _, _, _, token in wanted]].float()
        logit_M = self._capped((hidden_MH * weight_MH).sum(-1))
        check_finite(logit_M)
        for (sequence, position, _, token), logit in zip(wanted, logit_M.tolist(), strict=True):
            sequence.logprobs[position, token] = logit

    def _logits(self, hidden_RH: Tensor) -> Tensor:
        """Logits [R, V] in the precision that the model computes them in."""
        head = plain_model(self._model).get_output_embeddings()
        packed = isinstance(head, PackedLinear)
        return self._capped(head(hidden_RH) if packed else hidden_RH @ head_weight(self._model).T)

    def _capped(self, logits: Tensor) -> Tensor:
        softcap = logit_softcap(self._model)
        return logits if softcap is None else torch.tanh(logits.float() / softcap) * softcap

    def _draw(self) -> Iterator[Event]:
        """The next token of every generation that is ready for one."""
        owners = [self._jobs[handle] for handle in dict.fromkeys(self._running.values())]
        ready = [job for job in owners if isinstance(job, Generation) and job.is_ready]
        if not ready:
            return
        logits_RV = self._guided_logits(ready)
        if not all(job.is_argmax for job in ready):  # the largest alone is found as well among narrow ones
            logits_RV = logits_RV.float()
        plain_logits = {
            row: logits_RV[row].clone() if job.alters_logits else logits_RV[row]
            for row, job in enumerate(ready)
            if job.sampling.logprobs
        }
        for logits_V, job in zip(logits_RV, ready, strict=True):
            if job.sampling.repetition_penalty != 1.0:
                seen_ids = torch.tensor(job.sequences[0].ids, device=self._device)
                penalise(logits_V, seen_ids, job.sampling.repetition_penalty)
        if unending := [row for row, job in enumerate(ready) if not job.may_end]:
            row_R1 = torch.tensor(unending, device=self._device)[:, None]
            logits_RV[row_R1, torch.tensor(self._end_ids, dtype=torch.long, device=self._device)] = -math.inf
        token_R = choose(logits_RV, [Draw(job.sampling, job.seed, job.num_drawn) for job in ready])
        for row, logits_V in plain_logits.items():
            logprob_V, token = logits_V.log_softmax(0), int(token_R[row])
            top = _likeliest(logprob_V, ready[row].sampling.top_logprobs)
            ready[row].drawn.append(DrawnToken(token, float(logprob_V[token]), top))
        for job, token in zip(ready, token_R.tolist(), strict=True):
            event = self._extend(job, token)
            if event.text or event.result:
                yield event

    def _guided_logits(self, jobs: Sequence[Generation]) -> Tensor:
        """The model's logits for each generation, contrasted where it is guided: [R, V]."""
        logits_RV = self._logits(torch.stack([job.sequences[0].hidden_H for job in jobs]))
        if guided := [row for row, job in enumerate(jobs) if len(job.sequences) > 1]:
            logits_RV = logits_RV.float()
            against_RV = self._logits(torch.stack([jobs[row].sequences[1].hidden_H for row in guided])).float()
            scale_R1 = torch.tensor([[jobs[row].scale] for row in guided], device=self._device)
            logits_RV[guided] = against_RV + scale_R1 * (logits_RV[guided] - against_RV)
        return logits_RV

    def _extend(self, job: Generation, token: int) -> Event:
        """Take a drawn token; the request ends at an end token, a stop string, or its budget."""
        for sequence in job.sequences:
            sequence.ids.append(token)
        ended = token in self._end_ids
        if ended:
            job.text.end(token)
        else:
            job.text.push(token, may_stop=job.may_end)
        over = ended or job.text.stop is not None or job.num_drawn == job.budget
        if not over:
            text = job.text.take()
            return Event(job.handle, text, job.take_drawn() if text else ())
        job.text.finish(may_stop=job.may_end)
        for sequence in job.sequences:
            assert sequence.slot is not None
            self._prefixes.insert(sequence.ids[: sequence.slot.length], sequence.slot.read)
            self._stop(sequence)
        del self._jobs[job.handle]
        result = job.completion(ended or job.text.stop is not None)
        return Event(job.handle, job.text.take(complete=True), job.take_drawn(), result)

    # --- Scoring ends

    def _end_scoring(self, sequence: TokenSequence) -> None:
        job = self._jobs[self._running[sequence]]
        assert isinstance(job, Scoring)
        job.num_open -= 1
        self._stop(sequence)
        if job.num_open == 0:
            self._scored.append(job)

    def _collect_scores(self) -> Iterator[Event]:
        """The scoring requests that ended."""
        while self._scored:
            job = self._scored.pop()
            if self._jobs.pop(job.handle, None):  # not cancelled meanwhile
                yield Event(job.handle, result=job.scored())


def _likeliest(logprob_V: Tensor, num: int) -> dict[int, float]:
    """The `num` likeliest tokens, the likeliest first, with their log-probabilities."""
    top = logprob_V.topk(min(num, len(logprob_V)))
    return dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
