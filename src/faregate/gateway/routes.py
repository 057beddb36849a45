"""The table of routes: nothing else passes, and nothing else ever reaches upstream."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from faregate.gateway.admission import Admitter
from faregate.gateway.client import Client, Receive, Send
from faregate.gateway.errors import ApiError, bad_request, internal_error, no_route, overloaded, shutting_down
from faregate.gateway.identity import Gatekeeper, Headers
from faregate.gateway.models import ModelList
from faregate.gateway.relay import Relay
from faregate.gateway.request import outgoing, parse_chat
from faregate.http_wire import EXTENSION, Wire
from faregate.records import Facts

_log = logging.getLogger("faregate.requests")
_crash = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 0.5
"""How long a request that a shutdown cuts may take to say so to a client that does not read."""

MOST_BODY_BYTES = 64 * 1024 * 1024
PREFIXES = ("/api/v1", "/v1")
_GZIP = re.compile(rb"(?:^|,)\s*(?:gzip|\*)\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[\d.]+\s*)?(?=,|$)", re.IGNORECASE)


RawHeaders = list[tuple[bytes, bytes]]


class Call(msgspec.Struct, gc=False):
    """One request on its way to its handler. `facts` are there from its admission on."""

    connection: str
    headers: Headers
    raw_headers: RawHeaders
    client: Client
    receive: Receive
    wire: Wire | None
    facts: Facts | None = None


Handler = Callable[[Call], Awaitable[None]]


class _Route(NamedTuple):
    raw_path: bytes
    handler: Handler


class Gateway:
    """The data plane: a plain ASGI application for everything under /v1 and /api/v1."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        admitter: Admitter,
        relay: Relay,
        models: ModelList,
        *,
        new_id: Callable[[], str],
        ledger_away: Callable[[], bool],
        log_requests: bool,
        max_in_flight: int,
    ) -> None:
        """`max_in_flight` is how many requests may be under way at once. The list of models is not one of them: it
        costs nothing, and Open WebUI takes the models away from everybody where it is refused."""
        self._gatekeeper = gatekeeper
        self._admitter = admitter
        self._relay = relay
        self._models = models
        self._new_id = new_id
        self._ledger_away = ledger_away
        self._log_requests = log_requests
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        handlers: dict[tuple[str, str], Handler] = {
            ("POST", "/chat/completions"): self._chat,
            ("GET", "/models"): self._list_models,
        }
        self._routes = {
            (method, prefix + path): _Route((prefix + path).encode(), handler)
            for (method, path), handler in handlers.items()
            for prefix in PREFIXES
        }

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request_id = self._new_id()
        # Taken out, as it knows the scope, too: nothing of a request should wait for the garbage collector.
        wire = scope.get("extensions", {}).pop(EXTENSION, None)
        client = Client(request_id, receive, send, self._relay.patience, self._ledger_away, wire)
        call: Call | None = None
        refused: ApiError | None = None
        try:
            handler = self._route(scope)
            headers = Headers(scope["headers"])
            connection = self._gatekeeper.connection(headers)
            call = Call(connection, headers, scope["headers"], client, receive, wire)
            await handler(call)
        except ApiError as error:
            refused = error
            await client.fail(error)
        except ClientLeft:
            pass
        except asyncio.CancelledError:
            # The request has been settled, or left to be, by the relay. Who waits is told, if that can be said at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await client.fail(shutting_down())
            raise
        except Exception:  # noqa: BLE001 - the caller is owed an answer, and the log the rest
            # The last resort of one request: its hold has been brought to an end by the relay.
            _crash.exception("request %s ended by an error of the gateway itself", request_id)
            refused = internal_error()
            await client.fail(refused)
        finally:
            client.close()
        if self._log_requests:
            self._log(scope, client, None if call is None else call.facts, refused)

    def _route(self, scope: dict[str, Any]) -> Handler:
        method, path = scope["method"], scope["path"]
        route = self._routes.get((method, path))
        # `path` is decoded: a spelling with escapes would be another path to whoever stands in front.
        if route is None or scope.get("raw_path", route.raw_path).partition(b"?")[0] != route.raw_path:
            raise no_route(method, path)
        return route.handler

    async def _list_models(self, call: Call) -> None:
        headers = [(b"cache-control", b"private, max-age=60"), (b"vary", b"accept-encoding")]
        offered = b",".join(value for name, value in call.raw_headers if name == b"accept-encoding")
        if _GZIP.search(offered):
            packed = [*headers, (b"content-encoding", b"gzip")]
            await call.client.answer(200, b"application/json", self._models.packed, packed)
        else:
            await call.client.answer(200, b"application/json", self._models.body, headers)

    async def _chat(self, call: Call) -> None:
        # Before the body is read: what waits for a place would hold it in memory.
        if self._in_flight >= self._max_in_flight:
            self._admitter.outcomes.overloaded += 1
            raise overloaded()
        self._in_flight += 1
        client = call.client
        try:
            caller = self._gatekeeper.caller(call.connection, call.headers)
            body = None if call.wire is None else call.wire.whole_body()
            if body is None:
                body = await read_body(call.raw_headers, call.receive)
            request = parse_chat(body)
            client.watch()
            admission = await self._admitter.admit(client.request_id, caller, request)
            call.facts = facts = admission.facts
            client.unchecked = admission.unchecked
            sent = outgoing(request, cap=facts.cap, user=admission.pseudonym, ceiling=admission.ceiling)
            await self._relay.chat(facts, sent, client)
        finally:
            self._in_flight -= 1

    def _log(self, scope: dict[str, Any], client: Client, facts: Facts | None, refused: ApiError | None) -> None:
        _log.info(
            "%s %s %r status=%d user=%s model=%r%s",
            client.request_id,
            scope["method"],
            scope["path"][:200],
            client.status,
            facts.user_id if facts else "-",
            facts.model if facts else "-",
            f" code={refused.code}" if refused else "",
        )


class ClientLeft(Exception):
    """The client left before its request was complete: there is nobody to answer."""


async def read_body(headers: RawHeaders, receive: Receive) -> bytes:
    """The whole body. Raises `ApiError` (413) above 64 MB, and `ClientLeft`."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > MOST_BODY_BYTES:
            raise _too_large()
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        if piece := message.get("body", b""):
            size += len(piece)
            if size > MOST_BODY_BYTES:
                raise _too_large()
            pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _too_large() -> ApiError:
    return bad_request("The request body is larger than 64 MB, which is the most that is accepted.", status=413)
