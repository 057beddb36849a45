"""Accounting over its real parts: the ledger, its journal, the database, and a process that may be killed.

Whatever happens in between, each request comes to one record, and the counters are the sum of the records.
"""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import with_cost
from faregate.accounting.generation import Generation
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.recovery import recover_spend
from faregate.ledger.counters import counters_for
from faregate.ledger.journal import Journal
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Claim, Held
from faregate.policy.model import Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook
from faregate.policy.windows import Calendar
from faregate.records import Facts, Source, Status, UsageRecord
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store
from faregate.store.usage import UsageQuery

NOON = 1_800_014_400.0
ZONE = ZoneInfo("Asia/Bangkok")
PEOPLE = {"ada": ("staff", "physics"), "bob": ("physics",), "eve": ()}
MODELS = ("openai/gpt-4o", "anthropic/claude")
LIMITS = (
    Limit(Meter.REQUESTS, Window.HOUR, 10**6),
    Limit(Meter.USD, Window.DAY, 10**15),
    Limit(Meter.TOKENS, Window.WEEK, 10**12),
    Limit(Meter.USD, Window.MONTH, 10**15, Scope.GROUP),
    Limit(Meter.REQUESTS, Window.TOTAL, 10**6, Scope.EVERYONE),
    Limit(Meter.USD, Window.DAY, 10**15, models=("anthropic/*",)),
    Limit(Meter.CONCURRENT, None, 100),
    Limit(Meter.REQUESTS, Window.MINUTE, 10**6),
)
BOUND = Decimal("0.000007")


class Switch:
    """The real store behind a line that can be cut."""

    def __init__(self, store):
        self._store = store
        self.away = False

    async def write(self, people, records):
        if self.away:
            raise StoreUnavailable("the line to the database is cut")
        await self._store.write(people, records)


class Node:
    """One gateway process as far as its books go, composed as the application composes it."""

    def __init__(self, folder, now=NOON, limits=LIMITS):
        self.folder = folder
        self.now = now
        self.told = {}
        self.set_limits(limits)
        self.calendar = Calendar(ZONE)

    def set_limits(self, limits):
        self.rulebook = Rulebook([Policy("default", "Default", tuple(limits))], [])

    def time(self):
        return self.now

    async def ask(self, generation_id):
        return self.told.get(generation_id)

    async def start(self):
        self.store = await Store.open(f"sqlite:///{self.folder / 'faregate.db'}")
        self.line = Switch(self.store)
        self.journal = Journal.open(self.folder / "journal")
        replay = self.journal.replay()
        self.outbox = Outbox(self.line, self.journal, compact_bytes=4096)
        self.spend = await recover_spend(self.store, self.outbox, replay, self.calendar, self.now)
        self.ledger = MemoryLedger(self.spend, self.journal)
        self.ledger.restore(replay.holds)
        self.reconciler = Reconciler(self.ask, delays=(0.0, 0.0))
        self.accountant = Accountant(
            self.ledger, self.spend, self.outbox, self.reconciler, self.calendar, lambda: self.rulebook, clock=self
        )
        await self.accountant.recover(replay.holds, await self.store.pending())
        self.charged = asyncio.Event()
        self.reconciler.start(self.charge)
        return self

    async def charge(self, record):
        try:
            return await self.accountant.charge(record)
        finally:
            self.charged.set()

    async def kill(self):
        """End as kill -9 does: what is only in memory is gone."""
        await self.reconciler.stop()
        self.journal.close()
        await self.store.close()

    async def stop(self):
        await self.reconciler.stop()
        await self.outbox.stop()
        self.journal.close()
        await self.store.close()

    async def reconciled(self):
        while len(self.reconciler):
            await self.charged.wait()
            self.charged.clear()

    def counters(self, user, models=MODELS):
        return counters_for(
            self.rulebook.shapes,
            self.calendar,
            user_id=user,
            groups=PEOPLE[user],
            models=models,
            at=self.now,
        )

    async def admit(self, request_id, user="ada", model=MODELS[0]):
        facts = Facts(
            request_id=request_id,
            admitted_at=self.now,
            connection="main",
            user_id=user,
            email=None,
            groups=PEOPLE[user],
            policy_id="default",
            model=model,
            candidates=(model,),
            cap=100,
            prompt_bound=50,
            fixed_nano=5_000,
            nano_per_output_token=20,
        )
        asks = {Meter.REQUESTS: (1, 0), Meter.TOKENS: (50, 1), Meter.USD: (5_000, 20), Meter.CONCURRENT: (1, 0)}
        claims = [Claim(counter, *asks[counter.meter], 10**15) for counter in self.counters(user, (model,))]
        held = await self.ledger.reserve(
            facts, node="node", lease=15.0, claims=claims, cap_wanted=100, cap_min=1, now=self.now
        )
        assert isinstance(held, Held)
        return facts

    async def rows(self):
        await self.outbox.flush()
        return await self.store.usage(UsageQuery(limit=1000))

    async def counters_are_the_sum_of_the_rows(self):
        """Demand of each counter of each person that it is what the rows in the database add up to."""
        rows = [row for row in await self.rows() if row.status not in {Status.PENDING, Status.REFUSED}]
        for user in PEOPLE:
            counters = [counter for counter in self.counters(user) if counter.window is not None]
            for counter, balance in zip(counters, await self.ledger.peek(counters, self.now), strict=True):
                assert balance.used == sum(amount(row, counter.meter) for row in rows if self.on(row, counter))

    def on(self, row, counter):
        if counter.window is Window.MINUTE:
            in_time = self.now - 60 < row.ts <= self.now + 60
        else:
            in_time = counter.ends == 0 or counter.starts <= row.ts < counter.ends
        concerned = {
            Scope.USER: row.user_id == counter.scope_id,
            Scope.GROUP: counter.scope_id in row.groups,
            Scope.EVERYONE: True,
        }
        return in_time and concerned[counter.scope] and (not counter.models or row.model.startswith("anthropic/"))


def amount(row, meter):
    # One request costs a whole number of nano-dollars in these histories, so that rows tell the exact charge.
    return {Meter.REQUESTS: 1, Meter.TOKENS: row.total_tokens, Meter.USD: int(row.cost * 10**9)}[meter]


def final_of(facts, nano=1_000, tokens=30):
    record = UsageRecord(
        facts=facts,
        status=Status.COMPLETED,
        served_model=facts.model,
        prompt_tokens=10,
        completion_tokens=tokens - 10,
        total_tokens=tokens,
    )
    return with_cost(record, Decimal(nano) / 10**9, Source.USAGE)


def parked_of(facts, generation_id=None):
    return UsageRecord(facts=facts, status=Status.ABORTED, cost=None, generation_id=generation_id)


@pytest.fixture
async def nodes(tmp_path):
    """Starts nodes over one folder, one after the other; the last one is stopped at the end."""
    async with AsyncExitStack() as stack:
        running = []

        async def start(**more):
            node = await Node(tmp_path, **more).start()
            running[:] = [node]
            return node

        async def stop():
            await running[0].stop()

        stack.push_async_callback(stop)
        yield start


async def test_a_killed_process_leaves_nothing_uncharged_and_nothing_charged_twice(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("in the database")))
    await node.rows()
    await node.accountant.settle(final_of(await node.admit("in the journal")))
    await node.admit("unnamed")
    await node.admit("named")
    await node.ledger.note("named", "gen-named")
    await node.accountant.park(parked_of(await node.admit("parked"), "gen-parked"))
    await node.rows()
    await node.ledger.release((await node.admit("released")).request_id, node.now)
    await node.kill()

    node = await nodes()
    node.told = {"gen-named": Generation(cost=Decimal("0.002"), prompt_tokens=7, completion_tokens=3)}
    await node.reconciled()

    rows = {row.request_id: (row.status, row.source, row.cost) for row in await node.rows()}
    assert rows == {
        "in the database": (Status.COMPLETED, Source.USAGE, Decimal("0.000001")),
        "in the journal": (Status.COMPLETED, Source.USAGE, Decimal("0.000001")),
        "unnamed": (Status.FAILED, Source.ESTIMATE, BOUND),
        "named": (Status.FAILED, Source.GENERATION, Decimal("0.002")),
        "parked": (Status.ABORTED, Source.ESTIMATE, BOUND),
    }
    assert node.ledger.live() == []
    await node.counters_are_the_sum_of_the_rows()


async def test_a_process_killed_again_and_again_charges_once(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("a")))
    for _ in range(3):
        await node.kill()
        node = await nodes()
        await node.accountant.settle(final_of(await node.admit(f"after {len(await node.rows())}")))

    assert len(await node.rows()) == 4
    await node.counters_are_the_sum_of_the_rows()


async def test_a_database_that_goes_away_and_comes_back_has_every_record_once(nodes):
    node = await nodes()
    node.outbox.start(node.ledger.live)
    node.line.away = True
    for number in range(700):
        await node.accountant.settle(final_of(await node.admit(f"r{number:03}")))
    with pytest.raises(StoreUnavailable):
        await node.outbox.flush()
    assert node.outbox.lag.waiting == 700
    assert await node.store.usage(UsageQuery()) == []

    node.line.away = False

    assert sorted(row.request_id for row in await node.rows()) == [f"r{number:03}" for number in range(700)]
    assert node.outbox.lag.waiting == 0
    await node.counters_are_the_sum_of_the_rows()


async def test_a_process_killed_while_the_database_is_away_loses_nothing(nodes):
    node = await nodes()
    node.line.away = True
    for number in range(20):
        await node.accountant.settle(final_of(await node.admit(f"r{number}")))
    node.accountant.refuse(UsageRecord(facts=await node.admit("no"), status=Status.REFUSED, requests=0))
    await node.kill()

    node = await nodes()

    assert {row.request_id for row in await node.rows()} == {"no", *(f"r{number}" for number in range(20))}
    await node.counters_are_the_sum_of_the_rows()


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_clock_that_was_ahead_for_a_moment_gives_nobody_their_windows_again(nodes, is_restarted):
    node = await nodes()
    for number in range(3):
        await node.accountant.settle(final_of(await node.admit(f"before {number}")))
    parked = await node.admit("running")
    await node.accountant.park(parked_of(parked))
    node.now += 2 * 86_400
    for number in range(20):
        await node.accountant.settle(final_of(await node.admit(f"ahead {number}", "bob")))
    await node.counters_are_the_sum_of_the_rows()
    # The minute is a rate, not a budget: one that the clock has jumped out of is not waited for.
    node.now -= 2 * 86_400 - 120
    if is_restarted:
        await node.kill()
        node = await nodes(now=node.now)
    await node.accountant.settle(final_of(await node.admit("after", "bob")))
    await node.reconciled()

    await node.counters_are_the_sum_of_the_rows()
    node.now += 2 * 86_400
    await node.counters_are_the_sum_of_the_rows()


async def test_a_record_that_the_database_refuses_is_charged_also_after_a_restart(nodes):
    node = await nodes()
    await node.accountant.settle(final_of(await node.admit("huge"), tokens=2**70))
    await node.kill()
    node = await nodes()

    assert await node.rows() == []
    assert node.outbox.lag.dead == ("huge",)
    [tokens] = [counter for counter in node.counters("ada") if counter.meter is Meter.TOKENS]
    assert [balance.used for balance in await node.ledger.peek([tokens], node.now)] == [2**70]


async def test_the_journal_of_a_busy_node_stays_small(nodes):
    node = await nodes()
    node.outbox.start(node.ledger.live)
    await node.admit("still running")
    for number in range(200):
        await node.accountant.settle(final_of(await node.admit(f"r{number}")))
        if number % 20 == 0:
            await node.outbox.flush()
    await node.outbox.flush()

    assert node.journal.size < 50_000
    assert [hold.facts.request_id for hold in node.journal.replay().holds] == ["still running"]


STEPS = st.one_of(
    st.tuples(st.just("admit"), st.sampled_from(sorted(PEOPLE)), st.sampled_from(MODELS)),
    st.tuples(st.sampled_from(["settle", "again"]), st.integers(0, 50_000), st.integers(10, 500)),
    st.tuples(st.sampled_from(["park", "park unnamed"]), st.integers(0, 50_000)),
    st.tuples(st.sampled_from(["release", "reconcile", "flush", "kill", "stop"])),
    st.tuples(st.just("wait"), st.sampled_from([1, 59, 61, 3600, 86_400, 40 * 86_400])),
    st.tuples(st.just("rules"), st.sets(st.sampled_from(LIMITS))),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(STEPS, max_size=25))
def test_after_any_history_the_counters_are_the_sum_of_the_records(history):
    async def live(folder):
        node = await Node(folder).start()
        open_, over = [], []
        for number, (step, *details) in enumerate(history):
            if step == "admit":
                open_.append(await node.admit(f"r{number}", *details))
            elif step == "settle" and open_:
                over.append(open_.pop(0))
                await node.accountant.settle(final_of(over[-1], *details))
            elif step == "again" and over:
                await node.accountant.settle(final_of(over[-1], *details))
            elif step in {"park", "park unnamed"} and open_:
                facts = open_.pop()
                name = f"gen-{facts.request_id}" if step == "park" else None
                node.told[f"gen-{facts.request_id}"] = Generation(cost=Decimal(details[0]) / 10**9)
                await node.accountant.park(parked_of(facts, name))
            elif step == "release" and open_:
                await node.ledger.release(open_.pop().request_id, node.now)
            elif step == "reconcile":
                await node.reconciled()
            elif step == "flush":
                await node.outbox.flush()
            elif step in {"kill", "stop"}:
                await (node.kill() if step == "kill" else node.stop())
                told, rulebook = node.told, node.rulebook
                node = Node(folder, node.now)
                node.told, node.rulebook = told, rulebook
                await node.start()
                # A request does not outlive its process: nobody is left who could settle it again.
                open_.clear()
                over.clear()
            elif step == "wait":
                node.now += details[0]
                await node.ledger.renew("node", 15.0, node.now)
            elif step == "rules":
                node.set_limits(sorted(details[0], key=LIMITS.index))
                node.accountant.shapes()
            await node.counters_are_the_sum_of_the_rows()
        await node.reconciled()
        assert {hold.facts.request_id for hold in node.ledger.live()} == {facts.request_id for facts in open_}
        await node.counters_are_the_sum_of_the_rows()
        await node.stop()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder)))
