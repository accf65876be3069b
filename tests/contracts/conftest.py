"""Every implementation of the seams on one tiny model: the local engine, and clients of servers that run it."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import orjson
import pytest
import torch
from transformers import PreTrainedModel

from steersman.generation.engine import Engine
from steersman.generation.remote import OpenAIClient, SteersmanClient
from steersman.models.load import LoadedModel, load_model
from steersman.records import Completion, Prompt
from steersman.seams import GenerationRequest, Sampling

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def loaded(tiny_steered_folder: Path) -> LoadedModel:
    return load_model(tiny_steered_folder, precision="float32")


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded, max_batch=4, prefill_tokens=64)


@pytest.fixture
def openai_server(loaded: LoadedModel, tiny_llama: Callable[[], PreTrainedModel]) -> Handler:
    """Speaks as vLLM does: `/v1/models`, and `/v1/completions` of token ids, with echo."""
    engine, encoder, plain = Engine(loaded), loaded.encoder, tiny_llama()

    def complete(body: dict) -> dict:
        sampling = Sampling(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"] or 1.0,
            top_p=body["top_p"],
            top_k=body.get("top_k", 0),
            greedy=body["temperature"] == 0,
            stop=tuple(body.get("stop", ())),
            seed=body.get("seed"),
            logprobs="logprobs" in body,
        )
        prompt = Prompt(text=encoder.decode(body["prompt"]))
        (answer,) = engine.generate([GenerationRequest(prompt=prompt, sampling=sampling)])
        return {
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop,
            "token_ids": answer.token_ids,
            "logprobs": {"token_logprobs": answer.logprobs} if sampling.logprobs else None,
        }

    @torch.inference_mode()
    def echo(body: dict) -> dict:
        ids_T = torch.tensor(body["prompt"])
        logprobs_TV = plain(input_ids=ids_T[None]).logits[0].log_softmax(-1)[:-1]
        top = logprobs_TV.topk(body["logprobs"])
        tops = [
            {f"token_id:{i}": p for i, p in zip(ids, values, strict=True)}
            for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        own = logprobs_TV.gather(1, ids_T[1:, None])[:, 0].tolist()
        return {
            "text": "",
            "finish_reason": "length",
            "logprobs": {"token_logprobs": [None, *own], "top_logprobs": [None, *tops]},
        }

    def handle(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/models":
            return httpx2.Response(200, json={"data": [{"id": "tiny", "max_model_len": loaded.window}]})
        body = orjson.loads(request.content)
        return httpx2.Response(200, json={"choices": [echo(body) if body.get("echo") else complete(body)]})

    return handle


@pytest.fixture
def generate_server(loaded: LoadedModel) -> Handler:
    """Speaks `PUT /generate` as FORMATS has it."""
    engine, encoder = Engine(loaded), loaded.encoder

    def handle(request: httpx2.Request) -> httpx2.Response:
        assert (request.method, request.url.path) == ("PUT", "/generate")
        body = orjson.loads(request.content)
        sampling = Sampling(
            max_tokens=body["tokens_to_generate"],
            temperature=body["temperature"],
            top_k=body["top_k"],
            top_p=body["top_p"],
            greedy=body["greedy"],
            stop=tuple(body["end_strings"]),
            seed=body["random_seed"],
            logprobs=True,
        )
        prompts = [Prompt(text=sentence) for sentence in body["sentences"]]
        answers = engine.generate([GenerationRequest(prompt=prompt, sampling=sampling) for prompt in prompts])
        rows = [row(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        reply = {key: [one[key] for one in rows] for key in rows[0]}
        return httpx2.Response(200, json=reply if body["compute_logprob"] else {**reply, "logprob": None})

    def row(prompt: Prompt, answer: Completion) -> dict:
        known = encoder.encode(prompt.text)
        ends = [len(encoder.decode([*known.ids, *answer.token_ids[:n]])) for n in range(len(answer.token_ids))]
        return {
            "sentences": prompt.text + answer.text + (answer.stop or ""),
            "token_ids": [*known.ids, *answer.token_ids],
            "offsets": [start for start, _ in known.offsets] + ends,
            "logprob": [0.0] * (len(known.ids) - 1) + (answer.logprobs or []),
        }

    return handle


@pytest.fixture
def openai_client(openai_server: Handler, loaded: LoadedModel) -> OpenAIClient:
    transport = httpx2.MockTransport(openai_server)
    return OpenAIClient("http://server/v1", loaded.encoder, transport=transport, concurrency=1)


@pytest.fixture
def generate_client(generate_server: Handler) -> SteersmanClient:
    return SteersmanClient("server:1424", sentences=2, transport=httpx2.MockTransport(generate_server), concurrency=1)
