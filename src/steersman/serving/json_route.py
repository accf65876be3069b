"""Bodies are read as strict JSON: no NaN, no half characters, no bottomless nesting."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import Request as HttpRequest
from starlette.responses import Response


class _StrictRequest(HttpRequest):
    async def json(self) -> Any:
        try:
            return orjson.loads(await self.body())
        except orjson.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, "", 0) from None


class StrictJsonRoute(APIRoute):
    """An endpoint that takes strict JSON."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(http: HttpRequest) -> Response:
            return await handle(_StrictRequest(http.scope, http.receive))

        return strict
