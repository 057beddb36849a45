"""The books of one node, in both shapes: everything that knows what was spent, put together in the order of a start.

Embedded, the ledger is in this process and a journal beside it survives a crash. Shared, many nodes have one ledger in
Redis; there each node's holds and records survive it, and other nodes look after what it leaves.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from faregate.accounting.accountant import Accountant
from faregate.accounting.finals import Finals
from faregate.accounting.janitor import Janitor
from faregate.accounting.keeping import JournalKeeper
from faregate.accounting.lease import Leases
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Ask, Reconciler
from faregate.accounting.recovery import recover_spend
from faregate.accounting.seeding import StoredRecords
from faregate.accounting.spend import NoSpend
from faregate.directory import Directory, User
from faregate.following import Following
from faregate.health import Check
from faregate.ledger.journal import Journal
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Ledger, LedgerAway
from faregate.ledger.redis.channel import Channel
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.engine import SCRIPTS, RedisLedger
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import Keys
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar
from faregate.records import UsageRecord
from faregate.settings import OnOutage, Settings, SettingsError
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Snapshot, Store
from faregate.telemetry.metrics import LedgerNumbers

JOURNAL = "journal.jsonl"

GROUP_SECONDS = 0.2
"""How long a row waits for company where Redis has it too: what a batch costs is the same for one row and for many."""

RECHARGING_PATIENCE = 1.0
"""Seconds that a new epoch of the ledger waits for what this node has to charge again in it."""

log = logging.getLogger(__name__)


async def _nothing() -> None:
    """There is no other node."""


async def _nothing_to_learn(_shapes: Iterable[Shape]) -> None:
    """This ledger counts whatever it is asked for."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the rest of the node needs of its books.

    `away` says whether the ledger cannot be reached; `check` is what readiness says of it. `follow` brings rules and
    people up to date with other nodes, `changed` tells them of a change. `prepare` has limits counted that no rule has
    yet.
    """

    ledger: Ledger
    outbox: Outbox
    reconciler: Reconciler
    accountant: Accountant
    directory: Directory
    check: Callable[[], Check]
    numbers: Callable[[], LedgerNumbers]
    holds: Callable[[], int]
    away: Callable[[], bool] = field(default=lambda: False)
    follow: Callable[[], Awaitable[None]] = _nothing
    changed: Callable[[], Awaitable[None]] = _nothing
    prepare: Callable[[Iterable[Shape]], Awaitable[None]] = _nothing_to_learn


async def embedded(
    settings: Settings, store: Store, calendar: Calendar, node: str, ask: Ask, parts: AsyncExitStack
) -> Books:
    """The books of the only node. What is to be stopped goes to `parts`. Raises `JournalError`, `StoreUnavailable`."""
    journal = Journal.open(settings.data_dir / JOURNAL)
    parts.callback(journal.close)
    keeper = JournalKeeper(journal)
    outbox = Outbox(store, keeper)
    kept = journal.replay()
    # The journal before the sums, the sums before the holds: each is added up from the one before.
    spend = await recover_spend(store, outbox, kept, calendar, time.time())
    ledger = MemoryLedger(spend, journal)
    ledger.restore(kept.holds)
    directory = _directory(await store.load(), outbox.add_user)
    reconciler = Reconciler(ask, delays=settings.delays())
    accountant = Accountant(ledger, spend, outbox, reconciler, calendar, lambda: directory.rulebook)
    await accountant.recover(kept.holds, await store.pending())
    keeper.watch(ledger.live, outbox)
    outbox.start()
    parts.push_async_callback(outbox.stop)
    leases = Leases(ledger, accountant, node)
    leases.start()
    parts.push_async_callback(leases.stop)
    reconciler.start(accountant.charge)
    parts.push_async_callback(reconciler.stop)

    def check() -> Check:
        unwritable = journal.retry()
        return Check("ledger", unwritable is None, True, unwritable or "in this process")

    return Books(
        ledger=ledger,
        outbox=outbox,
        reconciler=reconciler,
        accountant=accountant,
        directory=directory,
        check=check,
        numbers=LedgerNumbers,
        holds=lambda: len(ledger.live()),
    )


async def shared(
    settings: Settings, url: str, store: Store, calendar: Calendar, node: str, ask: Ask, parts: AsyncExitStack
) -> Books:
    """The books of one node of many, whose ledger is the Redis of `url`. What is to be stopped goes to `parts`.

    Redis need not be there: until it is, requests follow LEDGER_ON_OUTAGE. Raises `SettingsError` for a URL that cannot
    work, `StoreUnavailable`.
    """
    keys = Keys(settings.redis_prefix)
    try:
        dialer = dialer_for(url, slot_key=keys.state, connect_timeout=settings.redis_connect_timeout, name="faregate")
    except ValueError as error:
        raise SettingsError(f"REDIS_URL {error}.") from None
    link = Link(
        dialer,
        call_timeout=settings.redis_call_timeout,
        connect_timeout=settings.redis_connect_timeout,
        load=SCRIPTS,
    )
    ledger = RedisLedger(link, StoredRecords(store, calendar), node, prefix=settings.redis_prefix)
    link.start()
    parts.push_async_callback(link.close)
    parts.push_async_callback(ledger.stop)

    # Records whose era is over, until they are charged again; the event is set while there is none.
    late: set[str] = set()
    none_late = asyncio.Event()

    def recharge(record: UsageRecord) -> None:
        late.add(record.facts.request_id)
        none_late.clear()
        accountant.recharge(record)

    outbox = Outbox(store, ledger, late=recharge, group_seconds=GROUP_SECONDS)
    # Before everything is loaded: what changes meanwhile is followed then.
    number = await store.newest_change()
    directory = _directory(await store.load(), outbox.add_user)
    reconciler = Reconciler(ask, delays=settings.delays())
    accountant = Accountant(
        ledger, NoSpend(), outbox, reconciler, calendar, lambda: directory.rulebook, finals=Finals(store)
    )
    following = Following(store, directory, ledger.learn)
    leases = Leases(ledger, accountant, node, janitor=Janitor(ledger, store, outbox, accountant))

    def news(_message: bytes) -> None:
        ledger.look_again()
        leases.hurry()
        following.wake()

    def back() -> None:
        leases.hurry()
        reconciler.hurry()
        following.wake()

    async def prepare(shapes: Iterable[Shape]) -> None:
        try:
            await ledger.learn(shapes)
        except LedgerAway as error:
            log.warning("the new limits count from when the ledger is back: %s", error)

    async def changed() -> None:
        await prepare(directory.rulebook.shapes)
        await ledger.announce()

    async def bring_records() -> None:
        try:
            await outbox.flush()
        except StoreUnavailable as error:
            raise LedgerAway(f"the counters cannot be built without the database: {error}") from error
        if late:
            try:
                async with asyncio.timeout(RECHARGING_PATIENCE):
                    await none_late.wait()
            except TimeoutError:
                log.warning("%d records are charged to the new counters only now", len(late))

    async def charge_late(record: UsageRecord) -> bool:
        charged = await accountant.charge_late(record)
        late.discard(record.facts.request_id)
        if not late:
            none_late.set()
        return charged

    ledger.on_return(back)
    ledger.on_abandoned(reconciler.settle_now)
    ledger.on_epoch(bring_records)
    channel = Channel(dialer, keys.channel, news)
    channel.start()
    parts.push_async_callback(channel.stop)
    await _learn(ledger, directory)
    outbox.start()
    parts.push_async_callback(ledger.leave)
    parts.push_async_callback(outbox.stop)
    following.start(number)
    parts.push_async_callback(following.stop)
    leases.start()
    parts.push_async_callback(leases.stop)
    reconciler.start(charge_late)
    parts.push_async_callback(reconciler.stop)

    def check() -> Check:
        away = ledger.failure
        required = settings.ledger_on_outage is OnOutage.CLOSED
        return Check("ledger", away is None, required, away or f"Redis answers, {len(ledger.alive)} nodes")

    return Books(
        ledger=ledger,
        outbox=outbox,
        reconciler=reconciler,
        accountant=accountant,
        directory=directory,
        check=check,
        numbers=lambda: LedgerNumbers(
            ledger.failure is None, link.outages, link.calls, link.writes, link.timeouts, ledger.rebuilds
        ),
        holds=lambda: ledger.holds,
        away=lambda: ledger.failure is not None,
        follow=following.round,
        changed=changed,
        prepare=prepare,
    )


async def _learn(ledger: RedisLedger, directory: Directory) -> None:
    try:
        await ledger.learn(directory.rulebook.shapes)
    except LedgerAway as error:
        log.warning("this node starts while Redis is away: %s", error)


def _directory(snapshot: Snapshot, changed: Callable[[User], None]) -> Directory:
    return Directory(snapshot.users, snapshot.policies, snapshot.group_policies, changed=changed)
