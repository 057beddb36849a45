"""What is on its way to the database: kept, in order, until the database has it.

Adding is synchronous and never waits. A background task writes in batches (group commit); while the store is away
everything stays here, and with the keeper where there is one. A row that the store refuses is set aside and
reported, so that it neither blocks the others nor is lost in silence. A record whose era is over is handed back, to
be charged again.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple, Protocol

from faregate.accounting.background import background, ended
from faregate.accounting.clock import Clock, SystemClock
from faregate.accounting.keeping import Keeper
from faregate.directory import User
from faregate.records import Status, UsageRecord
from faregate.store.errors import StoreUnavailable

BATCH_ROWS = 500
GROUP_SECONDS = 0.05
"""How long a row waits for company on its way to a database in this process."""

FIRST_PATIENCE = 0.25
MOST_PATIENCE = 5.0
"""Seconds between two tries while the store is away: doubled each time, from the first to the most."""

LAST_PATIENCE = 5.0
"""Seconds that the database may take for one of the last batches: after that the rest stays with the keeper."""

ALARM_ROWS = 10_000
"""From here on, and at each doubling, the backlog is an error in the log. Nothing is ever trimmed."""

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where batches go: the store."""

    async def write(self, people: Sequence[User], records: Sequence[UsageRecord]) -> list[UsageRecord]:
        """Keep all of it or nothing; harmless to repeat. Raises `StoreUnavailable` while the database is away.

        The late records are left out, and returned: those whose era is over, so that no counter would know of them.
        """
        ...


class Lag(NamedTuple):
    """How far the database is behind. `oldest` is the age of the oldest row in seconds, `dead` are request and user
    ids of rows that the store refused, `error` is why the last try failed; None once a try has succeeded."""

    waiting: int
    oldest: float
    error: str | None
    dead: tuple[str, ...]


@dataclass(slots=True, eq=False)
class _Entry:
    number: int
    since: float
    key: str
    row: User | UsageRecord


class Outbox:
    """Users and records that the database does not have yet."""

    def __init__(
        self,
        store: Sink,
        keeper: Keeper | None = None,
        *,
        late: Callable[[UsageRecord], None] | None = None,
        group_seconds: float = GROUP_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        """`late` charges a record again whose era was over when the database saw it. A row waits at most
        `group_seconds` for company."""
        self._store = store
        self._keeper = keeper
        self._late = late
        self._group_seconds = group_seconds
        self._clock = clock or SystemClock()
        # Ordered dicts, not plain ones: those step over every deleted key to find their first.
        self._users: OrderedDict[str, _Entry] = OrderedDict()
        self._records: OrderedDict[str, _Entry] = OrderedDict()
        self._dead: dict[str, _Entry] = {}
        self._added = 0
        self._alarm_at = ALARM_ROWS
        self._error: str | None = None
        self._writing = asyncio.Lock()
        self._work = asyncio.Event()
        self._full = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add_user(self, user: User) -> None:
        """Write `user` as it is now; a state of the same person that still waits is replaced by it."""
        if self._keeper is not None:
            self._keeper.met(user)
        self._add(self._users, user.id, replace(user))

    def add_record(self, record: UsageRecord) -> None:
        """Write `record`. A final record replaces its pending one that still waits, never the other way round."""
        waiting = self._records.get(record.facts.request_id)
        if waiting is not None and record.status is Status.PENDING:
            return
        # The ledger keeps all other final records; a refusal never reaches it.
        if record.status is Status.REFUSED and self._keeper is not None:
            self._keeper.refused(record)
        self._add(self._records, record.facts.request_id, record)

    async def known(self, record: UsageRecord) -> None:
        """The database has `record`, or another one of the same request, by another way: it need not be kept."""
        if self._keeper is not None:
            await self._keeper.written((), (record,))

    @property
    def lag(self) -> Lag:
        """How far the database is behind, for readiness and metrics."""
        first = min((next(iter(rows.values())).since for rows in (self._users, self._records) if rows), default=None)
        oldest = 0.0 if first is None else self._clock.monotonic() - first
        return Lag(self._waiting, oldest, self._error, tuple(self._dead))

    def restore(self, records: Iterable[UsageRecord], people: Iterable[User] = ()) -> None:
        """Take on what a keeper kept for a process that is gone; the database may have it already."""
        for user in people:
            self._add(self._users, user.id, user)
        for record in records:
            self._add(self._records, record.facts.request_id, record)

    def unwritten(self) -> list[UsageRecord]:
        """The final records that the database does not have yet, or refuses. What is pending is in its hold."""
        rows = (entry.row for entry in chain(self._dead.values(), self._records.values()))
        return [row for row in rows if isinstance(row, UsageRecord) and row.status is not Status.PENDING]

    def unwritten_people(self) -> list[User]:
        """The people whose latest state the database does not have yet."""
        return [entry.row for entry in self._users.values() if isinstance(entry.row, User)]

    def start(self) -> None:
        """Begin to write in the background."""
        self._stopping.clear()
        self._task = background(self._run(), "outbox")

    async def stop(self) -> None:
        """End the background task and write what is left. With the store away, the rows stay with the keeper."""
        self._stopping.set()
        self._work.set()
        self._full.set()
        try:
            if self._task is not None:
                async with asyncio.timeout(LAST_PATIENCE):
                    await ended(self._task)
            await self.flush(LAST_PATIENCE)
        except TimeoutError:
            log.error("%d rows are not in the database at the end: it does not answer", self._waiting)  # noqa: TRY400
        except Exception as error:  # noqa: BLE001 - the parts that are stopped after this one must be
            log.error("%d rows are not in the database at the end: %s", self._waiting, _said(error))  # noqa: TRY400
        if self._task is not None:
            self._task.cancel()
            await ended(self._task)
            self._task = None

    async def flush(self, patience: float | None = None) -> None:
        """Return once all that was added before this call is written or reported as refused.

        Raises `StoreUnavailable` if the store is away, and TimeoutError if a batch takes longer than `patience`
        seconds; everything is kept then.
        """
        upto = self._added
        while self._oldest() <= upto:
            async with asyncio.timeout(patience):
                await self._write_batch()

    async def _run(self) -> None:
        patience = FIRST_PATIENCE
        while not self._stopping.is_set():
            await self._clock.wait(self._work, None)
            await self._clock.wait(self._full, self._group_seconds)
            try:
                await self._write_batch()
                patience = FIRST_PATIENCE
            except Exception as error:  # noqa: BLE001 - whatever it was, the rows that come must be written
                log.warning("%d rows wait for the database: %s", self._waiting, _said(error))
                await self._clock.wait(self._stopping, patience)
                patience = min(2 * patience, MOST_PATIENCE)

    async def _write_batch(self) -> None:
        async with self._writing:
            # People first: a record is never in the database before the person it belongs to.
            batch = list(islice(chain(self._users.values(), self._records.values()), BATCH_ROWS))
            if not batch:
                return
            try:
                await self._write(batch)
            except Exception as error:
                self._error = _said(error)
                raise
            finally:
                self._rearm()
            self._error = None

    async def _write(self, batch: list[_Entry]) -> None:
        people = [entry.row for entry in batch if isinstance(entry.row, User)]
        records = [entry.row for entry in batch if isinstance(entry.row, UsageRecord)]
        try:
            late = await self._store.write(people, records)
        except StoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a row does to the store, the others must get through
            if len(batch) > 1:
                half = len(batch) // 2
                await self._write(batch[:half])
                await self._write(batch[half:])
                return
            # Only the kind of error: its text may quote what is in the row.
            self._bury(batch[0], type(error).__name__)
            self._leave(batch[0])
        else:
            await self._taken(batch, {record.facts.request_id for record in late})

    async def _taken(self, batch: list[_Entry], late: set[str]) -> None:
        """The database has `batch` now, but for the records that it called `late`."""
        latest = [entry for entry in batch if self._leave(entry)]
        for key in self._dead.keys() & {entry.key for entry in batch} - late:
            del self._dead[key]
        people: list[User] = []
        records: list[UsageRecord] = []
        for entry in latest:
            row = entry.row
            if isinstance(row, User):
                people.append(row)
            elif entry.key in late:
                self._hand_back(entry, row)
            # A pending row says nothing of the final one, which may be with the keeper before it comes here.
            elif row.status is not Status.PENDING:
                records.append(row)
        if self._keeper is not None:
            await self._keeper.written(people, records)

    def _leave(self, entry: _Entry) -> bool:
        """Let go of `entry`; False if a newer state of the same row has taken its place, and has to be written too."""
        rows = self._users if isinstance(entry.row, User) else self._records
        if rows.get(entry.key) is not entry:
            return False
        del rows[entry.key]
        return True

    def _hand_back(self, entry: _Entry, record: UsageRecord) -> None:
        if self._late is None:
            self._bury(entry, f"its era {record.era} is over, and nobody is there to charge it again")
        else:
            self._late(record)

    def _bury(self, entry: _Entry, why: str) -> None:
        log.error("the database refuses %s %s: %s", type(entry.row).__name__, entry.key, why)
        self._dead[entry.key] = entry

    def _add(self, rows: OrderedDict[str, _Entry], key: str, row: User | UsageRecord) -> None:
        self._added += 1
        before = rows.get(key)
        if before is None:
            rows[key] = _Entry(self._added, self._clock.monotonic(), key, row)
        else:
            rows[key] = _Entry(before.number, before.since, key, row)
        self._work.set()
        waiting = self._waiting
        if waiting >= BATCH_ROWS:
            self._full.set()
        if waiting >= self._alarm_at:
            log.error("%d rows wait for the database; they are kept, in memory", waiting)
            self._alarm_at *= 2

    def _rearm(self) -> None:
        if self._stopping.is_set():
            return
        if not self._waiting:
            self._work.clear()
            self._alarm_at = ALARM_ROWS
        if self._waiting < BATCH_ROWS:
            self._full.clear()

    def _oldest(self) -> float:
        firsts = (next(iter(rows.values())).number for rows in (self._users, self._records) if rows)
        return min(firsts, default=float("inf"))

    @property
    def _waiting(self) -> int:
        return len(self._users) + len(self._records)


def _said(error: Exception) -> str:
    # Of an error that nobody foresaw only its kind: its text may quote what is in a row.
    return str(error) if isinstance(error, StoreUnavailable) else type(error).__name__
