"""The columns of an export: those of `GET /admin/usage`, in its order, under its names."""

from operator import attrgetter
from typing import Any

from faregate.admin.formats import dollars, instant
from faregate.store.usage import UsageRow

COLUMNS = (
    "request_id",
    "ts",
    "user_id",
    "email",
    "connection",
    "model",
    "served_model",
    "provider",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cost",
    "status",
    "source",
    "task",
    "chat_id",
    "stream",
    "ttft_ms",
    "duration_ms",
    "generation_id",
    "reason",
    "policy_id",
    "groups",
    "rules",
)

values_of = attrgetter(*COLUMNS)
"""The values of a row, in the order of `COLUMNS`."""

_TS = COLUMNS.index("ts")
_COST = COLUMNS.index("cost")


def told(row: UsageRow) -> list[Any]:
    """The values of `row` as the admin API tells them: times in ISO 8601, dollars as plain decimal strings."""
    values = list(values_of(row))
    values[_TS] = instant(row.ts)
    values[_COST] = None if row.cost is None else dollars(row.cost)
    return values
