"""A vLLM server that samples from a model which is being trained here.

Weights travel through the file system: whenever they have changed since the server last sampled, they are saved below a
folder that it sees under the same path, and it is told to load them. An adapter is loaded beside the base model that
the server was started with, under a new name each time; other weights take the place of the server's own. How the
server has to be started for that is said in `ADAPTER_HINT` and `WEIGHTS_HINT`.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.errors import ConfigError, RemoteError
from steersman.generation.remote import Connection, OpenAIClient, list_models, openai_base
from steersman.models.adapters import has_adapter
from steersman.models.derived import Derived
from steersman.models.load import LoadedModel, save_model
from steersman.records import Completion
from steersman.seams import GenerationRequest, Progress

LOAD_ADAPTER, UNLOAD_ADAPTER = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
RPC, RESET_CACHE = "/collective_rpc", "/reset_prefix_cache"
START = "start the server with {}, where it sees the run's folder under the same path"
ADAPTER_HINT = START.format("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve MODEL --enable-lora --max-lora-rank RANK")
WEIGHTS_HINT = START.format("VLLM_SERVER_DEV_MODE=1 vllm serve MODEL")


class VllmSampler:
    """A Generator that samples from a model as it is at each call, on a vLLM server.

    Completions have exactly the tokens that were sampled and, where the temperature is 1, their log-probabilities as
    the server computes them.

    Args:
        loaded: the model; its trainable weights, in place, are what may change.
        url: of the server, with or without `/v1`.
        folder: for weights on their way; what another process left in it is deleted.
        model: what the server calls the model that `loaded` began as; the only one that it lists, by default.
        connection: options of `Connection`.
    """

    def __init__(
        self, loaded: LoadedModel, url: str, folder: Path, *, model: str | None = None, **connection: Any
    ) -> None:
        self._loaded, self._folder = loaded, folder.absolute()
        self._connection = Connection(openai_base(url), **connection)
        self._numbers = count(1)
        self._run = f"steersman-{hashlib.sha256(str(self._folder).encode()).hexdigest()[:12]}-"
        for name in (str(entry["id"]) for entry in list_models(self._connection)):
            if name.startswith(self._run):
                self._unload(name)
        shutil.rmtree(self._folder, ignore_errors=True)
        options = {"return_token_ids": True, "stop_token_ids": list(loaded.encoder.eos_ids)}
        self._client = OpenAIClient(url, loaded.encoder, model=model, options=options, **connection)
        self._begun_as = self._client.model
        self._served = Derived(self._serve)

    def generate(self, requests: Sequence[GenerationRequest], progress: Progress | None = None) -> list[Completion]:
        """One completion a request, in order.

        Raises:
            ConfigError: the server was not started so that its weights can be replaced.
            RemoteError: the server failed, in its own words.
        """
        trainable = [parameter for parameter in self._loaded.model.parameters() if parameter.requires_grad]
        self._client.model = self._served.of(trainable)
        asked = [
            replace(one, sampling=replace(one.sampling, logprobs=one.sampling.temperature == 1)) for one in requests
        ]
        return self._client.generate(asked, progress)

    def _serve(self, _: Sequence[Tensor]) -> str:
        """Give the server the weights as they are now; what it calls them."""
        name = f"{self._run}{next(self._numbers)}"
        path = save_model(self._loaded, self._folder / name)
        if has_adapter(self._loaded.model):
            self._tell(LOAD_ADAPTER, {"lora_name": name, "lora_path": str(path)}, ADAPTER_HINT)
            if self._client.model != self._begun_as:
                self._unload(self._client.model)
        else:
            self._tell(RPC, {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}, WEIGHTS_HINT)
            self._tell(RESET_CACHE, {}, WEIGHTS_HINT)
            name = self._begun_as
        for older in self._folder.iterdir():
            if older != path:
                shutil.rmtree(older, ignore_errors=True)
        return name

    def _unload(self, name: str) -> None:
        self._tell(UNLOAD_ADAPTER, {"lora_name": name}, ADAPTER_HINT)

    def _tell(self, path: str, body: Any, hint: str) -> None:
        try:
            self._connection.send("POST", path, json=body)
        except RemoteError as error:
            raise ConfigError(f"{error}. The weights of a step could not be loaded; {hint}") from None
