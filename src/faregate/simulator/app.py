"""The simulator's ASGI application: routes, keys, and the way of a chat request from its body to its bill."""

import random
import string
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import parse_qs

import msgspec

from faregate.simulator.activity import DAYS, activity, is_told
from faregate.simulator.books import Books
from faregate.simulator.catalogue import Catalogue
from faregate.simulator.delivery import Message, Plan, Receive, Send, deliver
from faregate.simulator.errors import JSON, Refused, key_limit, refuse
from faregate.simulator.keys import KeyRing
from faregate.simulator.models import MODELS
from faregate.simulator.plan import answer, headers, problem_plan
from faregate.simulator.request import decode
from faregate.simulator.routing import Router
from faregate.simulator.turn import Turn

Scope = Message
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MODELS_CACHE = b"public, max-age=120, stale-while-revalidate=3600"

_PREFIXES = ("/api/v1", "/v1")
_ID_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Options:
    """How this OpenRouter behaves. Times in seconds; `clock` gives seconds since the epoch.

    `generation_delay`: until `/generation` knows an id, from the end of its answer. `pace`: between events of a
    stream. `answer_tokens`: how long an answer is that nobody asked to be longer. `seed`: for ids and words.
    """

    seed: int = 1
    generation_delay: float = 1.0
    pace: float = 0.0
    answer_tokens: int = 32
    clock: Callable[[], float] = time.time


def create_app(options: Options | None = None) -> App:
    """An OpenRouter with empty books, to be served by any ASGI server in one process."""
    return _Simulator(options or Options())


class _Simulator:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._random = random.Random(options.seed)
        self._catalogue = Catalogue(MODELS)
        self._router = Router(self._catalogue, answer_tokens=options.answer_tokens, seed=options.seed)
        self._books = Books(clock=options.clock, delay=options.generation_delay)
        self._keys = KeyRing()
        self._routes: dict[tuple[str, str], Callable[[Scope], Plan]] = {
            ("GET", "/_simulator/bills"): lambda _: _json(self._books.bills()),
            ("GET", "/_simulator/stats"): lambda _: _json(self._books.stats()),
            ("GET", "/_simulator/last"): lambda _: _json(self._books.last()),
            ("POST", "/_simulator/reset"): self._reset,
        }
        for prefix in _PREFIXES:
            self._routes["GET", f"{prefix}/models"] = self._models
            self._routes["GET", f"{prefix}/generation"] = self._generation
            self._routes["GET", f"{prefix}/key"] = self._key
            self._routes["GET", f"{prefix}/activity"] = self._activity
        self._chat_paths = frozenset(f"{prefix}/chat/completions" for prefix in _PREFIXES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        if scope["type"] != "http":
            raise ValueError(f"The simulator speaks HTTP only, not {scope['type']}.")
        path, method = scope["path"], scope["method"]
        if method == "POST" and path in self._chat_paths:
            return await self._chat(scope, receive, send)
        body = await _read(receive)
        route = self._routes.get((method, path), _nowhere)
        try:
            plan = self._set_key(body) if (method, path) == ("POST", "/_simulator/keys") else route(scope)
        except Refused as refused:
            plan = problem_plan(refused.problem)
        return await deliver(plan, receive, send, _nothing_to_settle)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        self._books.arrived(scope["path"], scope["headers"], body)
        try:
            await self._answer(scope, body, receive, send)
        finally:
            self._books.departed()

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        now = self._options.clock()
        generation_id = f"gen-{int(now)}-{''.join(self._random.choices(_ID_ALPHABET, k=20))}"
        try:
            key = self._check_key(scope)
            _check_may_chat(key)
            with self._keys.use(key):
                await self._take(self._router.take(decode(body), generation_id, now), receive, send)
        except Refused as refused:
            plan = problem_plan(refused.problem, generation_id)
            await deliver(plan, receive, send, _nothing_to_settle)

    async def _take(self, turn: Turn, receive: Receive, send: Send) -> None:
        charge = turn.charge(turn.tokens)
        answered = answer(turn, charge, self._options.pace)

        def settle(events: int, left: bool) -> None:
            if answered.fails and not (left and answered.streams):
                self._books.fail(turn)
            elif left:
                tokens = turn.billed_if_left(events)
                self._books.bill(turn, tokens, turn.charge(tokens), cancelled=True)
            else:
                self._books.bill(turn, turn.tokens, charge, cancelled=False)

        await deliver(answered.plan, receive, send, settle)

    def _models(self, _: Scope) -> Plan:
        return Plan(200, [*headers(JSON), (b"cache-control", MODELS_CACHE)], [self._catalogue.body])

    def _generation(self, scope: Scope) -> Plan:
        self._check_key(scope)
        asked = _asked(scope, "id")
        if asked is None:
            raise refuse(400, "Invalid input: id is required.")
        record = self._books.generation(asked)
        if record is None:
            raise refuse(404, f"Generation {asked} not found")
        return _json({"data": record})

    def _activity(self, scope: Scope) -> Plan:
        if not _is_management(self._check_key(scope)):
            raise refuse(403, "Only management keys can perform this operation")
        asked, now = _asked(scope, "date"), self._options.clock()
        day = None if asked is None else _day(asked)
        if day is not None and not is_told(day, now):
            raise refuse(400, f"Date must be within the last {DAYS} (completed) UTC days")
        return _json({"data": activity(self._books.entries(), now, day)})

    def _key(self, scope: Scope) -> Plan:
        self._check_key(scope)
        return _json({"data": self._books.key()})

    def _set_key(self, body: bytes) -> Plan:
        self._keys.put(body)
        return _json({"set": True})

    def _check_key(self, scope: Scope) -> str:
        key = _check_key(scope)
        if self._keys.is_refused(key):
            raise refuse(401, "User not found.")
        return key

    def _reset(self, _: Scope) -> Plan:
        self._books.reset()
        self._keys.reset()
        return _json({"reset": True})


def _nowhere(_: Scope) -> Plan:
    raise refuse(404, "Not Found")


def _check_key(scope: Scope) -> str:
    """The request's key. Raises Refused (401) unless it looks like one of OpenRouter's (contract, conflict 9)."""
    key = _key_of(scope)
    if not key:
        raise refuse(401, "No cookie auth credentials found")
    if not key.startswith("sk-or-") or key.startswith("sk-or-v1-bad"):
        raise refuse(401, "User not found.")
    return key


def _check_may_chat(key: str) -> None:
    if "limit" in key:
        raise Refused(key_limit())
    if _is_management(key):
        raise refuse(403, "Management keys cannot be used for completions")


def _is_management(key: str) -> bool:
    return key.startswith("sk-or-v1-mgmt-")


def _asked(scope: Scope, name: str) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get(name)
    return values[0] if values else None


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise refuse(400, "Invalid date: it should be YYYY-MM-DD") from None


def _key_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return str(key).strip() if scheme.lower() == "bearer" else ""
    return ""


def _json(value: Any) -> Plan:
    return Plan(200, headers(JSON), [msgspec.json.encode(value)])


def _nothing_to_settle(_events: int, _left: bool) -> None:
    pass


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] == "lifespan.startup":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
