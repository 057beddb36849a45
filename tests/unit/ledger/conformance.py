"""What every engine of the ledger does, sentence by sentence. An engine's tests inherit this and give `ledger`."""

import asyncio
from collections.abc import Iterable

import pytest
from ledger_world import LEASE, NODE, NOON, SpentBefore, ask, counter, facts, learn, record

from faregate.ledger.port import (
    AlreadySettled,
    Balance,
    Claim,
    Counter,
    Held,
    Hold,
    Ledger,
    Refused,
    Released,
    Settled,
)
from faregate.policy.model import Meter, Scope, Window

USD = counter()
TOKENS = counter(Meter.TOKENS)
SLOTS = counter(Meter.CONCURRENT, None)
RATE = counter(Meter.REQUESTS, Window.MINUTE)
TOTAL = counter(Meter.USD, Window.TOTAL)


async def balance(ledger: Ledger, of: Counter, at: float = NOON) -> Balance:
    (found,) = await ledger.peek([of], at)
    return found


def ids(holds: Iterable[Hold]) -> list[str]:
    return [hold.facts.request_id for hold in holds]


class LedgerConformance:
    @pytest.fixture
    def before(self) -> SpentBefore:
        return SpentBefore()

    @pytest.fixture
    def ledger(self, before: SpentBefore) -> Ledger:
        raise NotImplementedError("an engine's tests give the ledger that starts from `before`")

    # The cap

    async def test_a_request_that_fits_gets_the_cap_it_wants(self, ledger: Ledger):
        got = await ask(ledger, "r", [Claim(USD, 10, 2, limit=210)], wanted=100, least=10)
        assert got == Held(100)
        assert await balance(ledger, USD) == Balance(used=0, held=210)

    async def test_the_cap_is_fitted_to_half_of_what_is_left(self, ledger: Ledger):
        got = await ask(ledger, "r", [Claim(USD, 10, 2, limit=209)], wanted=100, least=10)
        assert got == Held((209 // 2 - 10) // 2)
        assert await balance(ledger, USD) == Balance(used=0, held=10 + 2 * 47)

    async def test_half_of_what_is_left_counts_what_others_hold_and_used(self, ledger: Ledger, before: SpentBefore):
        before.charged.append((USD, NOON, 30))
        await ask(ledger, "other", [Claim(USD, 20)])
        assert await ask(ledger, "r", [Claim(USD, 0, 1, limit=150)], wanted=101, least=10) == Held(50)

    async def test_the_least_cap_is_granted_where_half_does_not_pay_for_it_but_all_does(self, ledger: Ledger):
        assert await ask(ledger, "r", [Claim(USD, 0, 1, limit=12)], wanted=100, least=12) == Held(12)

    async def test_the_least_cap_that_does_not_fit_in_all_that_is_left_is_refused(self, ledger: Ledger):
        got = await ask(ledger, "r", [Claim(USD, 1, 1, limit=12)], wanted=100, least=12)
        assert got == Refused(USD, used=0, held=0, limit=12, needed=13)
        assert await balance(ledger, USD) == Balance()

    async def test_a_claim_that_no_cap_can_shrink_is_refused(self, ledger: Ledger, before: SpentBefore):
        before.charged.append((USD, NOON, 5))
        await ask(ledger, "other", [Claim(USD, 3)])
        got = await ask(ledger, "r", [Claim(USD, 3, limit=10)], wanted=100, least=12)
        assert got == Refused(USD, used=5, held=3, limit=10, needed=3)

    async def test_the_smallest_cap_of_several_claims_wins_and_is_held_on_all(self, ledger: Ledger):
        claims = [Claim(USD, 10, 7, limit=1000), Claim(TOKENS, 50, 1, limit=400), Claim(TOTAL, 10, 7, limit=600)]
        got = await ask(ledger, "r", claims, wanted=300, least=10)
        assert got == Held((600 // 2 - 10) // 7)
        held = [found.held for found in await ledger.peek([USD, TOKENS, TOTAL], NOON)]
        assert held == [10 + 7 * 41, 50 + 41, 10 + 7 * 41]

    async def test_the_first_claim_that_does_not_fit_refuses_and_nothing_is_held(self, ledger: Ledger):
        claims = [Claim(SLOTS, 1, limit=3), Claim(TOKENS, 9, limit=8), Claim(USD, 9, limit=1)]
        assert await ask(ledger, "r", claims) == Refused(TOKENS, 0, 0, limit=8, needed=9)
        assert await ledger.peek([SLOTS, TOKENS, USD], NOON) == [Balance()] * 3

    async def test_a_least_cap_above_the_wanted_one_asks_for_no_more_than_is_wanted(self, ledger: Ledger):
        assert await ask(ledger, "r", [Claim(USD, 0, 1, limit=5)], wanted=5, least=256) == Held(5)

    async def test_a_free_request_fits_a_limit_that_is_used_up_but_not_one_that_is_exceeded(self, ledger: Ledger):
        await ask(ledger, "first", [Claim(USD, 10, limit=10)])
        assert await ask(ledger, "free", [Claim(USD, 0, limit=10)]) == Held(0)
        assert isinstance(await ask(ledger, "over", [Claim(USD, 0, limit=9)]), Refused)

    async def test_a_counter_without_a_limit_counts_and_refuses_nobody(self, ledger: Ledger):
        assert await ask(ledger, "r", [Claim(USD, 10**15, 10)], wanted=100, least=1) == Held(100)
        assert await balance(ledger, USD) == Balance(held=10**15 + 1000)

    async def test_an_unenforced_limit_neither_refuses_nor_shrinks_but_is_reported(self, ledger: Ledger):
        claims = [Claim(USD, 5, 1, limit=1, enforce=False), Claim(TOKENS, 5, 1, limit=1000, enforce=False)]
        assert await ask(ledger, "r", claims, wanted=100, least=1) == Held(100, exceeded=(USD,))
        assert await balance(ledger, USD) == Balance(held=105)

    async def test_whether_an_unenforced_limit_is_broken_is_judged_at_the_cap_that_is_granted(self, ledger: Ledger):
        claims = [Claim(USD, 0, 1, limit=60, enforce=False), Claim(TOKENS, 0, 1, limit=99)]
        assert await ask(ledger, "r", claims, wanted=100, least=1) == Held(49)

    async def test_two_limits_on_one_counter_hold_it_once_and_the_tighter_one_decides(self, ledger: Ledger):
        claims = [Claim(USD, 0, 1, limit=100), Claim(USD, 0, 1, limit=50)]
        assert await ask(ledger, "r", claims, wanted=60, least=1) == Held(25)
        assert await balance(ledger, USD) == Balance(held=25)

    @pytest.mark.parametrize("claim", [Claim(USD, -1), Claim(USD, 1, -1)])
    async def test_a_negative_claim_is_an_error(self, ledger: Ledger, claim: Claim):
        with pytest.raises(ValueError, match="negative"):
            await ask(ledger, "r", [claim])
        assert await balance(ledger, USD) == Balance()

    async def test_two_hundred_at_once_with_room_for_ten_are_ten(self, ledger: Ledger):
        claims = [Claim(USD, 50, 5, limit=1009), Claim(SLOTS, 1)]
        got = await asyncio.gather(*(ask(ledger, f"r{n}", claims, wanted=10, least=10) for n in range(200)))
        assert sum(isinstance(answer, Held) for answer in got) == 10
        assert await ledger.peek([USD, SLOTS], NOON) == [Balance(held=1000), Balance(held=10)]

    # The hold

    async def test_the_holds_facts_know_the_cap_that_was_granted(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 0, 1, limit=60)], wanted=100, least=1)
        (hold,) = await ledger.expired(NOON + LEASE, 10)
        assert (hold.cap, hold.facts.cap, hold.node, hold.amounts) == (30, 30, NODE, {USD: 30})

    async def test_a_live_hold_answers_a_second_reserve_with_the_same_and_holds_nothing_more(self, ledger: Ledger):
        claims = [Claim(USD, 0, 1, limit=60), Claim(TOKENS, 9, limit=1, enforce=False)]
        first = await ask(ledger, "r", claims, wanted=100, least=1)
        again = await ask(ledger, "r", claims, wanted=10, least=1, at=NOON + 1)
        assert again == first == Held(30, exceeded=(TOKENS,))
        assert await balance(ledger, USD) == Balance(held=30)

    async def test_what_was_settled_cannot_be_held_again(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.settle("r", [(USD, 4)], record("r"))
        with pytest.raises(Released):
            await ask(ledger, "r", [Claim(USD, 10)])
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_a_released_hold_gives_everything_back(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10), Claim(SLOTS, 1), Claim(RATE, 1)])
        await ledger.release("r", NOON)
        assert await ledger.peek([USD, SLOTS, RATE], NOON) == [Balance()] * 3
        assert await ask(ledger, "next", [Claim(RATE, 1, limit=1)], at=NOON + 90) == Held(0)

    @pytest.mark.parametrize("held_before", [True, False])
    async def test_a_late_reserve_after_its_release_cannot_take_hold(self, ledger: Ledger, held_before: bool):
        if held_before:
            await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.release("r", NOON)
        await ledger.release("r", NOON)
        with pytest.raises(Released):
            await ask(ledger, "r", [Claim(USD, 10)], at=NOON + 30)
        assert await balance(ledger, USD) == Balance()

    async def test_a_hold_learns_the_generation_id(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.note("r", "gen-1")
        await ledger.note("unknown", "gen-2")
        (hold,) = await ledger.expired(NOON + LEASE, 10)
        assert hold.generation_id == "gen-1"

    async def test_a_parked_hold_gives_its_slots_back_and_keeps_the_rest(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10), Claim(SLOTS, 1, limit=1), Claim(RATE, 1)])
        await ledger.park("r")
        await ledger.park("r")
        await ledger.park("unknown")
        assert await ledger.peek([USD, SLOTS, RATE], NOON) == [Balance(held=10), Balance(), Balance(held=1)]
        assert await ask(ledger, "next", [Claim(SLOTS, 1, limit=1)]) == Held(0)
        left = {hold.facts.request_id: hold for hold in await ledger.expired(NOON + LEASE, 10)}
        assert (left["r"].parked, left["r"].amounts) == (True, {USD: 10, RATE: 1})

    async def test_a_parked_hold_is_settled_once_like_any_other(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10), Claim(SLOTS, 1)])
        await ledger.park("r")
        assert isinstance(await ledger.settle("r", [(USD, 3), (SLOTS, 1)], record("r")), Settled)
        assert await ledger.peek([USD, SLOTS], NOON) == [Balance(used=3), Balance()]

    # Settling

    async def test_settling_replaces_the_hold_by_the_charges(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10), Claim(TOKENS, 100), Claim(SLOTS, 1)])
        assert isinstance(await ledger.settle("r", [(USD, 4), (TOKENS, 70)], record("r")), Settled)
        assert await ledger.peek([USD, TOKENS, SLOTS], NOON) == [Balance(used=4), Balance(used=70), Balance()]
        assert await ledger.expired(NOON + 10 * LEASE, 10) == []

    async def test_settling_twice_charges_once(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.settle("r", [(USD, 4)], record("r"))
        assert isinstance(await ledger.settle("r", [(USD, 5)], record("r")), AlreadySettled)
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_settling_without_a_hold_charges_once(self, ledger: Ledger):
        await learn(ledger, USD, RATE)
        for outcome in (Settled, AlreadySettled):
            assert isinstance(await ledger.settle("lost", [(USD, 4), (RATE, 1)], record("lost")), outcome)
        assert await ledger.peek([USD, RATE], NOON) == [Balance(used=4), Balance(used=1)]

    async def test_settling_after_a_release_charges_once_and_a_release_after_it_changes_nothing(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.release("r", NOON)
        assert isinstance(await ledger.settle("r", [(USD, 4)], record("r")), Settled)
        await ledger.release("r", NOON)
        assert isinstance(await ledger.settle("r", [(USD, 4)], record("r")), AlreadySettled)
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_settling_after_the_lease_charges_once(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        assert ids(await ledger.expired(NOON + LEASE, 10)) == ["r"]
        assert isinstance(await ledger.settle("r", [(USD, 4)], record("r")), Settled)
        assert isinstance(await ledger.settle("r", [(USD, 10)], record("r")), AlreadySettled)
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_counters_that_the_hold_did_not_touch_are_charged_too(self, ledger: Ledger, before: SpentBefore):
        before.charged.append((TOKENS, NOON, 100))
        await learn(ledger, TOKENS)
        await ask(ledger, "r", [Claim(USD, 10)])
        await ledger.settle("r", [(TOKENS, 70)], record("r"))
        assert await ledger.peek([USD, TOKENS], NOON) == [Balance(), Balance(used=170)]

    async def test_a_charge_above_the_hold_is_charged_in_full(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10, limit=10)])
        await ledger.settle("r", [(USD, 25)], record("r"))
        got = await ask(ledger, "next", [Claim(USD, 1, limit=10)])
        assert got == Refused(USD, used=25, held=0, limit=10, needed=1)

    async def test_a_negative_charge_is_an_error_and_leaves_the_hold(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10), Claim(TOKENS, 7)])
        with pytest.raises(ValueError, match="negative"):
            await ledger.settle("r", [(TOKENS, 3), (USD, -1)], record("r"))
        assert await ledger.peek([USD, TOKENS], NOON) == [Balance(held=10), Balance(held=7)]

    async def test_a_slot_cannot_be_spent(self, ledger: Ledger):
        await learn(ledger, SLOTS)
        await ask(ledger, "r", [Claim(SLOTS, 1)])
        await ledger.settle("r", [(SLOTS, 1)], record("r"))
        await ledger.settle("lost", [(SLOTS, 1)], record("lost"))
        assert await balance(ledger, SLOTS) == Balance()

    async def test_a_late_settle_charges_the_windows_of_admission(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        later = NOON + 3600
        next_hour = counter(at=later)
        await ask(ledger, "next", [Claim(next_hour, 5)], at=later)
        await ledger.settle("r", [(USD, 4)], record("r"))
        assert await ledger.peek([USD, next_hour], later) == [Balance(used=4), Balance(held=5)]

    # Where counters start

    async def test_a_limit_added_in_mid_window_counts_what_was_spent(self, ledger: Ledger, before: SpentBefore):
        before.charged += [(USD, NOON, 60), (TOTAL, NOON, 500)]
        claims = [Claim(TOTAL, 10, limit=1000), Claim(USD, 10, 1, limit=100)]
        assert await ask(ledger, "r", claims, wanted=100, least=1, at=NOON + 60) == Held(10)
        assert await ledger.peek([USD, TOTAL], NOON) == [Balance(60, 20), Balance(500, 10)]

    async def test_a_rate_added_in_mid_minute_counts_what_came_in(self, ledger: Ledger, before: SpentBefore):
        before.charged += [(RATE, NOON - 61, 1), (RATE, NOON - 50, 1), (RATE, NOON - 20, 1)]
        assert await balance(ledger, RATE) == Balance(used=2)
        got = await ask(ledger, "r", [Claim(RATE, 1, limit=2)])
        assert got == Refused(RATE, used=2, held=0, limit=2, needed=1, frees_at=NOON + 10)

    async def test_looking_at_a_counter_answers_what_a_reserve_would_find(self, ledger: Ledger, before: SpentBefore):
        before.charged.append((USD, NOON, 67))
        assert await balance(ledger, USD) == Balance(used=67)
        got = await ask(ledger, "r", [Claim(USD, 40, limit=100)])
        assert got == Refused(USD, used=67, held=0, limit=100, needed=40)

    async def test_each_scope_has_its_own_counter(self, ledger: Ledger):
        group = counter(scope=Scope.GROUP, scope_id="ada")
        other = counter(scope_id="bob")
        await ask(ledger, "r", [Claim(USD, 1), Claim(group, 2)])
        assert await ledger.peek([USD, group, other], NOON) == [Balance(held=1), Balance(held=2), Balance()]

    # The sliding minute

    async def test_a_rate_has_no_burst_at_the_boundary_of_a_minute(self, ledger: Ledger):
        rate = Claim(RATE, 1, limit=3)
        for n, second in enumerate([57, 58, 59]):
            assert await ask(ledger, f"r{n}", [rate], at=NOON + second) == Held(0)
        for n, second in enumerate([60, 61, 116.5]):
            got = await ask(ledger, f"no{n}", [rate], at=NOON + second)
            assert got == Refused(RATE, used=0, held=3, limit=3, needed=1, frees_at=NOON + 117)
        assert await ask(ledger, "again", [rate], at=NOON + 117) == Held(0)
        assert isinstance(await ask(ledger, "no", [rate], at=NOON + 117), Refused)

    async def test_sustained_use_gets_exactly_the_rate(self, ledger: Ledger):
        admitted: list[float] = []
        for n in range(1300):
            at = NOON + n * 0.5
            got = await ask(ledger, f"r{n}", [Claim(RATE, 1, limit=20)], at=at)
            if isinstance(got, Held):
                admitted.append(at)
                await ledger.settle(f"r{n}", [(RATE, 1)], record(f"r{n}", at))
        assert sum(at < NOON + 600 for at in admitted) == 10 * 20
        assert all(sum(at - 60 < other <= at for other in admitted) <= 20 for at in admitted)

    async def test_an_entry_leaves_the_minute_while_it_is_still_held(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(RATE, 1, limit=1)])
        assert await ask(ledger, "next", [Claim(RATE, 1, limit=1)], at=NOON + 60) == Held(0)
        assert await balance(ledger, RATE, NOON + 60) == Balance(held=1)
        await ledger.settle("r", [(RATE, 1)], record("r"))
        assert await balance(ledger, RATE, NOON + 60) == Balance(held=1)

    async def test_a_settled_entry_counts_its_real_amount_until_its_own_minute_is_over(self, ledger: Ledger):
        tokens = counter(Meter.TOKENS, Window.MINUTE)
        await ask(ledger, "r", [Claim(tokens, 100)])
        await ask(ledger, "later", [Claim(tokens, 30)], at=NOON + 40)
        await ledger.settle("r", [(tokens, 70)], record("r"))
        assert await balance(ledger, tokens, NOON + 59.9) == Balance(used=70, held=30)
        assert await balance(ledger, tokens, NOON + 60) == Balance(held=30)
        assert await balance(ledger, tokens, NOON + 100) == Balance()

    async def test_a_minute_is_charged_at_the_moment_of_admission(self, ledger: Ledger):
        await ask(ledger, "other", [Claim(RATE, 1)], at=NOON + 30)
        await ledger.settle("lost", [(RATE, 1)], record("lost", NOON))
        await ledger.settle("long ago", [(RATE, 1)], record("long ago", NOON - 60))
        assert await balance(ledger, RATE, NOON + 30) == Balance(used=1, held=1)
        assert await balance(ledger, RATE, NOON + 60) == Balance(held=1)

    async def test_a_refusal_says_when_enough_has_left(self, ledger: Ledger):
        tokens = counter(Meter.TOKENS, Window.MINUTE)
        for second, amount in [(0, 10), (5, 20), (9, 30)]:
            await ask(ledger, f"r{second}", [Claim(tokens, amount)], at=NOON + second)
        await ledger.release("r0", NOON + 9)
        got = await ask(ledger, "no", [Claim(tokens, 20, 1, limit=60)], wanted=100, least=5, at=NOON + 10)
        assert got == Refused(tokens, used=0, held=50, limit=60, needed=25, frees_at=NOON + 65)

    async def test_what_can_never_fit_a_rate_has_no_time_at_which_it_will(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(RATE, 1)])
        got = await ask(ledger, "no", [Claim(RATE, 3, limit=2)])
        assert got == Refused(RATE, used=0, held=1, limit=2, needed=3, frees_at=None)

    # Parallel requests

    async def test_parallel_requests_are_the_live_holds(self, ledger: Ledger):
        slot = Claim(SLOTS, 1, limit=3)
        for n in range(3):
            assert await ask(ledger, f"r{n}", [slot]) == Held(0)
        assert await ask(ledger, "no", [slot]) == Refused(SLOTS, used=0, held=3, limit=3, needed=1)
        await ledger.settle("r0", [], record("r0"))
        await ledger.release("r1", NOON)
        await ledger.park("r2")
        assert await balance(ledger, SLOTS) == Balance()
        assert await ask(ledger, "yes", [slot], at=NOON + 7200) == Held(0)

    # Leases

    async def test_a_hold_expires_with_its_lease_and_keeps_holding(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10, limit=10), Claim(SLOTS, 1)])
        assert await ledger.expired(NOON + LEASE - 0.1, 10) == []
        for _ in range(2):
            assert ids(await ledger.expired(NOON + LEASE, 10)) == ["r"]
        assert isinstance(await ask(ledger, "no", [Claim(USD, 1, limit=10)], at=NOON + 60), Refused)
        assert await ledger.peek([USD, SLOTS], NOON + 60) == [Balance(held=10), Balance(held=1)]

    async def test_one_call_renews_all_holds_of_a_node_and_of_no_other(self, ledger: Ledger):
        await ask(ledger, "a", [Claim(USD, 1)])
        await ask(ledger, "b", [Claim(USD, 1)], node="dead")
        await ask(ledger, "c", [Claim(USD, 1)], at=NOON + 1)
        await ledger.renew(NODE, LEASE, NOON + 10)
        assert ids(await ledger.expired(NOON + 24, 10)) == ["b"]
        assert sorted(ids(await ledger.expired(NOON + 25, 10))) == ["a", "b", "c"]

    async def test_renewing_revives_what_has_expired(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 1)])
        assert ids(await ledger.expired(NOON + 20, 10)) == ["r"]
        await ledger.renew(NODE, LEASE, NOON + 20)
        assert await ledger.expired(NOON + 34, 10) == []

    async def test_expired_holds_come_oldest_first_and_no_more_than_asked_for(self, ledger: Ledger):
        for n in (2, 0, 3, 1):
            await ask(ledger, f"r{n}", [Claim(USD, 1)], at=NOON + n)
        assert ids(await ledger.expired(NOON + 60, 3)) == ["r0", "r1", "r2"]

    async def test_what_expired_hands_out_can_be_changed_without_changing_the_ledger(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)])
        (hold,) = await ledger.expired(NOON + LEASE, 1)
        hold.amounts.clear()
        await ledger.settle("r", [(USD, 4)], record("r"))
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_what_is_adopted_belongs_to_the_heir_and_to_nobody_else(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(USD, 10)], node="dead")
        assert await ledger.adopt(NODE, LEASE, NOON + LEASE - 1, 10) == []
        (hold,) = await ledger.adopt(NODE, LEASE, NOON + LEASE, 10)
        assert (hold.facts.request_id, hold.node, hold.amounts) == ("r", NODE, {USD: 10})
        assert await ledger.adopt("other", LEASE, NOON + LEASE, 10) == []
        await ledger.renew("dead", LEASE, NOON + LEASE + 14)
        assert ids(await ledger.expired(NOON + 2 * LEASE, 10)) == ["r"]
        assert isinstance(await ledger.settle("r", [(USD, 4)], record("r")), Settled)
        assert await balance(ledger, USD) == Balance(used=4)

    async def test_of_many_expired_holds_each_is_adopted_once(self, ledger: Ledger):
        for n in range(5):
            await ask(ledger, f"r{n}", [Claim(USD, 1)], node="dead", at=NOON + n)
        first = await ledger.adopt("a", LEASE, NOON + 60, 3)
        then = await ledger.adopt("b", LEASE, NOON + 60, 3)
        assert (ids(first), ids(then)) == (["r0", "r1", "r2"], ["r3", "r4"])

    async def test_windows_are_judged_at_admission_and_leases_begin_now(self, ledger: Ledger):
        await ask(ledger, "r", [Claim(RATE, 1)])
        await ledger.reserve(
            facts("late", NOON + 59),
            node=NODE,
            lease=LEASE,
            claims=[Claim(RATE, 1)],
            cap_wanted=0,
            cap_min=0,
            now=NOON + 61,
        )
        assert await balance(ledger, RATE, NOON + 59) == Balance(held=2)
        assert ids(await ledger.expired(NOON + 75, 10)) == ["r"]
        assert sorted(ids(await ledger.expired(NOON + 76, 10))) == ["late", "r"]
