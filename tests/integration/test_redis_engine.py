"""What only the engine in Redis does: many nodes, lost servers, lost replies, and nothing left behind."""

import asyncio
import time
from collections import Counter as Sums
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from ledger_world import counter, facts, record
from redis_proxy import RedisProxy
from redis_server import RedisCluster, RedisSentinel, RedisServer

from faregate.directory import User
from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Counter,
    Held,
    LedgerAway,
    Refused,
    Released,
    Settled,
    ShapesChanged,
)
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.engine import SCRIPTS, RedisLedger
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import Keys, name_of, shape_of
from faregate.ledger.redis.outbox import WRITTEN_AT_ONCE
from faregate.ledger.seeds import RecordsAway, Seed
from faregate.policy.model import Meter, Window
from faregate.policy.rulebook import Shape
from faregate.records import UsageRecord, altered

SECONDS = 20.0
"""How long a test waits for what must come."""

LEASE = 15.0
KEYS = Keys("e")
TOTAL = counter(window=Window.TOTAL)
SLOTS = counter(Meter.CONCURRENT, None)
RATE = counter(Meter.REQUESTS, Window.MINUTE)
TOKENS = counter(Meter.TOKENS, Window.TOTAL)


class Database:
    """Records by era, as the database keeps them: what was charged in an era that is over is refused."""

    def __init__(self) -> None:
        self.era = 0
        self.rows: dict[str, tuple[int, Sequence[tuple[Counter, int]], float]] = {}
        self.builds = 0
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def next_era(self, above: int = 0) -> int:
        if self.away:
            raise RecordsAway("the database is away")
        self.era = max(self.era, above) + 1
        return self.era

    async def charged(self, shapes: Iterable[Shape], era: int, now: float) -> list[Seed]:
        self.builds += 1
        await self.open.wait()
        wanted, sums, minutes = set(shapes), Sums[Counter](), []
        for request_id, (charged_in, charges, at) in self.rows.items():
            for on, amount in charges:
                if charged_in >= era or shape_of(on) not in wanted:
                    continue
                if on.window is Window.MINUTE:
                    minutes.append(Seed(on, amount, request_id, at))
                else:
                    sums[on] += amount
        return minutes + [Seed(on, amount) for on, amount in sums.items()]

    def write(self, kept: UsageRecord, charges: Sequence[tuple[Counter, int]]) -> bool:
        """False if its era is over."""
        request_id = kept.facts.request_id
        if request_id not in self.rows and 0 < kept.era < self.era:
            return False
        self.rows.setdefault(request_id, (kept.era, charges, kept.facts.admitted_at))
        return True


class Node:
    """One engine with its own link."""

    def __init__(self, url: str, database: Database, name: str, *, by_hand: bool, timeout: float) -> None:
        dialer = dialer_for(url, slot_key=KEYS.state, connect_timeout=2, name="test")
        self.name = name
        self.database = database
        self.link = Link(dialer, call_timeout=timeout, connect_timeout=2, probe_every=0.02, load=SCRIPTS)
        self.ledger = RedisLedger(self.link, database, name, prefix="e", clock_by_hand=by_hand)
        self.now = time.time()
        self.link.start()

    async def ask(self, request_id: str, *claims: Claim, lease: float = LEASE) -> Held | Refused:
        return await self.ledger.reserve(
            facts(request_id, self.now),
            node=self.name,
            lease=lease,
            claims=claims or [Claim(TOTAL, 10)],
            cap_wanted=0,
            cap_min=0,
            now=self.now,
        )

    async def pay(
        self, request_id: str, *charges: tuple[Counter, int], era: int = 0
    ) -> tuple[Settled | AlreadySettled, UsageRecord]:
        kept = altered(record(request_id, self.now), era=era)
        while True:
            try:
                done = await self.ledger.settle(request_id, charges, kept)
            except ShapesChanged:
                continue
            return done, altered(kept, era=done.era) if isinstance(done, Settled) else kept

    async def see(self, *of: Counter) -> list[Balance]:
        return await self.ledger.peek(of, self.now)

    async def close(self) -> None:
        await self.ledger.stop()
        await self.link.close()


Nodes = Callable[..., Node]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer()
    running.start()
    yield running
    running.remove()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[RedisProxy]:
    running = RedisProxy(server.port)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
async def node(server: RedisServer, database: Database) -> Any:
    """Opens nodes."""
    async with AsyncExitStack() as opened:

        def open_node(name: str = "a", *, url: str = "", by_hand: bool = False, timeout: float = 2) -> Node:
            new = Node(url or server.url, database, name, by_hand=by_hand, timeout=timeout)
            opened.push_async_callback(new.close)
            return new

        yield open_node


async def until(happened: Callable[[], Awaitable[Any]], otherwise: str) -> Any:
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if found := await happened():
                    return found
            except LedgerAway:
                pass
            await asyncio.sleep(0.01)
    raise AssertionError(otherwise)


def keys(server: RedisServer) -> list[str]:
    with server.client() as client:
        return sorted(client.scan_iter("*", count=1000))


def stream(server: RedisServer, name: str = "a") -> list[Any]:
    with server.client() as client:
        return client.xrange(KEYS.outbox(name))


# Epochs


async def test_five_nodes_find_redis_empty_and_build_its_counters_once(node: Nodes, database: Database):
    database.rows = {f"r{n}": (0, [(TOTAL, 7)], 0.0) for n in range(100)}
    nodes = [node(name) for name in "abcde"]
    await asyncio.gather(*(one.ask(f"of-{one.name}", Claim(TOTAL, 1)) for one in nodes))
    assert await nodes[0].see(TOTAL) == [Balance(used=700, held=5)]
    assert sum(one.ledger.rebuilds for one in nodes) == 1


async def test_a_flush_under_way_loses_no_hold_and_no_charge(node: Nodes, database: Database, server: RedisServer):
    nodes = [node(name) for name in "abc"]
    for one in nodes:
        await one.ask(f"of-{one.name}")
        await one.ledger.renew(one.name, LEASE, one.now)
    _, written = await nodes[0].pay("spent", (TOTAL, 5))
    assert database.write(written, [(TOTAL, 5)])
    # Everybody knows everybody, so all are waited for.
    for one in nodes:
        await one.ledger.renew(one.name, LEASE, one.now)
    server.flush()

    async def all_there() -> bool:
        return await nodes[0].see(TOTAL) == [Balance(used=5, held=30)]

    for one in nodes:
        one.ledger.look_again()
    await until(all_there, "the holds and charges are not back")
    assert sum(one.ledger.rebuilds for one in nodes) == 2


async def test_nobody_is_admitted_before_the_other_nodes_have_brought_their_holds(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    first, second = node("a"), node("b", url=proxy.url)
    await second.ask("of-b", Claim(TOTAL, 90, limit=100))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)
    server.flush()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=0, held=90, limit=100, needed=20)


async def test_a_minute_of_very_many_requests_is_built_at_the_first_try(server: RedisServer):
    database = Database()
    now = time.time()
    database.rows = {f"r{n}": (0, [(RATE, 1)], now) for n in range(20_000)}
    one = Node(server.url, database, "a", by_hand=False, timeout=0.05)
    try:
        assert await until(lambda: one.see(RATE), "the counters are not built") == [Balance(20_000)]
        assert database.builds == 1
    finally:
        await one.close()


async def test_all_nodes_are_told_of_a_new_one_once(node: Nodes, server: RedisServer):
    one = node("a")
    with server.client() as client, client.pubsub() as heard:
        heard.subscribe(KEYS.channel)
        # A hold alone says nothing of how long its node will live.
        await one.ask("r")
        for _ in range(2):
            await one.ledger.renew("a", LEASE, one.now)
        news = []
        while message := heard.get_message(timeout=0.2):
            news.append(message["data"])
    assert news.count("node") == 1


async def test_a_renewal_that_comes_first_makes_nobody_forget_the_other_nodes(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    first, second = node("a"), node("b", url=proxy.url)
    await second.ask("of-b", Claim(TOTAL, 90, limit=100))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)
    written = asyncio.Event()
    first.ledger.on_epoch(written.wait)
    server.flush()
    await first.ledger.renew(first.name, LEASE, first.now)
    written.set()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=0, held=90, limit=100, needed=20)
    assert first.ledger.alive == ("a", "b")


async def test_what_a_node_has_to_charge_again_is_charged_before_anybody_is_admitted(
    node: Nodes, server: RedisServer, database: Database
):
    database.rows["before"] = (0, [(TOTAL, 1)], 0.0)
    first, second = node("a"), node("b")
    await second.ask("spent", Claim(TOTAL, 90))
    _, unwritten = await second.pay("spent", (TOTAL, 90))
    for one in (second, first):
        await one.ledger.renew(one.name, LEASE, one.now)

    async def built() -> bool:
        with server.client() as client:
            epoch = int(client.get(KEYS.state).partition(".")[0])
            return client.hexists(KEYS.namespace(epoch) + name_of(TOTAL), "b")

    async def charge_again() -> None:
        await until(built, "the counters do not get what was spent before")
        # An admission that does not wait has its chance.
        await asyncio.wait([asking], timeout=0.3)
        # As the outbox and the reconciler do: the call of a standing that may be looked at anew meanwhile.
        second.ledger.look_again()
        done, again = await second.pay("spent", (TOTAL, 90), era=unwritten.era)
        assert isinstance(done, Settled)
        assert database.write(again, [(TOTAL, 90)])

    second.ledger.on_epoch(charge_again)
    server.flush()
    asking = asyncio.create_task(first.ask("of-a", Claim(TOTAL, 20, limit=100)))
    second.ledger.look_again()
    assert await asking == Refused(TOTAL, used=91, held=0, limit=100, needed=20)


async def test_holds_that_come_while_another_node_begins_an_era_are_brought_again(
    node: Nodes, server: RedisServer, database: Database, monkeypatch: pytest.MonkeyPatch
):
    one = node()
    await one.ask("early")
    standing = one.ledger._standing
    bring = standing._bring

    def late() -> Any:
        # The other node is between this one's look and its holds.
        monkeypatch.setattr(standing, "_bring", bring)
        with server.client() as client:
            epoch = client.get(KEYS.state).partition(".")[0]
            database.era += 1
            client.set(KEYS.state, f"{epoch}.{database.era}")
        return bring()

    monkeypatch.setattr(standing, "_bring", late)
    server.flush()

    async def back() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(back, "the hold is lost")


async def test_a_stale_dump_is_noticed_by_the_run_of_the_server_and_its_leftovers_are_removed(database: Database):
    server = RedisServer(persistent=True)
    server.start()
    one = Node(server.url, database, "a", by_hand=False, timeout=2)
    try:
        await one.ask("early")
        server.restart()
        await until(lambda: one.see(TOTAL), "the counters are not built")
        assert await one.see(TOTAL) == [Balance(held=10)]
        assert one.ledger.rebuilds == 2
        former = KEYS.namespace(1).decode()

        async def swept() -> bool:
            return not [key for key in keys(server) if key.startswith(former)]

        await until(swept, "the counters of the former epoch stay")
        assert await one.see(TOTAL) == [Balance(held=10)]
    finally:
        await one.close()
        server.remove()


async def test_a_database_that_was_set_back_does_not_lead_the_ledger_back_to_counters_of_long_ago(database: Database):
    server = RedisServer(persistent=True)
    server.start()
    nodes = [Node(server.url, database, "a", by_hand=False, timeout=2)]
    try:
        database.era = 6
        await nodes[0].ask("early")
        await nodes[0].pay("early", (TOTAL, 10))
        with server.client() as client:
            before = client.get(KEYS.state).split(".")
        assert int(before[0]) == 7
        database.era, database.rows = 0, {}
        await nodes.pop().close()
        server.restart()
        nodes.append(Node(server.url, database, "b", by_hand=False, timeout=2))
        await until(lambda: nodes[0].see(TOTAL), "the counters are not built")
        assert await nodes[0].see(TOTAL) == [Balance()]
        with server.client() as client:
            after = client.get(KEYS.state).split(".")
        assert int(after[0]) > int(before[1])
    finally:
        for one in nodes:
            await one.close()
        server.remove()


async def test_the_database_may_be_away_when_redis_is_lost_and_all_is_well_when_it_is_back(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    await one.ask("early")
    database.away = True
    server.flush()
    with pytest.raises(LedgerAway, match="database"):
        await one.ask("meanwhile")
    assert one.ledger.failure is not None
    database.away = False
    assert await until(lambda: one.see(TOTAL), "the counters are not built") == [Balance(held=10)]
    assert one.ledger.failure is None


async def test_a_request_that_cannot_wait_for_counters_owes_nothing(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    database.open.clear()
    with pytest.raises(LedgerAway, match="being built"):
        await one.ask("impatient")
    database.open.set()
    await until(lambda: one.see(TOTAL), "the counters are not built")
    # It never was on its way: nothing has to be kept about it.
    assert not [key for key in keys(server) if ":x:" in key]
    assert isinstance(await one.ask("impatient"), Held)


# Eras


async def test_a_new_limit_begins_an_era_and_counts_each_record_once(node: Nodes, database: Database):
    one = node()
    _, written = await one.pay("nothing learned", (TOTAL, 3), (TOKENS, 30))
    assert database.write(written, [(TOTAL, 3), (TOKENS, 30)])
    await one.ledger.learn([shape_of(TOTAL)])
    _, unwritten = await one.pay("charged", (TOTAL, 4), (TOKENS, 40))
    await one.ledger.learn([shape_of(TOKENS)])
    assert await one.see(TOTAL, TOKENS) == [Balance(7), Balance(30)]
    assert not database.write(unwritten, [])
    done, amended = await one.pay("charged", (TOTAL, 4), (TOKENS, 40), era=unwritten.era)
    assert isinstance(done, Settled)
    assert database.write(amended, [(TOTAL, 4), (TOKENS, 40)])
    assert await one.see(TOTAL, TOKENS) == [Balance(7), Balance(70)]


async def test_an_era_that_only_the_database_began_is_followed_once_for_many_late_records(
    node: Nodes, database: Database
):
    one = node()
    await one.ledger.learn([shape_of(TOTAL)])
    paid = [(await one.pay(f"r{n}", (TOTAL, 1)))[1] for n in range(30)]
    # A builder that was killed between the two.
    before = await database.next_era()
    assert not database.write(paid[0], [])
    again = await asyncio.gather(*(one.pay(late.facts.request_id, (TOTAL, 1), era=late.era) for late in paid))
    assert database.era == before + 1
    assert all(database.write(kept, [(TOTAL, 1)]) for _, kept in again)
    assert await one.see(TOTAL) == [Balance(30)]


async def test_an_administrator_who_leaves_does_not_leave_the_eras_apart(node: Nodes, server: RedisServer):
    database = Database()
    one = Node(server.url, database, "a", by_hand=False, timeout=2)
    try:
        await one.ledger.learn([shape_of(TOTAL)])
        given: asyncio.Event = asyncio.Event()
        go_on: asyncio.Event = asyncio.Event()
        next_era = database.next_era

        async def slowly(above: int = 0) -> int:
            era = await next_era(above)
            given.set()
            await go_on.wait()
            return era

        database.next_era = slowly  # type: ignore[method-assign] # a database that answers late
        learning = asyncio.create_task(one.ledger.learn([shape_of(TOKENS)]))
        await given.wait()
        learning.cancel()
        await asyncio.gather(learning, return_exceptions=True)
        go_on.set()

        async def in_redis() -> bool:
            with server.client() as client:
                return client.get(KEYS.state) == f"1.{database.era}"

        await until(in_redis, "the era of the database did not get to Redis")
    finally:
        await one.close()


async def test_an_heir_charges_what_was_amended_and_its_record_gets_to_the_database(
    node: Nodes, database: Database, server: RedisServer
):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ledger.learn([shape_of(TOTAL)])
    await one.ledger.renew("a", LEASE, one.now)
    _, first = await one.pay("r", (TOTAL, 4), (TOKENS, 40))
    await one.ledger.learn([shape_of(TOKENS)])
    await one.pay("r", (TOTAL, 4), (TOKENS, 40), era=first.era)
    assert len(stream(server)) == 1
    # It dies before it has written.
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    if not database.write(row, [(TOTAL, 4), (TOKENS, 40)]):
        done, row = await heir.pay("r", (TOTAL, 4), (TOKENS, 40), era=row.era)
        assert isinstance(done, Settled)
        assert database.write(row, [(TOTAL, 4), (TOKENS, 40)])
    await heir.ledger.written((), (row,))
    assert stream(server, "b") == []
    assert await heir.see(TOTAL, TOKENS) == [Balance(4), Balance(40)]


async def test_an_heir_amends_what_it_inherited(node: Nodes, database: Database):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ledger.learn([shape_of(TOTAL)])
    await one.ledger.renew("a", LEASE, one.now)
    await one.pay("r", (TOTAL, 4), (TOKENS, 40))
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    await heir.ledger.learn([shape_of(TOKENS)])
    assert not database.write(row, [])
    done, row = await heir.pay("r", (TOTAL, 4), (TOKENS, 40), era=row.era)
    assert isinstance(done, Settled)
    assert database.write(row, [(TOTAL, 4), (TOKENS, 40)])
    assert await heir.see(TOTAL, TOKENS) == [Balance(4), Balance(40)]


# Unknown outcomes


async def test_a_reserve_without_an_answer_is_released_when_redis_is_back(node: Nodes, server: RedisServer):
    one = node(timeout=0.05)
    await one.ask("before")
    server.pause()
    with pytest.raises(LedgerAway):
        await one.ask("silent")
    server.resume()

    async def released() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(released, "the hold of the reserve that was not answered stays")

    async def remembered() -> bool:
        with server.client() as client:
            return client.exists(KEYS.namespace(1) + b"x:silent") == 1

    await until(remembered, "there is no tombstone")
    with pytest.raises(Released):
        await one.ask("silent")


async def test_one_silence_of_redis_refuses_nobody(node: Nodes, server: RedisServer):
    one = node(timeout=0.05)
    await one.ask("settled")
    server.pause()
    asking = asyncio.create_task(one.ask("asked", Claim(TOTAL, 30)))
    paying = asyncio.create_task(one.pay("settled", (TOTAL, 4)))

    async def noticed() -> bool:
        return one.link.timeouts == 1

    await until(noticed, "the silence is not noticed")
    server.resume()
    assert await asking == Held(0)
    assert isinstance((await paying)[0], Settled)
    assert await one.see(TOTAL) == [Balance(used=4, held=30)]
    assert len(stream(server)) == 1


async def test_a_reserve_whose_caller_leaves_is_released(node: Nodes):
    one = node()
    await one.ask("before")
    asking = asyncio.create_task(one.ask("left"))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    async def released() -> bool:
        return await one.see(TOTAL) == [Balance(held=10)]

    await until(released, "the hold stays")
    assert one.ledger.holds == 1


async def test_a_settle_whose_reply_was_lost_is_repeated_and_charges_once(
    node: Nodes, server: RedisServer, proxy: RedisProxy
):
    one = node(url=proxy.url)
    await one.ask("r")
    proxy.delay(0.2)
    paying = asyncio.create_task(one.pay("r", (TOTAL, 4)))

    async def charged() -> bool:
        return bool(stream(server))

    await until(charged, "the settle does not get to Redis")
    proxy.drop_all()
    proxy.delay(0)
    done, kept = await paying
    assert isinstance(done, Settled)
    assert await one.see(TOTAL) == [Balance(used=4)]
    assert isinstance((await one.pay("r", (TOTAL, 4)))[0], AlreadySettled)
    assert len(stream(server)) == 1
    # The row whose entry was told in the lost reply goes, too, and the request is not remembered for ever.
    await one.ledger.written((), (kept,))
    assert stream(server) == []
    with server.client() as client:
        assert client.ttl(KEYS.namespace(1) + b"x:r") > 0


async def test_a_settle_whose_caller_leaves_is_handed_on(node: Nodes, server: RedisServer):
    one = node()
    left: list[UsageRecord] = []
    one.ledger.on_abandoned(left.append)
    await one.ask("r")
    paying = asyncio.create_task(one.pay("r", (TOTAL, 4)))
    await asyncio.sleep(0)
    paying.cancel()
    await asyncio.gather(paying, return_exceptions=True)
    assert [row.facts.request_id for row in left] == ["r"]
    assert isinstance((await one.pay("r", (TOTAL, 4)))[0], Settled)
    assert await one.see(TOTAL) == [Balance(used=4)]
    assert one.ledger.holds == 0


async def test_a_park_whose_caller_leaves_gives_its_slot_back(node: Nodes):
    one = node()
    await one.ask("r", Claim(SLOTS, 1), Claim(TOTAL, 10))
    parking = asyncio.create_task(one.ledger.park("r"))
    await asyncio.sleep(0)
    parking.cancel()
    await asyncio.gather(parking, return_exceptions=True)

    async def free() -> bool:
        return await one.see(SLOTS, TOTAL) == [Balance(), Balance(held=10)]

    await until(free, "the slot is taken")


# Dead nodes


async def test_of_two_heirs_one_gets_each_hold(node: Nodes):
    dead, *heirs = node("dead", by_hand=True), node("b", by_hand=True), node("c", by_hand=True)
    for n in range(20):
        await dead.ask(f"r{n}")
    later = dead.now + 2 * LEASE
    for heir in heirs:
        await heir.see(TOTAL)
    taken = await asyncio.gather(*(heir.ledger.adopt(heir.name, LEASE, later, 15) for heir in heirs))
    ids = [hold.facts.request_id for holds in taken for hold in holds]
    assert sorted(ids) == sorted(f"r{n}" for n in range(20))
    # The one that was thought dead, and its heir: one charge.
    mine = taken[0][0].facts.request_id
    settled = await asyncio.gather(dead.pay(mine, (TOTAL, 4)), heirs[0].pay(mine, (TOTAL, 10)))
    assert sum(isinstance(done, Settled) for done, _ in settled) == 1


async def test_holds_and_rows_whose_takeover_was_answered_in_vain_are_found_again(node: Nodes, server: RedisServer):
    dead, heir = node("dead", by_hand=True), node("b", by_hand=True)
    await dead.ask("held")
    await dead.ask("spent")
    await dead.pay("spent", (TOTAL, 3))
    heir.now = dead.now + 2 * LEASE
    await heir.see(TOTAL)
    # The same heir, in a process of its own whose memory does not get what Redis gave it.
    forgetful = node("b", by_hand=True)
    forgetful.now = heir.now
    await forgetful.see(TOTAL)
    assert len(await forgetful.ledger.adopt("b", LEASE, heir.now, 10)) == 1
    assert len(await forgetful.ledger.inherit(10)) == 1

    assert await heir.ledger.adopt("b", LEASE, heir.now, 10) == []
    assert await heir.ledger.inherit(10) == []
    heir.now += LEASE
    (hold,) = await heir.ledger.adopt("b", LEASE, heir.now, 10)
    assert hold.facts.request_id == "held"
    (row,) = await heir.ledger.inherit(10)
    assert isinstance(row, UsageRecord)
    await heir.ledger.written((), (row,))
    assert stream(server, "b") == []
    assert await heir.ledger.adopt("b", LEASE, heir.now + LEASE, 10) == []


async def test_a_node_that_was_forgotten_and_never_renews_is_found_dead_with_what_it_holds_then(
    node: Nodes, server: RedisServer
):
    one, heir = node("a", by_hand=True), node("b", by_hand=True)
    await one.ask("over")
    await one.ledger.release("over", one.now)
    heir.now = one.now + 2 * LEASE
    await heir.see(TOTAL)
    assert await heir.ledger.inherit(10) == []
    with server.client() as client:
        assert client.zscore(KEYS.nodes, "a") is None
    one.now = heir.now
    await one.ask("first")
    await one.ask("beside it")
    heir.now += 2 * LEASE
    holds = await heir.ledger.adopt("b", LEASE, heir.now, 10)
    assert {hold.facts.request_id for hold in holds} == {"first", "beside it"}


async def test_a_node_that_renews_late_keeps_everybody_from_being_taken_over(node: Nodes):
    one, heir = node("a"), node("b")
    lease = 1.0
    await one.ask("r", lease=lease)
    await one.ledger.renew("a", lease, one.now)
    await heir.ledger.renew("b", lease, heir.now)

    async def over() -> list[Any]:
        return await heir.ledger.expired(heir.now, 10)

    await until(over, "its lease is not over")
    # Both were kept from Redis for longer than half a lease; the other one comes first.
    await heir.ledger.renew("b", 1.9 * lease, heir.now)
    assert await heir.ledger.adopt("b", lease, heir.now, 10) == []


async def test_a_node_knows_which_of_its_requests_another_one_may_have_settled(node: Nodes):
    one, heir = node("a"), node("b")
    lease = 0.5
    await one.ask("before", lease=lease)
    await one.ledger.renew("a", lease, one.now)
    assert not one.ledger.lapsed("before")
    await heir.see(TOTAL)

    async def over() -> list[Any]:
        return await heir.ledger.adopt("b", LEASE, heir.now, 10)

    await until(over, "its lease is not over")
    assert one.ledger.lapsed("before")
    await one.ledger.renew("a", LEASE, one.now)
    await one.ask("after")
    assert (one.ledger.lapsed("before"), one.ledger.lapsed("after")) == (True, False)
    await one.pay("before", (TOTAL, 4))
    assert not one.ledger.lapsed("before")


async def test_a_node_that_leaves_while_nothing_can_be_built_leaves_all_the_same(
    node: Nodes, server: RedisServer, database: Database
):
    one = node()
    await one.ask("r")
    database.away = True
    server.flush()
    await one.ledger.release("r", one.now)
    async with asyncio.timeout(SECONDS):
        await one.ledger.leave()


# Nothing is left behind


async def test_what_is_over_and_written_leaves_nothing_that_stays(node: Nodes, server: RedisServer):
    one = node()
    hour = counter(at=one.now)
    claims = [Claim(TOTAL, 10), Claim(hour, 10), Claim(RATE, 1), Claim(SLOTS, 1)]

    async def request(number: int) -> UsageRecord:
        await one.ask(f"r{number}", *claims)
        await one.ledger.note(f"r{number}", "gen")
        _, kept = await one.pay(f"r{number}", (TOTAL, 4), (hour, 4), (RATE, 1))
        return kept

    rows = [await request(0)]
    await one.ledger.written((), rows)
    with server.client() as client:
        stays = {key for key in client.scan_iter("*", count=1000) if client.ttl(key) < 0}
        size = client.hlen(KEYS.namespace(1) + b"nothing")
    rows = await asyncio.gather(*(request(n) for n in range(1, 200)))
    await one.ledger.written((), rows)
    with server.client() as client:
        assert {key for key in client.scan_iter("*", count=1000) if client.ttl(key) < 0} == stays
        assert client.xlen(KEYS.outbox("a")) == size == 0
    assert one.ledger.holds == 0
    assert await one.see(TOTAL, hour, SLOTS) == [Balance(800), Balance(800), Balance()]


async def test_counters_of_a_calendar_and_of_minutes_end_by_themselves(node: Nodes, server: RedisServer):
    one = node()
    hour = counter(at=one.now)
    await one.ask("held", Claim(hour, 5), Claim(RATE, 1))
    await one.pay("held", (hour, 5), (RATE, 1))
    await one.pay("not held", (counter(at=one.now, scope_id="bob"), 5))
    with server.client() as client:
        lives = [client.ttl(key) for key in keys(server) if ":1:c" in key or ":1:m" in key or ":1:@m" in key]
    assert len(lives) == 4
    assert all(0 < seconds <= 2 * 3600 + 60 for seconds in lives)


async def test_what_a_minute_no_longer_counts_is_forgotten_when_it_is_in_the_way(node: Nodes, server: RedisServer):
    one = node(by_hand=True)
    full = Claim(RATE, 1, limit=3)
    for n in range(3):
        assert isinstance(await one.ask(f"r{n}", full), Held)
        await one.pay(f"r{n}", (RATE, 1))
        one.now += 1
    refused = await one.ask("too many", full)
    assert isinstance(refused, Refused)
    assert (refused.used, refused.held) == (3, 0)
    one.now += 57.5
    assert isinstance(await one.ask("next", full), Held)
    refused = await one.ask("again too many", full)
    assert isinstance(refused, Refused)
    assert (refused.used, refused.held) == (2, 1)
    assert await one.see(RATE) == [Balance(2, 1)]


async def test_a_minute_that_nobody_fills_does_not_grow_for_ever(node: Nodes, server: RedisServer):
    one = node(by_hand=True)
    key = KEYS.namespace(1) + name_of(RATE)
    times = KEYS.namespace(1) + b"@" + name_of(RATE)
    with server.client() as client:
        for n in range(5):
            await one.ask(f"r{n}", Claim(RATE, 1, limit=100))
            await one.pay(f"r{n}", (RATE, 1))
        one.now += 61
        # As if half a minute had passed in Redis, too.
        client.pexpire(key, 94_000)
        client.pexpire(times, 94_000)
        await one.ask("next", Claim(RATE, 1, limit=100))
        assert client.zcard(times) == 1
        assert client.hlen(key) == len(("u", "h", "e"))
        assert min(client.ttl(key), client.ttl(times)) > 100
        # What is emptied, and so is gone, does not come back to stay for ever.
        await one.ledger.release("next", one.now)
        assert client.exists(times) == 0
        await one.ask("last", Claim(RATE, 1, limit=100))
        assert 0 < client.ttl(times) <= 125
    assert await one.see(RATE) == [Balance(0, 1)]


@pytest.mark.parametrize("limit", [10_000, 1_500], ids=["not in the way", "in the way"])
async def test_what_a_busy_minute_leaves_behind_keeps_nobody_waiting(
    limit: int, node: Nodes, database: Database, server: RedisServer
):
    one = node(by_hand=True)
    times = KEYS.namespace(1) + b"@" + name_of(RATE)
    database.rows = {f"r{n}": (0, [(RATE, 1)], one.now) for n in range(1_500)}
    assert await one.see(RATE) == [Balance(1_500)]
    one.now += 61
    left = []
    with server.client() as client:
        # As if half a minute had passed in Redis, too.
        client.pexpire(times, 94_000)
        for n in range(10):
            client.config_resetstat()
            assert isinstance(await one.ask(f"next{n}", Claim(RATE, 1, limit=limit)), Held)
            # One command for each entry of the minute is what kept Redis, and so everybody, from anything else.
            assert sum(command["calls"] for command in client.info("commandstats").values()) < 40
            left.append(client.zcard(times) - n - 1)
            assert await one.see(RATE) == [Balance(0, n + 1)]
    assert left[0] > 1_000
    assert left[-1] == 0


async def test_a_person_who_changes_twice_before_the_database_has_them_leaves_one_row(node: Nodes, server: RedisServer):
    one = node()
    await one.see(TOTAL)
    user = User("u1", "webui", "ada", None, "Ada", "user", (), True, None, one.now, one.now)
    one.ledger.met(user)
    one.ledger.met(replace(user, name="Lovelace"))
    # The database may be faster than Redis.
    await one.ledger.written((user,), ())

    async def gone() -> bool:
        return not stream(server)

    await until(gone, "the rows stay")


async def test_what_the_scripts_touch_is_in_one_slot_and_they_are_learned_again(node: Nodes, server: RedisServer):
    one = node()
    await one.ask("r")
    with server.client() as client:
        client.script_flush()
    await one.pay("r", (TOTAL, 4))
    assert await one.see(TOTAL) == [Balance(4)]
    assert all(key.startswith("{e}:") for key in keys(server))


# Names and numbers


@pytest.mark.parametrize("name", ["line\nbreak", "null\0byte", "ünï→🎫", "g" * 100_000, '"},{', "{slot}", "e*[a-z]?"])
async def test_a_group_may_have_any_name(node: Nodes, name: str):
    one = node()
    of = counter(window=Window.TOTAL, scope_id=name)
    minute = counter(Meter.REQUESTS, Window.MINUTE, scope_id=name)
    await one.ask("r", Claim(of, 5, limit=1, enforce=False), Claim(minute, 1))
    assert (await one.ask("r", Claim(of, 5), Claim(minute, 1))) == Held(0, (of,))
    await one.pay("r", (of, 3), (minute, 1))
    assert await one.see(of, minute) == [Balance(3), Balance(1)]


async def test_what_cannot_be_counted_exactly_is_refused_before_and_charged_as_the_most_after(node: Nodes):
    one = node()
    with pytest.raises(ValueError, match="more than can be counted"):
        await one.ask("r", Claim(TOTAL, 2**53))
    assert isinstance(await one.ask("limited", Claim(TOKENS, 5, limit=10**30)), Held)
    await one.ledger.learn([shape_of(TOTAL)])
    done, _ = await one.pay("r", (TOTAL, 10**30))
    assert isinstance(done, Settled)
    assert await one.see(TOTAL) == [Balance(2**53 - 1)]


async def test_a_request_may_touch_hundreds_of_counters_and_a_batch_hundreds_of_rows(node: Nodes, server: RedisServer):
    one = node()
    many = [counter(window=Window.TOTAL, scope_id=f"g{n}") for n in range(700)]
    await one.ask("wide", *(Claim(of, 5) for of in many))
    _, wide = await one.pay("wide", *((of, 2**53 - 1) for of in many))
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(500)))]
    await one.ledger.written((), [wide, *rows])
    assert stream(server) == []
    assert await one.see(many[0], many[-1], TOTAL) == [Balance(2**53 - 1), Balance(2**53 - 1), Balance(500)]


async def test_a_long_batch_leaves_the_outbox_in_several_calls(node: Nodes, server: RedisServer):
    one = node()
    number = 2 * WRITTEN_AT_ONCE + 1
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(number)))]
    # More records than rows: the outbox knows nothing of the entries of the others.
    strange = [altered(row, facts=altered(row.facts, request_id=f"s{n}")) for n, row in enumerate(rows)]
    before = one.link.calls
    await one.ledger.written((), [*rows, *strange])
    assert one.link.calls - before == 5
    assert stream(server) == []
    with server.client() as client:
        assert {client.ttl(KEYS.namespace(1) + f"x:r{n}".encode()) > 0 for n in range(number)} == {True}


async def test_a_long_batch_leaves_the_outbox_whoever_leaves_meanwhile(node: Nodes, server: RedisServer):
    one = node()
    number = 2 * WRITTEN_AT_ONCE + 1
    rows = [kept for _, kept in await asyncio.gather(*(one.pay(f"r{n}", (TOTAL, 1)) for n in range(number)))]
    telling = asyncio.create_task(one.ledger.written((), rows))
    await asyncio.sleep(0)
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)

    async def is_empty() -> bool:
        return not stream(server)

    await until(is_empty, "rows that the database has stay in the outbox")


# Cluster and sentinel


async def short_history(one: Node, mark: str) -> None:
    assert isinstance(await one.ask(f"{mark}-1", Claim(TOTAL, 10), Claim(RATE, 1), Claim(SLOTS, 1)), Held)
    assert isinstance(await one.ask(f"{mark}-2", Claim(TOTAL, 10)), Held)
    await one.ledger.renew("a", LEASE, one.now)
    await one.ledger.park(f"{mark}-1")
    done, kept = await one.pay(f"{mark}-1", (TOTAL, 4), (RATE, 1))
    assert isinstance(done, Settled)
    assert one.database.write(kept, [(TOTAL, 4), (RATE, 1)])
    await one.ledger.written((), (kept,))
    await one.ledger.release(f"{mark}-2", one.now)
    assert await one.ledger.adopt("a", LEASE, one.now, 10) == []
    assert await one.ledger.inherit(10) == []


async def test_a_cluster_runs_every_script(node: Nodes):
    cluster = RedisCluster()
    cluster.start()
    one = node(url=cluster.url)
    try:
        await short_history(one, "r")
        assert await one.see(TOTAL, RATE, SLOTS) == [Balance(4), Balance(1), Balance()]
    finally:
        await one.close()
        cluster.remove()


async def test_after_a_fail_over_the_counters_are_built_anew_and_the_hold_is_back(node: Nodes):
    sentinel = RedisSentinel()
    sentinel.start()
    one = node(url=sentinel.url)
    try:
        await short_history(one, "r")
        await one.ask("across")
        await asyncio.to_thread(sentinel.fail_over)
        await until(lambda: one.see(TOTAL), "nothing counts after the fail-over")
        assert await one.see(TOTAL, RATE) == [Balance(4, held=10), Balance(1)]
        await short_history(one, "s")
    finally:
        await one.close()
        sentinel.remove()
