"""What the simulator's `/activity` tells: bills added up by UTC day, model and endpoint (contract, 1)."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec

from faregate.simulator.billing import json_number
from faregate.simulator.books import Bill, Status

DAYS = 30
"""So many completed days are told."""


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    usage: Decimal = Decimal(0)
    byok: Decimal = Decimal(0)
    prompt: int = 0
    completion: int = 0
    reasoning: int = 0


def is_told(day: date, now: float) -> bool:
    """Whether `day` is one of the last completed days at `now` (seconds since the epoch)."""
    return 1 <= (datetime.fromtimestamp(now, UTC).date() - day).days <= DAYS


def activity(bills: Iterable[Bill], now: float, day: date | None = None) -> list[dict[str, Any]]:
    """The rows of `day`, or of all completed days, oldest first. What failed is in none."""
    sums: dict[tuple[date, str, str, str], _Sum] = {}
    for bill in bills:
        billed = datetime.fromtimestamp(bill.dated, UTC).date()
        if bill.status is Status.FAILED or day not in (None, billed) or not is_told(billed, now):
            continue
        model = bill.turn.model
        so_far = sums.setdefault((billed, model.id, model.permaslug, bill.turn.provider), _Sum())
        so_far.requests += 1
        so_far.usage += bill.charge.cost
        so_far.byok += bill.charge.upstream if bill.charge.is_byok else 0
        so_far.prompt += bill.tokens.prompt
        so_far.completion += bill.tokens.completion
        so_far.reasoning += bill.tokens.reasoning
    return [
        {
            "date": billed.isoformat(),
            "model": model,
            "model_permaslug": permaslug,
            "endpoint_id": f"endpoint-{model}",
            "provider_name": provider,
            "usage": msgspec.Raw(json_number(one.usage)),
            "byok_usage_inference": msgspec.Raw(json_number(one.byok)),
            "requests": one.requests,
            "prompt_tokens": one.prompt,
            "completion_tokens": one.completion,
            "reasoning_tokens": one.reasoning,
        }
        for (billed, model, permaslug, provider), one in sorted(sums.items(), key=lambda item: item[0])
    ]
