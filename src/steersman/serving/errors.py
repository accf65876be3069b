"""What went wrong -> a status and words: one sentence for `PUT /generate`, OpenAI's schema everywhere else.

400  the request is wrong: a value, a model's limits, a label outside the schema
401  no API key, or another one          404  no such address or model
413  larger than the server takes        429  the queue is full; Retry-After says for how long
500  the model failed                    504  it took longer than a request may
"""

import logging
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from steersman.errors import BusyError, NonFiniteError, SteersmanError
from steersman.serving.service import ClientGoneError

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ModelNotFoundError(SteersmanError):
    """A request names a model that is not served."""


def status_of(error: Exception) -> int:
    """The status that an error is answered with."""
    match error:
        case HTTPException():
            return error.status_code
        case BusyError():
            return 429
        case ModelNotFoundError():
            return 404
        case NonFiniteError():
            return 500
        case SteersmanError() | RequestValidationError():
            return 400
        case TimeoutError():
            return 504
        case ClientGoneError():
            return CLIENT_GONE
    return 500


def words_of(error: Exception) -> str:
    """What an error says to a client."""
    match error:
        case HTTPException():
            return str(error.detail)
        case RequestValidationError():
            return "; ".join(_one(item) for item in error.errors()[:3])
        case TimeoutError():
            return "the request took longer than this server allows; ask for fewer tokens"
        case SteersmanError() | ClientGoneError():
            return str(error)
    return "the server failed; its log says why"


def _one(item: Any) -> str:
    """`top_p: Input should be less than or equal to 1`, of one of pydantic's errors."""
    where = ".".join(str(part) for part in item["loc"] if part != "body")
    if item["type"] == "json_invalid":
        return f"the body is not JSON: {item.get('ctx', {}).get('error', '')}"
    return f"{where}: {item['msg']}" if where else str(item["msg"])


def describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status, and the error in OpenAI's schema."""
    status = status_of(error)
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"error": {"message": words_of(error), "type": kind, "param": None, "code": status}}


def respond(error: Exception, path: str) -> Response:
    """The response to a request at `path` that failed."""
    status, described = describe(error)
    content: Any = words_of(error) if path == "/generate" else described
    headers = {"retry-after": str(error.pause)} if isinstance(error, BusyError) else {}
    if isinstance(error, HTTPException):
        headers |= dict(error.headers or {})
    return Response(orjson.dumps(content), status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Answer every error of the application's endpoints in these words."""

    async def handle(http: HttpRequest, error: Exception) -> Response:
        if status_of(error) >= 500 and not isinstance(error, TimeoutError):
            logger.error("%s %s failed", http.method, http.url.path, exc_info=error)
        return respond(error, http.url.path)

    for kind in (HTTPException, RequestValidationError, SteersmanError, TimeoutError, ClientGoneError, Exception):
        app.add_exception_handler(kind, handle)
