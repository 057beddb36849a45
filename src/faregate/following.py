"""Keeps the directory of this node in step with the store, which other nodes write to as well.

Every change of a rule or a person has a number in the store, which only grows. A node takes over what has a higher
number than the last that it has: news from other nodes (`wake`) only make it look sooner than it would have, so that
news that got lost cost a second and nothing else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from faregate.accounting.background import background, ended_soon
from faregate.accounting.clock import Clock, SystemClock
from faregate.directory import Directory
from faregate.ledger.port import LedgerAway
from faregate.policy.model import GroupPolicy, Policy
from faregate.policy.rulebook import Shape
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.store.store import Store

BATCH = 1000
"""Changes, and people, that are read at once."""

GATHER_SECONDS = 0.05
"""Seconds for which news wait for company: many at once are one look at the store."""

Learn = Callable[[Iterable[Shape]], Awaitable[None]]

log = logging.getLogger(__name__)


class Following:
    """Follows the changes of the store in the background, every `every` seconds and whenever there is news."""

    def __init__(
        self, store: Store, directory: Directory, learn: Learn, *, every: float = 1.0, clock: Clock | None = None
    ) -> None:
        """`learn` is told the shapes of the rules when they are other ones; it may raise `LedgerAway`."""
        self._store = store
        self._directory = directory
        self._learn = learn
        self._every = every
        self._clock = clock or SystemClock()
        self._number = 0
        self._rules_due = False
        self._learned: tuple[Shape, ...] | None = None
        self._complaints: dict[str, str] = {}
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def failure(self) -> str | None:
        """Why this node may not have the rules and people of the others at the moment: a sentence, None if it has."""
        return " ".join(self._complaints.values()) or None

    def start(self, number: int) -> None:
        """Begin to follow. `number` is the newest change of before the directory was loaded: so none is missed."""
        self._number = number
        self._stopping.clear()
        self._task = background(self._run(), "following")

    def wake(self) -> None:
        """There is news: look now."""
        self._news.set()

    async def stop(self) -> None:
        """Follow no more."""
        self._stopping.set()
        self._news.set()
        if self._task is not None:
            await ended_soon(self._task)
            self._task = None

    async def round(self) -> None:
        """Take over everything that the store has at the time of this call.

        Raises `StoreUnavailable`; what could not be taken over is left to the next round. So are shapes that the
        ledger cannot learn because it is away: the rules apply at once all the same.
        """
        async with self._directory.changing:
            await self._catch_up()
        await self._teach()

    async def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.clear()
            if await self._succeeded():
                await self._clock.wait(self._news, self._every)
                await self._clock.wait(self._stopping, GATHER_SECONDS)
            else:
                # No news makes this look sooner: each would ask a database that has just failed.
                await self._clock.wait(self._stopping, self._every)

    async def _succeeded(self) -> bool:
        try:
            await self.round()
        except StoreUnavailable as error:
            self._complain("database", f"Changes by other nodes cannot be read: {error}.")
            return False
        except Exception:
            # Whatever it was: a node that stops following keeps rules that were lifted long ago.
            log.exception("changes could not be followed; tried again in %g seconds", self._every)
            return False
        self._content("database")
        return True

    async def _catch_up(self) -> None:
        newest = await self._store.newest_change()
        if newest == self._number and not self._rules_due:
            return
        if newest < self._number:
            # A backup was restored: its numbers say nothing about ours.
            await self._take_all(newest)
            return
        number, changed = await self._changes()
        # Asked last: what was there then was there when the changes were read.
        if await self._store.oldest_change() > self._number + 1:
            await self._take_all(max(newest, number))
            return
        people = [
            user
            for first in range(0, len(changed), BATCH)
            for user in await self._store.people(changed[first : first + BATCH])
        ]
        # After the people, so that a policy that was made for them is there; and both at once for those who look.
        rules = await self._rules() if self._rules_due else None
        if rules is not None:
            self._replace_rules(*rules)
        self._directory.follow(people)
        self._number = number

    async def _changes(self) -> tuple[int, list[str]]:
        """The number of the last change, and whom the changes since the last round are about."""
        number = self._number
        people: dict[str, None] = {}
        while True:
            batch = await self._store.changes(number, BATCH)
            for change in batch:
                number = change.number
                if change.kind == "user":
                    people[change.key] = None
                else:
                    self._rules_due = True
            if len(batch) < BATCH:
                return number, list(people)

    async def _rules(self) -> tuple[Iterable[Policy], Iterable[GroupPolicy]] | None:
        try:
            return await self._store.rules()
        except StoreUnavailable:
            raise
        except StoreError as error:
            # People are followed all the same: that somebody may not come in any more does not depend on it.
            self._unreadable(error)
            return None

    async def _take_all(self, number: int) -> None:
        """Take over the whole store, as it is after the change `number`."""
        try:
            snapshot = await self._store.load()
        except StoreUnavailable:
            raise
        except StoreError as error:
            self._unreadable(error)
            return
        self._replace_rules(snapshot.policies, snapshot.group_policies)
        self._directory.follow(snapshot.users)
        self._number = number

    def _replace_rules(self, policies: Iterable[Policy], group_policies: Iterable[GroupPolicy]) -> None:
        self._directory.replace_rules(policies, group_policies)
        self._rules_due = False
        self._content("rules")

    def _unreadable(self, error: StoreError) -> None:
        self._complain("rules", f"The rules stay as they were, because those of the store cannot be read: {error}.")

    async def _teach(self) -> None:
        # Not only after a change by others: what an administrator did here while the ledger was away is due too.
        shapes = self._directory.rulebook.shapes
        if shapes == self._learned:
            return
        try:
            await self._learn(shapes)
        except LedgerAway as error:
            self._complain("ledger", f"The ledger has not learned the limits of the rules: {error}")
            return
        self._learned = shapes
        self._content("ledger")

    def _complain(self, about: str, sentence: str) -> None:
        if about not in self._complaints:
            log.warning("%s Tried again every %g seconds.", sentence, self._every)
        self._complaints[about] = sentence

    def _content(self, about: str) -> None:
        if self._complaints.pop(about, None) is not None:
            log.info("the %s: as it should be again", about)
