"""What was charged on one UTC day, summed, and how that compared with OpenRouter's own figures."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Status
from faregate.store.locks import Lock, take
from faregate.store.tables import reconciliations, usage_records

_row = usage_records.c


class DaySum(NamedTuple):
    """What was charged under one set of names. `cost` is in dollars.

    `served_model` is the name on the answers, `model` the one asked for, `models` all names that the records count on:
    those of the model that served, else of all that might have. `provider` is None where it is not known.
    """

    served_model: str | None
    model: str
    models: tuple[str, ...]
    provider: str | None
    requests: int
    cost: Decimal


@dataclass(frozen=True, slots=True)
class DayRow:
    """One model at one provider (empty where it is not known) on one day, by our records and by OpenRouter's.

    Costs are in dollars.
    """

    model: str
    provider: str
    our_requests: int
    our_cost: Decimal
    their_requests: int
    their_cost: Decimal

    @property
    def difference(self) -> Decimal:
        """What we charged more than OpenRouter, in dollars; negative where it was less."""
        return self.our_cost - self.their_cost


_SHOWN = [reconciliations.c[field.name] for field in fields(DayRow)]


async def charged(connection: AsyncConnection, since: float, until: float) -> list[DaySum]:
    """What was charged to requests admitted from `since` up to but without `until` (epoch seconds), summed by names.

    Only what OpenRouter can know of: a refusal never got there, and what failed or was left at no cost and without
    a generation of its own did not become one. Pending records are not in the sums.
    """
    names = (_row.served_model, _row.model, _row.models, _row.provider)
    statement: Select[Any] = (
        select(*names, func.count(), func.sum(_row.cost)).where(*_known_upstream(since, until)).group_by(*names)
    )
    return [DaySum(*row) for row in await connection.execute(statement)]


async def pending(connection: AsyncConnection, since: float, until: float) -> int:
    """How many requests admitted from `since` up to but without `until` (epoch seconds) are still pending."""
    statement = select(func.count()).where(_row.ts >= since, _row.ts < until, _row.status == Status.PENDING.value)
    return int(await connection.scalar(statement) or 0)


async def replace(connection: AsyncConnection, day: date, rows: Sequence[DayRow], checked_at: float) -> None:
    """Keep `rows` as what comparing `day` gave, instead of what an earlier comparison gave."""
    # Two that compare the same day at once would each delete what they see, and then insert the same keys.
    await take(connection, Lock.RECONCILIATIONS)
    await connection.execute(delete(reconciliations).where(reconciliations.c.day == day))
    if rows:
        values = [asdict(row) | {"day": day, "checked_at": checked_at} for row in rows]
        await connection.execute(insert(reconciliations), values)


async def load(connection: AsyncConnection, day: date) -> list[DayRow]:
    """What the last comparison of `day` gave, by model and provider."""
    statement = (
        select(*_SHOWN)
        .where(reconciliations.c.day == day)
        .order_by(reconciliations.c.model, reconciliations.c.provider)
    )
    return [DayRow(*row) for row in await connection.execute(statement)]


def _known_upstream(since: float, until: float) -> Iterable[ColumnElement[bool]]:
    yield _row.ts >= since
    yield _row.ts < until
    yield _row.status.not_in([Status.PENDING.value, Status.REFUSED.value])
    yield or_(_row.cost > Decimal(0), and_(_row.generation_id.is_not(None), _row.status != Status.FAILED.value))
