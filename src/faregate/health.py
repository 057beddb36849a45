"""Is it alive, can it serve: `/healthz`, `/readyz`, `/health`."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Check:
    """One dependency. `required`: without it this node cannot serve, and is not ready; else it is degraded."""

    name: str
    ok: bool
    required: bool
    detail: str


Checks = Callable[[], Awaitable[list[Check]]]


class Health:
    """A small ASGI application that answers probes."""

    paths = frozenset({"/healthz", "/readyz", "/health"})

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one probe."""
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, {"status": "method not allowed"}, [(b"allow", b"GET, HEAD")])
        elif scope["path"] == "/healthz":
            await _answer(send, 200, {"status": "alive"})
        else:
            await self._ready(send)

    async def _ready(self, send: Callable[..., Any]) -> None:
        checks = await self._checks()
        ready = all(check.ok for check in checks if check.required)
        state = "unready" if not ready else "ready" if all(check.ok for check in checks) else "degraded"
        body = {
            "status": state,
            "checks": {check.name: {"ok": check.ok, "detail": check.detail} for check in checks},
        }
        await _answer(send, 200 if ready else 503, body)


async def _answer(
    send: Callable[..., Any], status: int, body: Mapping[str, object], more: list[tuple[bytes, bytes]] | None = None
) -> None:
    text = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(text)),
        (b"cache-control", b"no-store"),
        *(more or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
