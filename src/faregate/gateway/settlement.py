"""From what was seen of an answer to its one usage record, settled at once or handed to the reconciler."""

from dataclasses import dataclass, field

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import charged
from faregate.gateway.usage_reader import Usage
from faregate.records import NOTHING, Facts, Source, Status, UsageRecord


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
        if record.source is None:
            await self._accountant.park(record)
        else:
            await self._accountant.settle(record)

    async def free(self, outcome: Outcome, now: float, reason: str, status: Status = Status.FAILED) -> None:
        """Nothing was billed: the exchange ended in an error (contract, section 2.1), or never began.

        Fees of tools that had already run are billed all the same, and then the answer says so.
        """
        if outcome.settled:
            return
        outcome.settled = True
        await self._accountant.settle(_record(outcome, status, now, reason))


_NO_USAGE = Usage(0, 0, 0, 0, 0, None)


def _record(outcome: Outcome, status: Status, now: float, reason: str | None) -> UsageRecord:
    """The record of an exchange; its `source` is None where nobody has told what it cost."""
    usage, first = outcome.usage or _NO_USAGE, outcome.first_byte_at
    source, cost, nano = None, NOTHING, 0
    if usage.cost is not None:
        source, (cost, nano) = Source.USAGE, charged(usage.cost)
    # A struct searches for each name that it is given: the first fields by position halve the work.
    return UsageRecord(
        outcome.facts,
        status,
        source,
        served_model=outcome.served_model,
        provider=outcome.provider,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost=cost,
        cost_nano=nano,
        ttft_ms=None if first is None else _ms(first - outcome.began_at),
        duration_ms=_ms(now - outcome.began_at),
        generation_id=outcome.generation_id,
        reason=reason,
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
