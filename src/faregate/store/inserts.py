"""The statements that write usage records, in the SQL of each database.

A row that is there is replaced while it is pending, and never changes when it is final.

PostgreSQL gets a batch as one JSON document, and the hours that it makes stale in the same statement: a value of its
own for every column of every row takes this process several times as long, as does every statement more.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import make_url

from faregate.records import Status
from faregate.store import eras
from faregate.store.locks import Lock
from faregate.store.tables import usage_records
from faregate.store.types import Instant, pico_of
from faregate.store.values import COLUMNS, KEY, Values, cleaned

# Names that every row of a document repeats: so it is half as long.
_SHORT = {name: f"c{number}" for number, name in enumerate(COLUMNS)}
_COST = COLUMNS.index("cost")
_NUL = rb"\u0000"
_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()

# What is None is left out, which is null to the statement.
_Row: Callable[..., msgspec.Struct] = msgspec.defstruct(
    "_Row", [(name, Any, None) for name in COLUMNS], rename=_SHORT, omit_defaults=True, gc=False
)


def document(parts: Iterable[str]) -> str:
    """All rows of these parts in their order, for the statements of PostgreSQL."""
    return f"[{','.join(parts)}]"


def part(rows: Sequence[Values]) -> str:
    """One or more rows of a document, in their order."""
    try:
        encoded = msgspec.json.encode([_Row(*values) for values in rows])
        if _NUL not in encoded:
            return encoded[1:-1].decode()
    except UnicodeEncodeError:
        # Half a surrogate pair, which is to be replaced too.
        pass
    return msgspec.json.encode([_Row(*cleaned(values)) for values in rows])[1:-1].decode()


def parameters(values: Values) -> Values:
    """A row for the statement of SQLite."""
    cost = values[_COST]
    kept = cleaned(values)
    return kept if cost is None else (*kept[:_COST], pico_of(cost), *kept[_COST + 1 :])


def _sql(*parts: str) -> str:
    return " ".join(parts)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _instant(microseconds: str) -> str:
    return f"timestamptz 'epoch' + {microseconds} * interval '1 microsecond'"


def _is_instant(name: str) -> bool:
    return isinstance(usage_records.c[name].type, Instant)


def _typed(name: str) -> str:
    kind = "bigint" if _is_instant(name) else usage_records.c[name].type.compile(_DIALECT)
    return f"{_SHORT[name]} {kind}"


def _selected(name: str) -> str:
    return _instant(_SHORT[name]) if _is_instant(name) else _SHORT[name]


_INTO = f"INSERT INTO usage_records ({_quoted(COLUMNS)})"
_REPLACING = _sql(
    f"ON CONFLICT ({_quoted(KEY)}) DO UPDATE SET",
    ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name not in KEY),
    f"WHERE usage_records.status = '{Status.PENDING.value}'",
)
# In the order of the document, in which the rows are locked.
_ROWS = _sql(
    f"SELECT {', '.join(map(_selected, COLUMNS))}",
    "FROM json_to_recordset(CAST(CAST($1 AS text) AS json))",
    f"AS _ ({', '.join(map(_typed, COLUMNS))})",
)
_INTO_HOURS = "INSERT INTO stale_hours (hour, touched)"
_AGAIN = "ON CONFLICT (hour) DO UPDATE SET touched = stale_hours.touched + 1"
# Counting what was written puts the hours last: all nodes write to the same few, and have them locked until they are
# done. Who wrote nothing changes nothing either.
_TOUCH = _sql(
    _INTO_HOURS,
    f"SELECT {_instant('hour')}, 1",
    "FROM unnest(CAST($2 AS bigint[])) AS hour",
    "WHERE (SELECT count(*) FROM written) > 0",
    _AGAIN,
)
# A statement does not see what was committed after it began, not even while it waited for the lock. But a row that it
# locks it sees as it is by then; and nobody waits for that one, which changes only under the lock.
_FENCE = _sql(
    "SELECT CAST(value AS bigint) AS era FROM meta",
    f"WHERE key = '{eras.KEY}' AND pg_advisory_xact_lock_shared({Lock.ERA.value}) IS NOT NULL FOR SHARE",
)

SQLITE = _sql(_INTO, f"VALUES ({', '.join('?' * len(COLUMNS))})", _REPLACING)
"""Writes one row: `parameters`."""

SQLITE_TOUCH = _sql(_INTO_HOURS, "VALUES (?, 1)", _AGAIN)
"""Touches one hour, in microseconds since the epoch."""

POSTGRESQL = _sql(f"WITH written AS ({_INTO} {_ROWS} {_REPLACING} RETURNING 1)", _TOUCH)
"""Writes rows and touches hours: a `document`, and the hours in microseconds since the epoch, ascending."""

FENCED = _sql(
    f"WITH fence AS MATERIALIZED ({_FENCE}),",
    f"written AS ({_INTO} {_ROWS} WHERE",
    "(SELECT era FROM fence) <= $3",
    f"{_REPLACING} RETURNING 1),",
    f"touched AS ({_TOUCH})",
    "SELECT era FROM fence",
)
"""The same if the era is not above the third value. Returns the era, which does not end before the transaction does.

To be run before any row is locked.
"""
