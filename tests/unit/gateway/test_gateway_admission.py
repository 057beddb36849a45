"""Who is let in, with what held, and what happens to a request while nobody can say what is left."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from gateway_world import ADA, NOON, TEN_CENTS, WHY, World

from faregate.gateway.admission import Outcomes
from faregate.ledger.journal import JournalError
from faregate.ledger.port import LedgerAway
from faregate.policy.model import Enforcement, Limit, Meter, Window
from faregate.records import Status, UsageRecord
from faregate.settings import OnOutage


@pytest.fixture
def closed() -> World:
    return World(OnOutage.CLOSED)


@pytest.fixture
def opened() -> World:
    return World(OnOutage.OPEN)


async def test_an_admitted_request_holds_what_it_may_cost(closed: World) -> None:
    closed.limit(*TEN_CENTS)
    admission = await closed.ask(max_tokens=1_000)
    (hold,) = closed.ledger.live()
    assert (admission.facts.cap, admission.unchecked) == (1_000, False)
    assert hold.facts.bound_nano() == admission.facts.bound_nano()
    assert closed.admitter.outcomes == Outcomes(admitted=1)


async def test_closed_lets_nothing_through_while_the_ledger_is_away(closed: World) -> None:
    closed.ledger.failure = LedgerAway(WHY)
    refusal = await closed.refused()
    assert (refusal.status, refusal.code, refusal.headers["retry-after"]) == (503, "ledger_unavailable", "2")
    assert "cannot check your limits" in refusal.message
    assert "the help desk" in refusal.message
    assert "cache.internal" not in refusal.message
    record = await closed.last_record()
    assert (record.status, record.reason, record.requests, record.cost) == (Status.REFUSED, WHY, 0, Decimal(0))
    assert (record.facts.cap, record.facts.prompt_bound, record.facts.bound_nano()) == (0, 0, 0)
    assert closed.admitter.outcomes == Outcomes(unavailable=1)


async def test_it_lets_people_through_again_as_soon_as_the_ledger_is_back(closed: World) -> None:
    closed.ledger.failure = LedgerAway(WHY)
    await closed.refused()
    closed.ledger.failure = None
    assert not (await closed.ask()).unchecked
    assert closed.admitter.outcomes == Outcomes(admitted=1, unavailable=1)


async def test_open_serves_without_a_hold_and_says_so_on_the_record(opened: World) -> None:
    opened.limit(*TEN_CENTS)
    opened.ledger.failure = LedgerAway(WHY)
    admissions = [await opened.ask() for _ in range(3)]
    assert opened.ledger.live() == []
    assert [admission.unchecked for admission in admissions] == [True] * 3
    assert admissions[0].facts.rules == ("policy default by default", "ledger away: admitted without a hold")
    assert opened.admitter.outcomes == Outcomes(unchecked=3)


async def test_what_was_served_without_a_hold_is_charged_when_the_ledger_is_back(opened: World) -> None:
    opened.limit(Limit(Meter.REQUESTS, Window.DAY, 2))
    opened.ledger.failure = LedgerAway(WHY)
    served = [await opened.ask() for _ in range(2)]
    opened.ledger.failure = None
    for admission in served:
        await opened.accountant.settle(UsageRecord(admission.facts, Status.COMPLETED))
    refusal = await opened.refused()
    assert (refusal.status, refusal.code) == (429, "user_requests_day")


async def test_open_caps_answers_as_policy_model_and_client_say_but_not_by_what_is_left(opened: World) -> None:
    opened.limit(*TEN_CENTS, max_output_tokens=80_000)
    fitted = await opened.ask("acme/dear")
    assert fitted.facts.cap < 1_000
    opened.ledger.failure = LedgerAway(WHY)
    assert (await opened.ask("acme/dear")).facts.cap == 64_000
    assert (await opened.ask("acme/dear", max_tokens=12)).facts.cap == 12
    opened.limit(*TEN_CENTS, max_output_tokens=500)
    assert (await opened.ask("acme/dear")).facts.cap == 500


async def test_open_still_sends_upstream_the_prices_that_a_limit_in_dollars_depends_on(opened: World) -> None:
    opened.limit(*TEN_CENTS)
    checked = await opened.ask(max_tokens=10)
    opened.ledger.failure = LedgerAway(WHY)
    assert (await opened.ask(max_tokens=10)).ceiling == checked.ceiling is not None


def blocked(world: World) -> dict[str, Any]:
    user = world.directory.recognise(ADA, NOON)
    world.directory.assign(user.id, is_active=False)
    return {}


def another_model(world: World) -> dict[str, Any]:
    world.limit(allow=("openai/*",))
    return {}


def web_search(world: World) -> dict[str, Any]:
    world.limit(*TEN_CENTS)
    return {"plugins": [{"id": "web"}]}


def unknown_model(world: World) -> dict[str, Any]:
    return {"model": "acme/unheard-of"}


def no_prices(world: World) -> dict[str, Any]:
    world.limit(*TEN_CENTS)
    world.prices = None
    return {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (blocked, "user_deactivated"),
        (another_model, "model_not_allowed"),
        (web_search, "not_boundable"),
        (unknown_model, "model_not_found"),
        (no_prices, "prices_unknown"),
    ],
)
async def test_open_refuses_all_that_is_refused_without_counting(
    opened: World, rule: Callable[[World], dict[str, Any]], code: str
) -> None:
    opened.ledger.failure = LedgerAway(WHY)
    assert (await opened.refused(**rule(opened))).code == code


async def test_open_lets_nobody_use_a_limit_of_nothing(opened: World) -> None:
    opened.limit(Limit(Meter.USD, Window.TOTAL, 0))
    opened.ledger.failure = LedgerAway(WHY)
    refusal = await opened.refused()
    assert (refusal.status, refusal.code) == (429, "user_usd_total")
    assert "leaves nothing to use" in refusal.message
    opened.limit(Limit(Meter.USD, Window.TOTAL, 0), enforcement=Enforcement.SHADOW)
    assert (await opened.ask()).unchecked
    assert opened.admitter.outcomes == Outcomes(unchecked=1, refused=1)


async def test_a_journal_that_cannot_be_written_admits_nobody_whatever_the_outage_rule(opened: World) -> None:
    opened.ledger.failure = JournalError("the disk is full")
    refusal = await opened.refused()
    assert (refusal.status, refusal.code, refusal.headers["retry-after"]) == (503, "ledger_unavailable", "10")
    assert "cannot keep its books" in refusal.message
    assert (await opened.last_record()).reason == "the disk is full"
    assert opened.admitter.outcomes == Outcomes(unavailable=1)


async def test_a_refusal_by_a_limit_is_counted_as_one(closed: World) -> None:
    closed.limit(Limit(Meter.CONCURRENT, None, 1))
    await closed.ask()
    assert (await closed.refused()).status == 429
    assert closed.admitter.outcomes == Outcomes(admitted=1, refused=1)
