"""Who may use the admin API, and that nobody in between keeps its answers."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from faregate.admin.errors import error_response

HEADER = "x-admin-key"


class AdminKey:
    """Lets a request through if it carries the admin key, exactly once. It stands before the routes: without the
    key nobody learns which there are."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._admits(scope):
            await self._app(scope, receive, send)
            return
        response = error_response(
            401,
            "invalid_admin_key",
            f"The header {HEADER} is missing or wrong: send the value of ADMIN_API_KEY in it, once.",
            param=HEADER,
        )
        await response(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == HEADER.encode()]
        return len(given) == 1 and hmac.compare_digest(given[0], self._key)


def _actor(request: Request) -> str:
    return f"admin key from {request.client.host}" if request.client is not None else "admin key"


Actor = Annotated[str, Depends(_actor)]
"""Who asks, for the audit log: there is one key, so it is the address that tells."""


class NoStore:
    """Marks every answer as not to be kept by anybody in between."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, marked)
