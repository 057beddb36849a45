"""What records that are gone had charged to limits that never begin anew.

A limit over all time counts every record there ever was. When retention drops records, what they add up to is carried
over here, in the same transaction, so that nobody may spend it again.
"""

from sqlalchemy import ColumnElement, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.records import Status
from faregate.store.tables import carried_charges, usage_records

_row = usage_records.c
_BY = ("user_id", "groups", "models")


async def carry(connection: AsyncConnection, dropped: ColumnElement[bool]) -> None:
    """Add up what the records that `dropped` is true of had charged. To be called before they are dropped."""
    sums = (func.sum(_row.requests), func.sum(_row.total_tokens), func.sum(_row.cost_nano))
    by = [_row[name] for name in _BY]
    charged = _row.status.not_in([Status.PENDING.value, Status.REFUSED.value])
    totals = select(*by, *sums).where(dropped, charged).group_by(*by)
    await connection.execute(insert(carried_charges).from_select([*_BY, "requests", "tokens", "nano"], totals))
