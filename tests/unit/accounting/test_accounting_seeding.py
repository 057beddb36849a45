"""Counters of a shared ledger start from what charging each record of earlier eras would have put on them."""

import asyncio
import tempfile
from collections import Counter as Sums
from pathlib import Path
from zoneinfo import ZoneInfo

from accounting_world import NOON, record_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faregate.accounting.seeding import StoredRecords
from faregate.accounting.spend import amounts_of, charge_form
from faregate.ledger.counters import counters_for
from faregate.ledger.forms import Charges
from faregate.ledger.port import Counter
from faregate.ledger.seeds import Seed
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar
from faregate.records import Status, altered
from faregate.store.store import Store
from faregate.store.usage import PAYER

UTC = Calendar(ZoneInfo("UTC"))
HOUR, DAY = 3600, 86_400
MODELS = ("openai/gpt-4o", "anthropic/claude", "anthropic/claude:free")
NEW_YEAR = 1_798_761_600.0
"""2027-01-01 00:00 UTC, a Friday: an hour, a day and a month begin."""

SHAPES = st.builds(
    Shape,
    st.sampled_from(Scope),
    st.sampled_from([Meter.REQUESTS, Meter.TOKENS, Meter.USD]),
    st.sampled_from(Window),
    st.sampled_from([(), ("anthropic/*",), ("openai/gpt-4o",)]),
) | st.just(Shape(Scope.USER, Meter.CONCURRENT, None))

MOMENTS = st.sampled_from([0, 1, 59, 60, 61, 119, 120, 121, 1800, HOUR, DAY, 8 * DAY, 40 * DAY]).flatmap(
    lambda seconds: st.sampled_from([-seconds, seconds])
)


@st.composite
def histories(draw):
    """Records around a moment at which windows may begin, charged in several eras or not at all."""
    now = draw(st.sampled_from([NOON, NEW_YEAR])) + draw(st.sampled_from([-61, -60, -1, 0, 1, 59, 60, 1800]))
    records = []
    for number in range(draw(st.integers(0, 12))):
        record = record_of(
            f"r{number}",
            cost=draw(st.sampled_from(["0", "0.001", "2.5"])),
            tokens=draw(st.sampled_from([0, 30, 5000])),
            status=draw(st.sampled_from([Status.COMPLETED, Status.FAILED, Status.ABORTED, Status.PENDING])),
            served=draw(st.sampled_from([None, *MODELS])),
            at=now + draw(MOMENTS),
            user=draw(st.sampled_from(["ada", "bob"])),
            groups=draw(st.sampled_from([(), ("staff",), ("physics", "staff")])),
            model=MODELS[0],
            candidates=draw(st.sampled_from([MODELS[:1], MODELS[:2], MODELS])),
        )
        records.append(altered(record, era=draw(st.integers(0, 3))))
    return now, records


def is_live(counter, record, now):
    if counter.window is None:
        return False
    if counter.window is Window.MINUTE:
        return now - 120 < record.facts.admitted_at <= now + 120
    return counter.ends == 0 or any(counter.starts <= now + off < counter.ends for off in (-60, 0, 60))


def charged_one_by_one(records, shapes, calendar, now):
    """What settling each record would have put on the live counters."""
    sums = Sums()
    for record in records:
        facts = record.facts
        counters = counters_for(
            shapes,
            calendar,
            user_id=facts.user_id,
            groups=facts.groups,
            models=record.counted_models(),
            at=facts.admitted_at,
        )
        for counter, amount in Charges(charge_form(counters), amounts_of(record)):
            if amount and is_live(counter, record, now):
                slides = counter.window is Window.MINUTE
                sums[counter, facts.request_id if slides else "", facts.admitted_at if slides else 0.0] += amount
    return {Seed(counter, amount, request_id, at) for (counter, request_id, at), amount in sums.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    history=histories(),
    shapes=st.lists(SHAPES, max_size=8, unique=True),
    era=st.integers(0, 4),
    zone=st.sampled_from(["UTC", "Asia/Kathmandu", "America/New_York"]),
)
def test_counters_start_from_what_charging_each_record_would_have_put_on_them(history, shapes, era, zone):
    now, records = history
    calendar = Calendar(ZoneInfo(zone))

    async def seeds(folder):
        store = await Store.open(f"sqlite:///{folder / 'faregate.db'}")
        await store.write([], records)
        found = await StoredRecords(store, calendar).charged(shapes, era, now)
        await store.close()
        return found

    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(seeds(Path(folder)))

    earlier = [record for record in records if record.era < era and record.status is not Status.PENDING]
    assert set(found) == charged_one_by_one(earlier, shapes, calendar, now)
    assert len(set(found)) == len(found)


async def test_records_of_an_era_are_refused_once_the_next_has_begun_and_counters_start_without_them(store):
    records = StoredRecords(store, UTC)
    first = await records.next_era(0)
    on_time, late = (altered(record_of(name), era=first) for name in ("on time", "late"))
    await store.write([], [on_time])
    second = await records.next_era(0)
    assert second > first
    assert await store.write([], [late]) == [late]

    [seed] = await records.charged([Shape(Scope.USER, Meter.USD, Window.TOTAL)], second, NOON)

    assert seed == Seed(Counter(Scope.USER, "ada", Meter.USD, Window.TOTAL), 1_000_000)
    assert await records.charged([Shape(Scope.USER, Meter.USD, Window.TOTAL)], first, NOON) == []


class Noting:
    """A database with nothing in it that notes which sums it is asked for."""

    def __init__(self):
        self.asked = []
        self.told_apart = []

    async def next_era(self, above):
        return 1

    async def spend(self, since, until=None, before_era=None, by=PAYER):
        self.asked.append((since, until))
        self.told_apart.append(set(by))
        return []

    async def recent(self, since, before_era=None):
        self.asked.append(since)
        return []


async def test_charges_are_told_apart_no_further_than_the_limits_tell_them():
    store = Noting()
    person, group, everybody = (
        Shape(scope, Meter.USD, Window.DAY) for scope in (Scope.USER, Scope.GROUP, Scope.EVERYONE)
    )
    of_model = Shape(Scope.USER, Meter.USD, Window.DAY, ("openai/*",))
    for shapes in ([person], [group], [everybody], [person, group], [everybody, of_model]):
        await StoredRecords(store, UTC).charged(shapes, 1, NOON)
    assert store.told_apart == [{"user_id"}, {"groups"}, set(), {"user_id", "groups"}, set(), {"user_id", "models"}]


async def test_the_database_is_asked_once_for_each_window_that_some_shape_needs():
    store = Noting()
    daily = [Shape(scope, meter, Window.DAY) for scope in Scope for meter in (Meter.USD, Meter.TOKENS)]
    shapes = [*daily, Shape(Scope.USER, Meter.CONCURRENT, None), Shape(Scope.USER, Meter.USD, Window.TOTAL)]
    await StoredRecords(store, UTC).charged(shapes, 1, NOON)
    assert store.asked == [(NOON - 12 * HOUR, NOON + 12 * HOUR), (0, None)]

    store.asked.clear()
    await StoredRecords(store, UTC).charged(daily, 1, NEW_YEAR + 30)
    assert store.asked == [(NEW_YEAR - DAY, NEW_YEAR), (NEW_YEAR, NEW_YEAR + DAY)]


async def test_a_sliding_minute_starts_from_each_record_that_counts_for_a_node_whose_clock_is_a_minute_off(store):
    moments = {"over": -120, "early": -119, "now": 0, "ahead": 120, "far ahead": 121}
    await store.write([], [record_of(name, at=NOON + off) for name, off in moments.items()])
    seeds = await StoredRecords(store, UTC).charged([Shape(Scope.USER, Meter.TOKENS, Window.MINUTE)], 1, NOON)

    counter = Counter(Scope.USER, "ada", Meter.TOKENS, Window.MINUTE)
    assert seeds == [Seed(counter, 30, name, NOON + moments[name]) for name in ("early", "now", "ahead")]
