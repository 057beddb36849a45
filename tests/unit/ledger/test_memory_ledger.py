"""The in-process engine: what every engine does, and that its memory stays flat."""

import pytest
from conformance import LedgerConformance
from ledger_world import LEASE, NODE, NOON, SpentBefore, ask, counter, facts, record

from faregate.ledger import memory
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import AlreadySettled, Balance, Claim, Held, Hold, Refused, Settled
from faregate.ledger.remembered import Remembered
from faregate.policy.model import Meter, Window


class TestMemoryLedger(LedgerConformance):
    @pytest.fixture
    def ledger(self, before: SpentBefore) -> MemoryLedger:
        return MemoryLedger(before)


async def test_memory_stays_flat_over_weeks_of_requests_by_many_people():
    ledger = MemoryLedger(SpentBefore())
    sizes: list[int] = []
    for n in range(20_000):
        at = NOON + n * 60.0
        person = f"person-{n % 50}"
        claims = [
            Claim(counter(Meter.USD, Window.HOUR, scope_id=person, at=at), 10),
            Claim(counter(Meter.USD, Window.DAY, scope_id=person, at=at), 10, limit=1, enforce=False),
            Claim(counter(Meter.REQUESTS, Window.MINUTE, scope_id=person), 1),
            Claim(counter(Meter.CONCURRENT, None, scope_id=person), 1),
        ]
        assert isinstance(await ask(ledger, f"r{n}", claims, at=at), Held)
        await ledger.settle(f"r{n}", [(claim.counter, 1) for claim in claims], record(f"r{n}", at))
        sizes.append(len(ledger._books) + len(ledger._forgettable))
    assert max(sizes[10_000:]) <= max(sizes[:10_000])
    assert (ledger._holds, ledger._exceeded) == ({}, {})


async def test_refused_and_forgotten_requests_leave_nothing_behind():
    ledger = MemoryLedger(SpentBefore())
    for n in range(2_000):
        at = NOON + n * 60.0
        slots = counter(Meter.CONCURRENT, None, scope_id=f"person-{n}")
        claims = [Claim(slots, 1), Claim(counter(at=at), 2, limit=1)]
        assert isinstance(await ask(ledger, f"r{n}", claims, at=at), Refused)
        await ledger.release(f"r{n}", at)
    assert len(ledger._books) < 10


async def test_a_counter_is_not_forgotten_while_a_hold_is_on_it():
    ledger = MemoryLedger(SpentBefore())
    spending = counter()
    await ask(ledger, "long", [Claim(spending, 10)])
    await ask(ledger, "days later", [Claim(counter(Meter.TOKENS, Window.TOTAL), 1)], at=NOON + 3 * 86_400)
    assert await ledger.peek([spending], NOON + 3 * 86_400) == [Balance(held=10)]
    await ledger.settle("long", [(spending, 4)], record("long"))
    assert await ledger.peek([spending], NOON + 3 * 86_400) == [Balance(used=4)]


async def test_requests_judged_in_another_order_than_they_came_get_no_extra_room():
    ledger = MemoryLedger(SpentBefore())
    rate = Claim(counter(Meter.REQUESTS, Window.MINUTE), 1, limit=2)
    assert await ask(ledger, "first", [rate]) == Held(0)
    assert await ask(ledger, "overtaking", [rate], at=NOON + 61) == Held(0)
    assert isinstance(await ask(ledger, "overtaken", [rate], at=NOON + 59.5), Refused)


async def test_a_counter_that_was_forgotten_is_answered_from_the_records():
    before = SpentBefore()
    ledger = MemoryLedger(before)
    spending = counter()
    await ask(ledger, "r", [Claim(spending, 10)])
    await ledger.settle("r", [(spending, 4)], record("r"))
    before.charged.append((spending, NOON, 4))
    later = NOON + 3600 + memory.KEPT_AFTER_END
    await ask(ledger, "later", [Claim(counter(at=later), 1)], at=later)
    assert spending not in ledger._books
    assert await ledger.peek([spending], later) == [Balance(used=4)]


async def test_a_clock_that_comes_back_finds_what_was_spent_and_what_is_held():
    before = SpentBefore()
    ledger = MemoryLedger(before)
    spending, slots = counter(Meter.USD, Window.DAY), counter(Meter.CONCURRENT, None)
    for request_id in ("settled", "running"):
        await ask(ledger, request_id, [Claim(spending, 10), Claim(slots, 1)])
    await ledger.settle("settled", [(spending, 4)], record("settled"))
    before.charged.append((spending, NOON, 4))
    ahead = NOON + 2 * 86_400
    for n in range(40):
        await ask(ledger, f"ahead{n}", [Claim(counter(Meter.USD, Window.DAY, at=ahead), 10)], at=ahead + n * 60)
    assert await ledger.peek([spending, slots], NOON) == [Balance(used=4, held=10), Balance(held=1)]
    await ledger.settle("running", [(spending, 4)], record("running"))
    before.charged.append((spending, NOON, 4))
    await ask(ledger, "ahead again", [], at=ahead + 7200)
    assert await ledger.peek([spending, slots], NOON) == [Balance(used=8), Balance()]


@pytest.mark.parametrize("is_settled", [True, False])
async def test_a_clock_that_comes_back_does_not_leave_the_minute_full(is_settled: bool):
    ledger = MemoryLedger(SpentBefore())
    rate = Claim(counter(Meter.REQUESTS, Window.MINUTE), 1, limit=2)
    ahead = NOON + 2 * 86_400
    for request_id in ("a", "b"):
        await ask(ledger, request_id, [rate], at=ahead)
        if is_settled:
            await ledger.settle(request_id, [(rate.counter, 1)], record(request_id, ahead))
    assert await ledger.peek([rate.counter], NOON) == [Balance()]
    assert await ask(ledger, "c", [rate]) == Held(0)
    # Nor does it come back when the clock gets there.
    assert await ledger.peek([rate.counter], ahead) == [Balance()]
    await ledger.settle("a", [(rate.counter, 1)], record("a", ahead))
    await ledger.settle("c", [(rate.counter, 1)], record("c"))
    assert await ledger.peek([rate.counter], NOON) == [Balance(used=1)]


async def test_a_clock_that_is_set_back_by_less_than_a_minute_gives_no_extra_room():
    ledger = MemoryLedger(SpentBefore())
    rate = Claim(counter(Meter.REQUESTS, Window.MINUTE), 1, limit=2)
    for request_id in ("a", "b"):
        await ask(ledger, request_id, [rate], at=NOON + 60)
    refused = await ask(ledger, "c", [rate], at=NOON)
    assert isinstance(refused, Refused)
    assert refused.frees_at == NOON + 120


async def test_a_charge_to_a_window_that_nothing_reads_any_more_is_not_kept():
    ledger = MemoryLedger(SpentBefore())
    later = NOON + 3600 + memory.KEPT_AFTER_END
    await ask(ledger, "now", [], at=later)
    rate = counter(Meter.REQUESTS, Window.MINUTE)
    assert isinstance(await ledger.settle("lost", [(counter(), 4), (rate, 1)], record("lost")), Settled)
    assert ledger._books == {}


async def test_what_was_settled_long_ago_is_still_not_charged_again():
    ledger = MemoryLedger(SpentBefore())
    await ledger.settle("r", [(counter(), 4)], record("r"))
    for n in range(2_000):
        await ledger.settle(f"other{n}", [], record(f"other{n}", NOON + n * 3600))
    assert isinstance(await ledger.settle("r", [(counter(), 4)], record("r")), AlreadySettled)


async def test_holds_from_a_journal_hold_again_once():
    ledger = MemoryLedger(SpentBefore())
    spending, rate = counter(), counter(Meter.REQUESTS, Window.MINUTE)
    hold = Hold(facts("r"), "old-process", NOON + LEASE, cap=9, amounts={spending: 10, rate: 1}, generation_id="gen-1")
    ledger.restore([hold])
    ledger.restore([hold])
    assert await ledger.peek([spending, rate], NOON) == [Balance(held=10), Balance(held=1)]
    assert ledger.live() == [hold]
    assert await ask(ledger, "r", [Claim(spending, 99)]) == Held(9)
    assert await ledger.expired(NOON + LEASE, 10) == [hold]
    await ledger.settle("r", [(spending, 4), (rate, 1)], record("r"))
    ledger.restore([hold])
    assert await ledger.peek([spending, rate], NOON) == [Balance(used=4), Balance(used=1)]
    assert ledger.live() == []


async def test_live_holds_are_listed_in_the_order_they_were_taken():
    ledger = MemoryLedger(SpentBefore())
    for request_id in "abc":
        await ask(ledger, request_id, [Claim(counter(), 1)])
    await ledger.release("b", NOON)
    assert [(hold.facts.request_id, hold.node) for hold in ledger.live()] == [("a", NODE), ("c", NODE)]


def test_the_latest_ended_ids_are_known_and_no_more():
    ended = Remembered(most=3)
    for request_id in ["r0", "r1", "r0", "r2", "r3"]:
        ended.add(request_id)
    assert [request_id in ended for request_id in ("r0", "r1", "r2", "r3")] == [True, False, True, True]
    assert len(ended) == 3
