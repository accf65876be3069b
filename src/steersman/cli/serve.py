"""`steersman serve`: a model behind HTTP."""

import ipaddress
import logging
from typing import Annotated

import typer

from steersman.cli import flags
from steersman.cli.start import loading


def command(
    model: flags.Model,
    attribute_model: Annotated[
        str | None,
        typer.Option("--attribute-model", metavar="MODEL", help="Attribute predictor that judges the answers."),
    ] = None,
    reward_model: Annotated[
        str | None,
        typer.Option("--reward-model", metavar="MODEL", help="Reward model that says how good answers are."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What clients call the model; default: its folder")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 lets other machines in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 1424,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="STEERSMAN_API_KEY", help="Clients must send it as a bearer token."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer that a client gets.")] = 4096,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds that a request may take.")] = 600.0,
    max_queue: Annotated[
        int, typer.Option("--max-queue", min=0, help="Requests that wait at most; further ones are answered with 429.")
    ] = 512,
    batch: flags.Batch = 32,
    precision: flags.Precision = "auto",
) -> None:
    """Serve a model: `PUT /generate` as NeMo did, OpenAI's `/v1/completions` and `/v1/chat/completions`, attributes.

    A reward model, alone or beside another one, answers at `/v1/rewards`.

    ```
    steersman serve runs/steerlm/retrain/run/best --attribute-model runs/steerlm/predictor-1/run/best
    curl http://127.0.0.1:1424/v1/chat/completions -H 'content-type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "Hi!"}], "attributes": {"humor": 4}}'
    steersman serve runs/reward/best --port 1425
    curl http://127.0.0.1:1425/v1/rewards -H 'content-type: application/json' \\
        -d '{"conversations": [[{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]]}'
    ```
    """
    with loading():
        import uvicorn

        from steersman.errors import ConfigError
        from steersman.models.load import load_model
        from steersman.serving.app import LOOPBACK, ServerOptions, create_app, create_reward_app
        from steersman.serving.service import Limits

    local = warn_if_open(host, api_key)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    options = ServerOptions(
        name=name,
        api_key=api_key,
        hosts=LOOPBACK if local else None,
        max_batch=batch,
        limits=Limits(max_tokens=max_tokens, timeout=timeout, max_queue=max_queue),
    )
    loaded = load_model(model, precision=precision)
    if loaded.card.head in ("reward", "regression"):
        if attribute_model or reward_model:
            raise ConfigError(f"{model} is a reward model, which is served alone; or give it as --reward-model")
        app = create_reward_app(loaded, options)
    else:
        judging = load_model(attribute_model, precision=precision) if attribute_model else None
        rewarding = load_model(reward_model, precision=precision) if reward_model else None
        app = create_app(loaded, judging, options, rewarding)
    uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=int(timeout))


def warn_if_open(host: str, api_key: str | None) -> bool:
    """Whether only this machine reaches an address; a warning when others do."""
    if _is_loopback(host):
        return True
    everybody = "" if api_key else ", and without --api-key everybody may use this server"
    typer.secho(f"WARNING: {host} can be reached from other machines{everybody}", fg="red", bold=True, err=True)
    return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
