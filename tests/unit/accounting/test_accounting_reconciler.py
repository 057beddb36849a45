"""Late settlement: OpenRouter is asked with growing patience, then the estimate is charged. Nothing is forgotten."""

import asyncio
from decimal import Decimal
from itertools import accumulate

import pytest
from accounting_world import NOON, HandClock, others_run, record_of, unknown_of

from faregate.accounting import background
from faregate.accounting.generation import AskFailed, Generation
from faregate.accounting.reconciler import (
    DELAYS,
    EXTRA_QUESTIONS,
    FIRST_PATIENCE,
    MOST_PATIENCE,
    PARALLEL,
    SETTLING,
    Reconciler,
)
from faregate.ledger.journal import JournalError
from faregate.ledger.port import LedgerAway
from faregate.records import Source, Status
from faregate.store.errors import StoreUnavailable

LONG = 1_000_000.0
FOUND = Generation(cost=Decimal("0.002"), prompt_tokens=7, completion_tokens=3)


class World:
    """A hand-driven clock, an OpenRouter that answers what the test says, and a ledger that takes everything."""

    def __init__(self):
        self.clock = HandClock()
        self.answer = None
        self.asked = []
        self.settled = []
        self.full = False
        self.away = None
        self.tries = []
        self.reconciler = Reconciler(self.ask, clock=self.clock)

    async def ask(self, generation_id):
        self.asked.append((self.clock.now - NOON, generation_id))
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def settle(self, record):
        self.tries.append(self.clock.now - NOON)
        if self.full:
            raise JournalError("the disk is full")
        if self.away is not None:
            raise self.away
        self.settled.append(record)
        return True

    @property
    def moments(self):
        return [moment for moment, _ in self.asked]


@pytest.fixture
async def world():
    world = World()
    world.reconciler.start(world.settle)
    yield world
    await world.reconciler.stop()


async def test_the_first_question_comes_within_two_seconds(world):
    world.answer = FOUND
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(2)

    assert world.asked == [(2, "gen-1")]
    [record] = world.settled
    assert (record.cost, record.source, record.status) == (Decimal("0.002"), Source.GENERATION, Status.ABORTED)
    assert record.total_tokens == 10
    assert len(world.reconciler) == 0


async def test_not_found_is_asked_again_at_growing_intervals_and_then_the_bound_is_charged(world):
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(LONG)

    assert world.moments == list(accumulate(DELAYS))
    [record] = world.settled
    assert (record.cost_nano, record.source) == (record.facts.bound_nano(), Source.ESTIMATE)
    assert len(world.reconciler) == 0


async def test_a_generation_that_appears_late_is_charged_as_it_was(world):
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(30)
    assert (len(world.asked), world.settled) == (3, [])

    world.answer = FOUND
    await world.clock.advance(60)

    assert [record.source for record in world.settled] == [Source.GENERATION]


async def test_a_question_that_fails_does_not_end_the_patience(world):
    world.answer = AskFailed("502")
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(sum(DELAYS) + 3 * DELAYS[-1])
    assert len(world.asked) == len(DELAYS) + 3
    assert world.settled == []

    world.answer = FOUND
    await world.clock.advance(DELAYS[-1])

    assert [record.source for record in world.settled] == [Source.GENERATION]


async def test_a_question_that_always_fails_ends_on_the_estimate(world):
    world.answer = AskFailed("401")
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(LONG)

    assert len(world.asked) == len(DELAYS) + EXTRA_QUESTIONS
    assert [record.source for record in world.settled] == [Source.ESTIMATE]


async def test_without_an_id_to_ask_about_the_estimate_is_charged_at_once(world):
    world.reconciler.ask_later(unknown_of(generation_id=None))
    await others_run()

    assert world.asked == []
    assert [record.source for record in world.settled] == [Source.ESTIMATE]


async def test_the_estimate_waits_for_others_who_may_know_better(world):
    world.reconciler.ask_later(unknown_of(generation_id=None), others_first=True)
    await world.clock.advance(DELAYS[0] - 0.1)
    assert world.settled == []

    await world.clock.advance(0.1)

    assert [record.source for record in world.settled] == [Source.ESTIMATE]


async def test_tokens_without_a_cost_are_charged_at_the_prices_of_the_hold(world):
    world.answer = Generation(prompt_tokens=7, completion_tokens=3)
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(LONG)

    [record] = world.settled
    assert (record.cost_nano, record.total_tokens) == (5_000 + 3 * 20, 10)
    assert len(world.asked) == len(DELAYS)


async def test_the_same_request_is_looked_after_once(world):
    world.answer = FOUND
    for _ in range(3):
        world.reconciler.ask_later(unknown_of())
    await world.clock.advance(LONG)

    assert len(world.asked) == len(world.settled) == 1


async def test_only_so_many_questions_are_under_way_at_once(world):
    gate, under_way, most = asyncio.Event(), 0, 0

    async def slow(generation_id):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await gate.wait()
        under_way -= 1
        return FOUND

    world.reconciler._ask = slow
    for number in range(3 * PARALLEL):
        world.reconciler.ask_later(unknown_of(f"r{number}"))
    await world.clock.advance(10)
    assert under_way == PARALLEL

    gate.set()
    await others_run()

    assert most == PARALLEL
    assert len(world.settled) == 3 * PARALLEL


async def test_one_that_is_due_earlier_is_asked_earlier_whenever_it_was_added(world):
    world.reconciler.ask_later(unknown_of("old", generation_id="gen-old"))
    await world.clock.advance(10)
    world.reconciler.ask_later(unknown_of("new", generation_id="gen-new"))
    await world.clock.advance(10)

    assert world.asked == [(2, "gen-old"), (7, "gen-old"), (12, "gen-new"), (17, "gen-new")]


async def test_a_full_disk_delays_the_settlement_and_asks_nothing_twice(world):
    world.answer, world.full = FOUND, True
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(60)
    assert world.settled == []

    world.full = False
    await world.clock.advance(MOST_PATIENCE)

    assert [record.source for record in world.settled] == [Source.GENERATION]
    assert len(world.asked) == 1


async def test_final_figures_that_could_not_be_settled_are_settled_as_they_are(world):
    world.reconciler.settle_later(record_of())
    await world.clock.advance(MOST_PATIENCE)

    assert world.settled == [record_of()]
    assert world.asked == []


async def test_final_figures_end_the_asking(world):
    world.reconciler.ask_later(unknown_of())
    world.reconciler.settle_later(record_of())
    await world.clock.advance(LONG)

    assert world.settled == [record_of()]
    assert world.asked == []


async def test_a_mistake_of_ours_in_one_item_does_not_end_the_others(world, caplog):
    async def mistaken(generation_id):
        if generation_id == "gen-bad":
            raise KeyError("our mistake")
        return FOUND

    world.reconciler._ask = mistaken
    world.reconciler.ask_later(unknown_of("bad", generation_id="gen-bad"))
    world.reconciler.ask_later(unknown_of("good"))
    await world.clock.advance(10)

    assert [record.facts.request_id for record in world.settled] == ["good"]
    assert "bad" in world.reconciler
    assert "request bad could not be settled" in caplog.text


async def test_stopping_in_the_middle_of_a_question_loses_nothing(world):
    async def never(generation_id):
        await asyncio.Event().wait()

    world.reconciler._ask = never
    world.reconciler.ask_later(unknown_of())
    await world.clock.advance(5)
    await world.reconciler.stop()
    assert "r1" in world.reconciler

    world.answer, world.reconciler._ask = FOUND, world.ask
    world.reconciler.start(world.settle)
    await others_run()

    assert [record.source for record in world.settled] == [Source.GENERATION]


async def test_stopping_does_not_wait_for_ever_for_a_settlement_that_has_begun(monkeypatch):
    monkeypatch.setattr(background, "FAREWELL_SECONDS", 0.05)
    begun = asyncio.Event()

    async def never(record):
        begun.set()
        await asyncio.Event().wait()

    reconciler = Reconciler(World().ask)
    reconciler.settle_now(record_of("r1"))
    reconciler.start(never)
    await begun.wait()
    async with asyncio.timeout(10):
        await reconciler.stop()
    assert "r1" in reconciler


async def test_stopping_lets_a_settlement_that_has_begun_come_to_its_end(world):
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(record):
        begun.set()
        await gate.wait()
        return await world.settle(record)

    await world.reconciler.stop()
    world.reconciler.start(slow)
    world.reconciler.ask_later(unknown_of(generation_id=None))
    await begun.wait()
    stopping = asyncio.ensure_future(world.reconciler.stop())
    await others_run()
    assert not stopping.done()

    gate.set()
    await stopping

    assert len(world.settled) == 1


async def test_what_is_added_before_the_start_waits_for_it():
    world = World()
    world.reconciler.ask_later(unknown_of(generation_id=None))
    await others_run()
    assert world.settled == []

    world.reconciler.start(world.settle)
    await others_run()
    await world.reconciler.stop()

    assert len(world.settled) == 1


@pytest.mark.parametrize("away", [LedgerAway("Redis is away"), StoreUnavailable("the database is away")])
async def test_patience_with_what_is_away_grows_and_is_bounded(world, away):
    world.away = away
    world.reconciler.settle_now(record_of())
    await world.clock.advance(24 * 3600)
    waits = [later - earlier for earlier, later in zip(world.tries, world.tries[1:], strict=False)]

    assert world.tries[0] == 0
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (FIRST_PATIENCE, MOST_PATIENCE)

    world.away = None
    await world.clock.advance(MOST_PATIENCE)
    assert world.settled == [record_of()]


async def test_an_outage_is_told_once_for_each_request_however_long_it_lasts(world, caplog):
    world.away = LedgerAway("Redis is away")
    world.reconciler.settle_now(record_of())
    await world.clock.advance(3600)

    assert caplog.text.count("request r1 is settled later: Redis is away") == 1


async def test_a_thousand_settlements_that_waited_are_through_at_once_when_the_ledger_is_back(world):
    world.away = LedgerAway("Redis is away")
    for number in range(1_000):
        world.reconciler.settle_later(record_of(f"r{number}"))
    await world.clock.advance(100.001)
    assert len(world.tries) > 1_000

    world.away = None
    world.reconciler.hurry()
    await others_run()

    assert len({record.facts.request_id for record in world.settled}) == len(world.settled) == 1_000
    assert len(world.reconciler) == 0


async def test_no_more_than_so_many_settlements_are_under_way_at_once(world):
    gate, under_way = asyncio.Event(), 0

    async def slow(record):
        nonlocal under_way
        under_way += 1
        await gate.wait()
        return await world.settle(record)

    await world.reconciler.stop()
    world.reconciler.start(slow)
    for number in range(3 * SETTLING):
        world.reconciler.settle_now(record_of(f"r{number}"))
    await others_run()
    assert under_way == SETTLING

    gate.set()
    await others_run()
    assert len(world.settled) == 3 * SETTLING


async def test_questions_that_wait_for_openrouter_do_not_keep_final_figures_from_being_settled(world):
    async def never(generation_id):
        await asyncio.Event().wait()

    world.reconciler._ask = never
    for number in range(3 * PARALLEL):
        world.reconciler.ask_later(unknown_of(f"r{number}"))
    await world.clock.advance(10)
    world.reconciler.settle_now(record_of("final"))
    await others_run()

    assert [record.facts.request_id for record in world.settled] == ["final"]


async def test_to_hurry_asks_openrouter_nothing_earlier(world):
    world.reconciler.ask_later(unknown_of())
    world.reconciler.hurry()
    await others_run()

    assert world.asked == []


async def test_patience_starts_anew_when_the_ledger_was_back_for_a_moment(world):
    world.away = LedgerAway("Redis is away")
    world.reconciler.settle_now(record_of())
    await world.clock.advance(60)
    world.reconciler.hurry()
    await others_run()
    begun = len(world.tries)
    await world.clock.advance(FIRST_PATIENCE)

    assert len(world.tries) == begun + 1


async def test_a_request_that_is_to_be_settled_again_while_it_is_being_settled_is(world):
    async def twice(record):
        if not world.tries:
            world.reconciler.settle_later(record)
        return await world.settle(record)

    await world.reconciler.stop()
    world.reconciler.start(twice)
    world.reconciler.settle_now(record_of())
    await world.clock.advance(MOST_PATIENCE)

    assert len(world.settled) == 2
    assert len(world.reconciler) == 0


async def test_a_settlement_that_learns_only_after_the_return_that_the_ledger_was_away_is_tried_again_soon(world):
    gate = asyncio.Event()

    async def slow(record):
        if not gate.is_set() and world.clock.now > NOON + 60:
            await gate.wait()
            raise LedgerAway("Redis did not answer")
        return await world.settle(record)

    await world.reconciler.stop()
    world.reconciler.start(slow)
    world.away = LedgerAway("Redis is away")
    world.reconciler.settle_now(record_of())
    await world.clock.advance(70)
    world.away = None
    world.reconciler.hurry()
    gate.set()
    await others_run()
    await world.clock.advance(FIRST_PATIENCE)

    assert world.settled == [record_of()]
