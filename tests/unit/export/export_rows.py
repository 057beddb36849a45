"""Usage records as they come from the database."""

from decimal import Decimal

from faregate.records import Source, Status
from faregate.store.usage import UsageRow

NOON = 1_800_014_400.0


def row(request_id: str = "r-1", ts: float = NOON, **more: object) -> UsageRow:
    values = {
        "request_id": request_id,
        "ts": ts,
        "user_id": "u-1",
        "email": "zoe@example.com",
        "connection": "owui",
        "groups": ("physics, applied", "staff"),
        "policy_id": "default",
        "rules": ("the default policy",),
        "model": "openai/gpt-4o",
        "served_model": "openai/gpt-4o",
        "provider": "OpenAI",
        "prompt_tokens": 15,
        "completion_tokens": 6,
        "total_tokens": 21,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
        "cost": Decimal("0.000005791500"),
        "status": Status.COMPLETED,
        "source": Source.USAGE,
        "task": None,
        "chat_id": "c-1",
        "stream": True,
        "ttft_ms": 120,
        "duration_ms": 3400,
        "generation_id": "gen-1",
        "reason": None,
    }
    return UsageRow(**(values | more))


NOTHING_KNOWN = {
    **dict.fromkeys(("email", "served_model", "provider", "cost", "source", "task", "chat_id", "ttft_ms")),
    **dict.fromkeys(("duration_ms", "generation_id", "reason")),
    "groups": (),
    "status": Status.PENDING,
}
