"""The simulator's books: what every generation cost, what `/generation` knows of it, and what went on."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

import msgspec

from faregate.simulator.billing import NOTHING, Charge, Tokens, json_number
from faregate.simulator.catalogue import price_text
from faregate.simulator.turn import Turn

KEPT_REQUESTS = 50

_DAY = 86_400


class Status(StrEnum):
    """`failed`: an error took the place of the answer, and nothing was charged."""

    BILLED = "billed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Bill:
    """One generation, as charged. `ended`: seconds since the epoch. `cancelled`: the client left before the end."""

    turn: Turn
    status: Status
    tokens: Tokens
    charge: Charge
    cancelled: bool
    ended: float

    @property
    def dated(self) -> float:
        """When OpenRouter says it was created (seconds since the epoch)."""
        return self.turn.created - self.turn.markers.days_ago * _DAY

    def wire(self) -> dict[str, Any]:
        """As an entry of `/_simulator/bills`; amounts in dollars, as decimal strings."""
        return {
            "id": self.turn.id,
            "model": self.turn.requested,
            "served_model": self.turn.shown_model,
            "provider": self.turn.provider,
            "streamed": self.turn.stream,
            "cancelled": self.cancelled,
            "prompt_tokens": self.tokens.prompt,
            "completion_tokens": self.tokens.completion,
            "reasoning_tokens": self.tokens.reasoning,
            "cached_tokens": self.tokens.cached,
            "cost": price_text(self.charge.cost),
            "upstream_cost": price_text(self.charge.upstream),
            "is_byok": self.charge.is_byok,
            "total": price_text(self.charge.total),
            "status": self.status,
            "user": self.turn.user,
            "created": self.dated,
        }

    def generation(self) -> dict[str, Any]:
        """As the record of `/generation` (contract, 9.8)."""
        turn, tokens = self.turn, self.tokens
        milliseconds = round((self.ended - turn.created) * 1000)
        cost = msgspec.Raw(json_number(self.charge.cost))
        upstream = self.charge.upstream if self.charge.is_byok else Decimal(0)
        request_id = f"req-{turn.id.removeprefix('gen-')}"
        upstream_id = f"upstream-{turn.id[-8:]}"
        answered = {
            "endpoint_id": f"endpoint-{turn.model.id}",
            "id": upstream_id,
            "is_byok": self.charge.is_byok,
            "latency": 0,
            "model_permaslug": turn.model.permaslug,
            "provider_name": turn.provider,
            "status": 200,
        }
        return {
            "created_at": datetime.fromtimestamp(self.dated, UTC).isoformat().replace("+00:00", "Z"),
            "model": turn.model.permaslug,
            "app_id": 0,
            "external_user": turn.user,
            "streamed": turn.stream,
            "cancelled": self.cancelled,
            "latency": 0,
            "moderation_latency": None,
            "generation_time": milliseconds,
            "tokens_prompt": tokens.prompt,
            "tokens_completion": tokens.completion,
            "native_tokens_prompt": tokens.prompt,
            "native_tokens_completion": tokens.completion,
            "native_tokens_completion_images": None,
            "native_tokens_reasoning": tokens.reasoning,
            "native_tokens_cached": tokens.cached,
            "num_media_prompt": None,
            "num_input_audio_prompt": None,
            "num_media_completion": 0,
            "num_search_results": None,
            "num_fetches": None,
            "web_search_engine": None,
            "origin": "",
            "is_byok": self.charge.is_byok,
            "finish_reason": None if self.cancelled else turn.finish,
            "native_finish_reason": None if self.cancelled else turn.native_finish,
            "service_tier": "default",
            "usage": cost,
            "router": None,
            "user_agent": None,
            "http_referer": None,
            "request_id": request_id,
            "session_id": None,
            "preset_id": None,
            "api_type": "completions",
            "id": turn.id,
            "upstream_id": upstream_id,
            "provider_responses": [answered],
            "total_cost": cost,
            "cache_discount": None,
            "upstream_inference_cost": msgspec.Raw(json_number(upstream)),
            "provider_name": turn.provider,
            "response_cache_source_id": None,
            "data_region": "global",
            "workspace_id": "00000000-0000-4000-8000-000000000000",
        }


class Books:
    """Everything since the start or the last reset; bills are kept without bound until then.

    `clock` gives seconds since the epoch; `/generation` knows an id `delay` seconds after its generation ended.
    """

    def __init__(self, *, clock: Callable[[], float], delay: float) -> None:
        self._clock = clock
        self._delay = delay
        self._requests: deque[tuple[str, list[tuple[bytes, bytes]], bytes]] = deque(maxlen=KEPT_REQUESTS)
        self._in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forget the bills and the requests; those in flight stay counted."""
        self._bills: dict[str, Bill] = {}
        self._requests.clear()
        self._seen = 0
        self._most_in_flight = self._in_flight
        self._spent = Decimal(0)
        self._spent_byok = Decimal(0)

    def arrived(self, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A chat request came."""
        self._requests.append((path, headers, body))
        self._seen += 1
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)

    def departed(self) -> None:
        """A chat request is over."""
        self._in_flight -= 1

    def bill(self, turn: Turn, tokens: Tokens, charge: Charge, *, cancelled: bool) -> None:
        """A generation ended and is charged."""
        self._bills[turn.id] = Bill(turn, Status.BILLED, tokens, charge, cancelled, self._clock())
        self._spent += charge.cost
        self._spent_byok += charge.upstream if charge.is_byok else 0

    def fail(self, turn: Turn) -> None:
        """A generation ended in an error; it costs nothing (contract, 2.1)."""
        tokens = Tokens(turn.tokens.prompt, 0)
        self._bills[turn.id] = Bill(turn, Status.FAILED, tokens, NOTHING, cancelled=False, ended=self._clock())

    def entries(self) -> list[Bill]:
        """All bills, newest last."""
        return list(self._bills.values())

    def bills(self) -> list[dict[str, Any]]:
        """The same, as `/_simulator/bills` tells them."""
        return [bill.wire() for bill in self._bills.values()]

    def generation(self, generation_id: str) -> dict[str, Any] | None:
        """The record of a generation; None while it is not known, and for ever if it failed."""
        bill = self._bills.get(generation_id)
        if bill is None or bill.status is Status.FAILED or bill.turn.markers.generation_lost:
            return None
        return bill.generation() if self._clock() >= bill.ended + self._delay else None

    def stats(self) -> dict[str, int]:
        """How many chat requests came, how many are answered now, and how many were at most at once."""
        return {"requests": self._seen, "in_flight": self._in_flight, "max_in_flight": self._most_in_flight}

    def last(self) -> list[dict[str, Any]]:
        """The last chat requests as they came, newest last. A body that is not JSON is given as text."""
        return [
            {
                "path": path,
                "headers": {name.decode("latin-1"): value.decode("latin-1") for name, value in headers},
                "body": _parsed(body),
            }
            for path, headers, body in self._requests
        ]

    def key(self) -> dict[str, Any]:
        """The `data` of `GET /key` (contract, 8): no limit, and what was spent since the last reset."""
        spent, byok = msgspec.Raw(json_number(self._spent)), msgspec.Raw(json_number(self._spent_byok))
        return {
            "label": "sk-or-v1-sim...ator",
            "limit": None,
            "limit_remaining": None,
            "limit_reset": None,
            "include_byok_in_limit": False,
            "usage": spent,
            "usage_daily": spent,
            "usage_weekly": spent,
            "usage_monthly": spent,
            "byok_usage": byok,
            "byok_usage_daily": byok,
            "byok_usage_weekly": byok,
            "byok_usage_monthly": byok,
            "is_free_tier": False,
            "is_management_key": False,
            "expires_at": None,
            "budgets": [],
            "effective_budget": None,
            "rate_limit": {"requests": -1, "interval": "10s", "note": "Not in use."},
        }


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode("utf-8", "replace")
