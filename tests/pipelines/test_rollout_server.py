"""PPO whose responses a vLLM server samples: a stand-in for it speaks its protocol, with our engine behind it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file

from steersman import config as configs
from steersman import jsonl
from steersman.errors import ConfigError, RemoteError
from steersman.generation.engine import Engine
from steersman.generation.vllm import VllmSampler
from steersman.models.adapters import LoraConfig
from steersman.models.load import load_model, prepare_for_training
from steersman.pipelines.ppo import PPORecipe, run_ppo
from steersman.records import Prompt
from steersman.seams import GenerationRequest, Sampling
from steersman.training import metrics

CRITIC = {"optim": {"lr": 1e-2, "warmup_steps": 2}, "micro_tokens": 64, "precision": "float32"}


class Vllm:
    """A server of one model.

    Attributes:
        engines: what it serves, by name.
        loaded: every path that weights were loaded from.
        closed: paths that it does not offer.
        deaf: it says that it has loaded weights, and keeps those that it has.
        silent: it does not say which tokens it sampled.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.engines = {"base": self.engine(model)}
        self.loaded: list[Path] = []
        self.closed: set[str] = set()
        self.deaf = self.silent = False
        self.num_resets = 0
        self.lock = threading.Lock()

    def engine(self, folder: Path) -> Engine:
        return Engine(load_model(folder, precision="float32"))

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        if path in self.closed:
            return 404, {"detail": "Not Found"}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.engines]}
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.engines:
                return 400, {"error": {"message": "has already been loaded"}}
            self.load(body["lora_name"], Path(body["lora_path"]))
        elif path == "/v1/unload_lora_adapter":
            del self.engines[body["lora_name"]]
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.load("base", Path(body["kwargs"]["weights_path"]))
        elif path == "/reset_prefix_cache":
            self.num_resets += 1
        else:
            return 200, self.complete(body)
        return 200, {}

    def load(self, name: str, folder: Path) -> None:
        self.loaded.append(folder)
        self.engines[name] = self.engines["base"] if self.deaf else self.engine(folder)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["return_token_ids"] is True
        engine = self.engines[body["model"]]
        assert body["stop_token_ids"] == list(engine.encoder.eos_ids)
        sampling = Sampling(
            max_tokens=body["max_tokens"],
            temperature=body["temperature"],
            seed=body["seed"],
            logprobs="logprobs" in body,
            stop=tuple(body.get("stop", ())),
        )
        prompt = Prompt(text="", token_ids=tuple(body["prompt"]))
        [said] = engine.generate([GenerationRequest(prompt=prompt, sampling=sampling)])
        choice = {"text": said.text, "finish_reason": said.finish_reason, "logprobs": {"token_logprobs": said.logprobs}}
        return {"choices": [choice if self.silent else {**choice, "token_ids": said.token_ids}]}

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its address."""
        vllm = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers.get("content-length", 0)))
                with vllm.lock:
                    status, found = vllm.answer(self.path, orjson.loads(text or b"{}"))
                content = orjson.dumps(found)
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def vllm(tiny_policy_folder: Path) -> Vllm:
    return Vllm(tiny_policy_folder)


@pytest.fixture
def recipe(tmp_path: Path, tiny_policy_folder: Path, tiny_policy_reward_folder: Path) -> dict[str, Any]:
    jsonl.write(tmp_path / "prompts.jsonl", [{"prompt": f"{one} {other}"} for one in "abcde" for other in "cd"])
    return {
        "model": str(tiny_policy_folder),
        "output": str(tmp_path / "run"),
        "data": {"train": [str(tmp_path / "prompts.jsonl")]},
        "ppo": {
            "steps": 3,
            "rollout": {"samples": 8, "micro_batch": 4, "max_tokens": 6},
            "global_batch": 4,
            "micro_tokens": 64,
        },
        "optim": {"lr": 1e-2, "warmup_steps": 2},
        "critic": {"model": str(tiny_policy_reward_folder), "training": CRITIC},
        "precision": "float32",
    }


def run(recipe: dict[str, Any], **changes: Any) -> list[dict[str, float]]:
    """A step's numbers each, but for times."""
    run_ppo(configs.validate({**recipe, **changes}, PPORecipe, "recipe"))
    rows = metrics.read(Path(changes.get("output", recipe["output"])))
    return [{key: value for key, value in row.items() if not key.startswith("seconds.")} for row in rows]


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["weights", "adapter"])
def test_a_server_samples_what_this_process_would(
    recipe: dict[str, Any], tmp_path: Path, vllm: Vllm, lora: dict[str, int] | None
) -> None:
    with vllm.listening() as url:
        served = run(recipe, lora=lora, rollout_server={"url": url})
    here = run(recipe, lora=lora, output=str(tmp_path / "here"))

    assert [row.pop("sampler_kl") for row in served] == pytest.approx([0] * 3, abs=1e-6)
    assert served == here
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    ours, theirs = (load_file(tmp_path / run / "last" / name) for run in ("run", "here"))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (tmp_path / "here/samples.jsonl").read_bytes()

    assert len(set(vllm.loaded)) == len(vllm.loaded) == 3  # once a step, not once a part of a rollout
    assert [*(tmp_path / "run" / "rollouts").iterdir()] == vllm.loaded[-1:]
    assert [*vllm.engines] == (["base", vllm.loaded[-1].name] if lora else ["base"])
    assert vllm.num_resets == (0 if lora else 3)  # keys and values of older weights


def test_weights_that_do_not_arrive_are_seen(recipe: dict[str, Any], vllm: Vllm) -> None:
    vllm.deaf = True
    with vllm.listening() as url:
        rows = run(recipe, rollout_server={"url": url})
    assert abs(rows[0]["sampler_kl"]) < 1e-6
    assert rows[-1]["sampler_kl"] > 1e-3  # nats a token


def test_at_another_temperature_there_is_nothing_to_compare(recipe: dict[str, Any], vllm: Vllm) -> None:
    recipe["ppo"]["rollout"]["temperature"] = 0.7
    with vllm.listening() as url:
        assert not any("sampler_kl" in row for row in run(recipe, rollout_server={"url": url}))


def test_another_address_is_the_same_run(recipe: dict[str, Any], vllm: Vllm) -> None:
    with vllm.listening() as url:
        first = run(recipe, rollout_server={"url": url})
    assert run(recipe, rollout_server={"url": "http://127.0.0.1:9/v1"}) == first


@pytest.mark.parametrize(
    ("lora", "path", "hint"),
    [
        ({"rank": 2}, "/v1/load_lora_adapter", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora"),
        (None, "/collective_rpc", "VLLM_SERVER_DEV_MODE=1"),
    ],
)
def test_a_server_that_takes_no_weights_is_told_how_to_start(
    recipe: dict[str, Any], vllm: Vllm, lora: dict[str, int] | None, path: str, hint: str
) -> None:
    vllm.closed.add(path)
    with vllm.listening() as url, pytest.raises(ConfigError, match=rf"POST {url.removesuffix('/v1')}{path} .*{hint}"):
        run(recipe, lora=lora, rollout_server={"url": url})


def test_tokens_are_never_guessed_from_text(recipe: dict[str, Any], vllm: Vllm) -> None:
    vllm.silent = True
    with vllm.listening() as url, pytest.raises(RemoteError, match="does not say which tokens it sampled"):
        run(recipe, rollout_server={"url": url})


def test_what_a_killed_run_left_is_cleared(tmp_path: Path, vllm: Vllm) -> None:
    loaded = load_model(vllm.model, precision="float32")
    actor = prepare_for_training(loaded, loaded.encoder.spec, LoraConfig(rank=2))
    request = GenerationRequest(prompt=Prompt(text="a"), sampling=Sampling(max_tokens=2, seed=1))
    with vllm.listening() as url:
        for _ in range(2):  # the second as if it were another process
            VllmSampler(actor, url, tmp_path / "rollouts", model="base").generate([request])
        assert len(vllm.loaded) == 2
        VllmSampler(actor, url, tmp_path / "others", model="base").generate([request])
    assert [*vllm.engines] == ["base", vllm.loaded[1].name, vllm.loaded[2].name]
    assert [*(tmp_path / "rollouts").iterdir()] == [vllm.loaded[1]]
