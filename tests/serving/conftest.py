"""A served tiny model, and one that predicts attributes beside it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from steersman.generation.engine import Engine
from steersman.models.load import LoadedModel, load_model
from steersman.serving.app import ServerOptions, create_app

HOST = "http://127.0.0.1:1424"


@pytest.fixture
def loaded(tiny_steered_folder: Path) -> LoadedModel:
    return load_model(tiny_steered_folder, precision="float32")


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    """The same model in process."""
    return Engine(loaded)


@pytest.fixture
def client(loaded: LoadedModel) -> Iterator[TestClient]:
    with TestClient(create_app(loaded, loaded, ServerOptions(name="tiny")), base_url=HOST) as client:
        yield client


@contextmanager
def _listening(app: ASGIApp) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def listening() -> Callable[[ASGIApp], AbstractContextManager[int]]:
    """`with listening(app) as port`: a real server on a free port of this machine."""
    return _listening
