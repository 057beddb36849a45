"""From what was seen of an answer to its one usage record, settled at once or handed to the reconciler."""

from dataclasses import dataclass, field

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import with_cost
from faregate.gateway.usage_reader import Usage
from faregate.records import Facts, Source, Status, UsageRecord


@dataclass(slots=True)
class Outcome:
    """What is known of an exchange so far. Times are in seconds of the monotonic clock."""

    facts: Facts
    began_at: float
    first_byte_at: float | None = None
    generation_id: str | None = None
    provider: str | None = None
    served_model: str | None = None
    usage: Usage | None = None
    told: str | None = None
    """Why the client was told that there is no answer, where one may still come."""
    under_way: bool = False
    """Whether OpenRouter may be at work on it, or was: then it may have cost something."""
    settled: bool = field(default=False, init=False)


class Settler:
    """Brings each admitted request to its end, once."""

    def __init__(self, accountant: Accountant) -> None:
        self._accountant = accountant

    async def finish(self, outcome: Outcome, status: Status, now: float, reason: str | None = None) -> None:
        """The exchange is over and what it cost is in `outcome.usage`; without that it stays pending."""
        if outcome.settled:
            return
        outcome.settled = True
        if outcome.told is not None:
            status, reason = Status.FAILED, outcome.told
        record = _record(outcome, status, now, reason)
        usage = outcome.usage
        if usage is not None and usage.cost is not None:
            await self._accountant.settle(with_cost(record, usage.cost, Source.USAGE))
        else:
            await self._accountant.park(record)

    async def free(self, outcome: Outcome, now: float, reason: str, status: Status = Status.FAILED) -> None:
        """Nothing was billed: the exchange ended in an error (contract, section 2.1), or never began."""
        if outcome.settled:
            return
        outcome.settled = True
        usage = outcome.usage
        record = _record(outcome, status, now, reason)
        if usage is not None and usage.cost is not None:
            # Fees of tools that had already run are billed all the same, and then the answer says so.
            record = with_cost(record, usage.cost, Source.USAGE)
        await self._accountant.settle(record)


def _record(outcome: Outcome, status: Status, now: float, reason: str | None) -> UsageRecord:
    usage = outcome.usage
    first = outcome.first_byte_at
    return UsageRecord(
        facts=outcome.facts,
        status=status,
        served_model=outcome.served_model,
        provider=outcome.provider,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        total_tokens=usage.total_tokens if usage else 0,
        cached_tokens=usage.cached_tokens if usage else 0,
        reasoning_tokens=usage.reasoning_tokens if usage else 0,
        ttft_ms=None if first is None else _ms(first - outcome.began_at),
        duration_ms=_ms(now - outcome.began_at),
        generation_id=outcome.generation_id,
        reason=reason,
    )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
