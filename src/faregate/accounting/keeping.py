"""The second place of a row that is on its way to the database: it survives this process.

Where a ledger is shared that is the ledger itself; where it is in this process, the journal.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from faregate.directory import User
from faregate.ledger.journal import JournalError
from faregate.ledger.port import Hold
from faregate.records import UsageRecord

COMPACT_BYTES = 32 * 1024 * 1024
"""The journal is rewritten above this size, and again when it has grown to twice what was left of it."""

log = logging.getLogger(__name__)


class Keeper(Protocol):
    """Keeps rows until the database has them. Final records come to it by the ledger, when they are settled.

    Its being away is its own affair: none of this raises `LedgerAway`, and none of it waits for its return.
    """

    def refused(self, record: UsageRecord) -> None:
        """Keep the record of a request that was refused: it never reaches the ledger."""
        ...

    def met(self, user: User) -> None:
        """Keep a person as they are now."""
        ...

    async def written(self, people: Sequence[User], records: Sequence[UsageRecord]) -> None:
        """The database has these now: final records, and the latest states of people. They need not be kept."""
        ...


class Log(Protocol):
    """The journal, as far as it is looked after here. All of it but `met` raises `JournalError` when the disk fails."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        ...

    def settled(self, record: UsageRecord) -> None:
        """Keep a final record."""
        ...

    def met(self, user: User) -> None:
        """Keep a person as they are now."""
        ...

    def sync(self) -> None:
        """Put everything on the disk. Blocks; may be called from another thread."""
        ...

    def compact(self, holds: Iterable[Hold], records: Iterable[UsageRecord] = (), people: Iterable[User] = ()) -> None:
        """Forget everything but these."""
        ...


class Unwritten(Protocol):
    """What the database does not have yet: the outbox."""

    def unwritten(self) -> list[UsageRecord]:
        """Final records."""
        ...

    def unwritten_people(self) -> list[User]:
        """People."""
        ...


class JournalKeeper(Keeper):
    """Keeps rows in the journal: on the disk after each batch, and compacted now and then."""

    def __init__(self, journal: Log, *, compact_bytes: int = COMPACT_BYTES) -> None:
        self._journal = journal
        self._live: Callable[[], Iterable[Hold]] | None = None
        self._left: Unwritten | None = None
        self._compact_bytes = self._compact_at = compact_bytes
        self._synced = 0

    def watch(self, live: Callable[[], Iterable[Hold]], left: Unwritten) -> None:
        """From now on the journal may be compacted to the ledger's `live` holds and what is `left` to be written.

        Not before the ledger has taken its holds back from the journal.
        """
        self._live, self._left = live, left

    def refused(self, record: UsageRecord) -> None:
        """Keep a refusal; on a full disk it is in memory only."""
        try:
            self._journal.settled(record)
        except JournalError as error:
            log.warning("the refusal of request %s is in memory only: %s", record.facts.request_id, error)

    def met(self, user: User) -> None:
        """Keep a person as they are now."""
        self._journal.met(user)

    async def written(self, people: Sequence[User], records: Sequence[UsageRecord]) -> None:
        """Put the journal on the disk, or compact it when it has grown."""
        journal = self._journal
        try:
            if self._live is not None and self._left is not None and journal.size > self._compact_at:
                # In one step with what is in memory: nothing can be settled between looking and rewriting.
                journal.compact(self._live(), self._left.unwritten(), self._left.unwritten_people())
                self._compact_at = max(self._compact_bytes, 2 * journal.size)
            elif journal.size != self._synced:
                size = journal.size
                await asyncio.to_thread(journal.sync)
                self._synced = size
        except JournalError as error:
            self._compact_at = journal.size + self._compact_bytes
            log.error("%s", error)  # noqa: TRY400
        except (OSError, RuntimeError) as error:
            # There is no thread, or no file, to be had. The rows are written; the next batch tries again.
            log.error("The journal was not put on the disk: %s", error)  # noqa: TRY400
