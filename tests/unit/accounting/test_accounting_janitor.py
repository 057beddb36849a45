"""What dead nodes left is written and settled by whoever comes first."""

from zoneinfo import ZoneInfo

import pytest
from accounting_world import NOON, FarStore, HandClock, SharedLedger, others_run, record_of, unknown_of

from faregate.accounting.accountant import Accountant
from faregate.accounting.figures import pending_row, unsettled_row
from faregate.accounting.finals import Finals
from faregate.accounting.janitor import AT_ONCE, Janitor
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.spend import NoSpend, Spend
from faregate.directory import User
from faregate.ledger.port import LedgerAway
from faregate.policy.rulebook import Rulebook
from faregate.policy.windows import Calendar
from faregate.records import Status, altered
from faregate.store.errors import StoreUnavailable

ADA = User("ada", "main", "ada", "ada@example.org", "Ada", "user", (), True, None, NOON, NOON)


class Estate:
    """What dead nodes left in the ledger and in the database."""

    def __init__(self):
        self.alive = ("node-1", "node-2")
        self.stream = []
        self.rows = []
        self.claims = []
        self.ledger_away = False
        self.database_away = False

    async def inherit(self, limit):
        if self.ledger_away:
            raise LedgerAway("Redis is away")
        taken, self.stream = self.stream[:limit], self.stream[limit:]
        return taken

    async def claim_pending(self, alive, limit):
        if self.database_away:
            raise StoreUnavailable("the database is away")
        self.claims.append(alive)
        taken, self.rows = self.rows[:limit], self.rows[limit:]
        return taken


class World:
    """A node, and the estate of others."""

    def __init__(self):
        clock = HandClock()
        calendar = Calendar(ZoneInfo("UTC"))
        rulebook = Rulebook([], [])
        self.far = FarStore()
        self.estate = Estate()
        self.ledger = SharedLedger(Spend(calendar, NOON))
        self.reconciler = Reconciler(self.never, clock=clock)
        self.outbox = Outbox(self.far, late=lambda record: self.accountant.recharge(record), clock=clock)
        self.accountant = Accountant(
            self.ledger,
            NoSpend(),
            self.outbox,
            self.reconciler,
            calendar,
            lambda: rulebook,
            finals=Finals(self.far),
            clock=clock,
        )
        self.janitor = Janitor(self.estate, self.estate, self.outbox, self.accountant)

    async def never(self, generation_id):
        return None

    async def written(self):
        await others_run()
        await self.outbox.flush()
        await others_run()
        await self.outbox.flush()
        return [(row.facts.request_id, row.status, row.era) for row in self.far.records]


@pytest.fixture
async def world():
    world = World()
    world.reconciler.start(world.accountant.charge_late)
    yield world
    await world.reconciler.stop()


async def test_rows_that_a_dead_node_had_not_written_are_written(world):
    refusal = altered(record_of("no"), status=Status.REFUSED)
    world.estate.stream = [ADA, altered(record_of("yes"), era=1), refusal]
    await world.janitor.sweep()

    assert await world.written() == [("yes", Status.COMPLETED, 1), ("no", Status.REFUSED, 0)]
    assert world.far.people == [ADA]


async def test_all_rows_are_taken_however_many_there_are(world):
    world.estate.stream = [altered(record_of(f"r{number}"), era=1) for number in range(2 * AT_ONCE + 1)]
    await world.janitor.sweep()

    assert len(await world.written()) == 2 * AT_ONCE + 1


async def test_a_row_of_a_dead_node_whose_era_is_over_is_charged_again(world):
    world.far.era = world.ledger.era = 2
    world.estate.stream = [altered(record_of(), era=1)]
    await world.janitor.sweep()

    assert await world.written() == [("r1", Status.COMPLETED, 2)]


async def test_a_row_that_waited_for_the_ledger_is_settled_on_its_figures_and_another_is_asked_about(world):
    world.estate.rows = [
        unsettled_row(record_of("known", status=Status.ABORTED)),
        pending_row(unknown_of("unknown", generation_id="gen-1")),
    ]
    await world.janitor.sweep()

    assert await world.written() == [("known", Status.ABORTED, 1)]
    assert "unknown" in world.reconciler
    assert world.estate.claims == [("node-1", "node-2")]


async def test_a_request_that_is_asked_about_is_settled_on_figures_that_turn_up(world):
    world.reconciler.ask_later(unknown_of("r1", generation_id="gen-1"))
    world.estate.rows = [unsettled_row(record_of())]
    await world.janitor.sweep()

    assert await world.written() == [("r1", Status.COMPLETED, 1)]
    assert len(world.reconciler) == 0


async def test_a_row_whose_request_another_node_has_settled_is_not_charged_again(world):
    await world.far.write([], [altered(record_of(), era=1)])
    world.estate.rows = [unsettled_row(record_of())]
    await world.janitor.sweep()

    assert await world.written() == [("r1", Status.COMPLETED, 1)]
    assert world.ledger.tries == 0


async def test_nobody_is_taken_for_dead_before_it_is_known_who_is_alive(world):
    world.estate.alive = ()
    world.estate.rows = [unsettled_row(record_of())]
    await world.janitor.sweep()

    assert world.estate.claims == []


async def test_what_is_away_is_looked_at_again_in_the_next_round(world):
    world.estate.stream, world.estate.rows = [altered(record_of("a"), era=1)], [unsettled_row(record_of("b"))]
    world.estate.ledger_away = world.estate.database_away = True
    await world.janitor.sweep()
    world.estate.ledger_away = False
    await world.janitor.sweep()
    assert await world.written() == [("a", Status.COMPLETED, 1)]

    world.estate.database_away = False
    await world.janitor.sweep()
    assert await world.written() == [("a", Status.COMPLETED, 1), ("b", Status.COMPLETED, 1)]
