"""What was spent in the live windows, for whatever counter is asked for."""

from zoneinfo import ZoneInfo

import pytest
from accounting_world import NOON, record_of

from faregate.accounting.spend import SLIDING_SECONDS, WINDOWS_KEPT, Charging, Spend
from faregate.ledger.counters import counters_for
from faregate.ledger.port import Counter
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar
from faregate.records import Status

HOUR, DAY = 3600, 86_400


def calendar():
    return Calendar(ZoneInfo("UTC"))


def counter(scope=Scope.USER, scope_id="ada", meter=Meter.USD, window=Window.DAY, models=(), at=NOON):
    starts, ends = calendar().bounds(window, at)
    return Counter(scope, scope_id, meter, window, models, starts, ends)


def spend_of(*records, now=NOON):
    spend = Spend(calendar(), now)
    for record in records:
        now = max(now, record.facts.admitted_at)
        spend.add(record, now)
    return spend


def test_a_record_charges_one_request_its_tokens_and_its_nano_dollars():
    record = record_of(cost="0.001", tokens=30)

    on = {meter: Counter(Scope.USER, "ada", meter, Window.TOTAL) for meter in Meter}

    assert list(Charging().charges(record, ("m",), tuple(on.values()))) == [
        (on[Meter.REQUESTS], 1),
        (on[Meter.TOKENS], 30),
        (on[Meter.USD], 1_000_000),
    ]


def test_the_form_of_charges_is_remembered_for_the_same_counters_alone():
    charging, record = Charging(), record_of(cost="0.001", tokens=30)
    day = (counter(), counter(meter=Meter.TOKENS))
    first = charging.charges(record, ("m",), day)

    assert charging.charges(record_of(cost="0.002", tokens=31), ("m",), day).form is first.form
    assert list(charging.charges(record, ("m",), (counter(at=NOON + DAY),))) == [(counter(at=NOON + DAY), 1_000_000)]


@pytest.mark.parametrize("window", [Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH, Window.TOTAL])
def test_each_window_adds_up_what_was_spent_in_it(window):
    spend = spend_of(record_of("a"), record_of("b"), record_of("c", user="bob"))

    assert spend.used(counter(window=window)) == 2_000_000
    assert spend.used(counter(window=window, meter=Meter.REQUESTS)) == 2
    assert spend.used(counter(window=window, meter=Meter.TOKENS)) == 60


def test_groups_and_everyone_add_up_over_people():
    spend = spend_of(
        record_of("a", groups=("staff", "physics")),
        record_of("b", user="bob", groups=("physics",)),
        record_of("c", user="eve", groups=()),
    )

    assert spend.used(counter(Scope.GROUP, "staff", Meter.REQUESTS)) == 1
    assert spend.used(counter(Scope.GROUP, "physics", Meter.REQUESTS)) == 2
    assert spend.used(counter(Scope.EVERYONE, "", Meter.REQUESTS)) == 3


def test_a_limit_on_models_counts_the_model_that_served_else_all_that_could_have():
    candidates = ("openai/gpt-4o", "anthropic/claude")
    spend = spend_of(
        record_of("a", served="openai/gpt-4o", candidates=candidates),
        record_of("b", served="anthropic/claude-20260101", candidates=candidates),
    )

    assert spend.used(counter(meter=Meter.REQUESTS, models=("anthropic/*",))) == 1
    assert spend.used(counter(meter=Meter.REQUESTS, models=("openai/*",))) == 2


def test_a_window_that_starts_is_empty_and_the_longer_ones_go_on():
    spend = spend_of(record_of("a"))

    assert spend.used(counter(window=Window.HOUR, at=NOON + HOUR)) == 0
    spend.add(record_of("b", at=NOON + HOUR), NOON + HOUR)
    assert spend.used(counter(window=Window.HOUR, at=NOON + HOUR)) == 1_000_000
    assert spend.used(counter(window=Window.DAY, at=NOON + HOUR)) == 2_000_000


def test_a_record_that_comes_late_is_charged_to_the_hour_of_its_admission():
    spend = spend_of(record_of("b", at=NOON + HOUR), record_of("late", at=NOON))

    assert spend.used(counter(window=Window.HOUR, at=NOON)) == 1_000_000
    assert spend.used(counter(window=Window.HOUR, at=NOON + HOUR)) == 1_000_000
    assert spend.used(counter(window=Window.DAY, at=NOON + HOUR)) == 2_000_000


def test_a_record_of_an_hour_long_over_is_charged_to_its_day_only():
    spend = spend_of(*(record_of(f"r{n}", at=NOON + n * HOUR) for n in range(WINDOWS_KEPT + 1)))
    spend.add(record_of("late", at=NOON), NOON + WINDOWS_KEPT * HOUR)

    assert spend.used(counter(window=Window.HOUR, at=NOON)) == 0
    assert spend.used(counter(window=Window.DAY)) == (WINDOWS_KEPT + 2) * 1_000_000


@pytest.mark.parametrize("days", [2, 40, 4_000])
def test_a_clock_that_was_ahead_for_a_moment_finds_what_was_spent_before(days):
    spend = spend_of(record_of("before"))
    for n in range(3):
        spend.add(record_of(f"ahead{n}", at=NOON + days * DAY + n * HOUR), NOON + days * DAY + n * HOUR)
    spend.add(record_of("after", at=NOON + 1), NOON + 1)

    for window in (Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH):
        ahead = counter(window=window, at=NOON + days * DAY)
        assert spend.used(counter(window=window)) == (2_000_000 if ahead != counter(window=window) else 5_000_000)
    assert spend.used(counter(window=Window.DAY, at=NOON + days * DAY)) == 3_000_000
    assert spend.used(counter(window=Window.TOTAL)) == 5_000_000
    assert spend.recent(counter(window=Window.MINUTE), NOON - 60) == [(NOON + 1, 1_000_000)]


def test_late_records_of_many_hours_do_not_displace_the_one_that_the_clock_is_in():
    spend = spend_of(record_of("now"))
    for n in range(1, 30):
        spend.add(record_of(f"late{n}", at=NOON - n * HOUR), NOON)

    assert spend.used(counter(window=Window.HOUR)) == 1_000_000


def test_no_more_windows_are_kept_than_a_few_of_each_kind():
    spend = spend_of(*(record_of(f"r{n}", at=NOON + n * 31 * DAY) for n in range(20)))

    assert [len(kept._sums) for kept in spend._windows.values()] == [WINDOWS_KEPT] * 4


def test_after_forty_silent_days_only_the_total_is_left():
    later = NOON + 40 * DAY
    spend = spend_of(record_of("a"), record_of("b", at=later))

    for window in (Window.HOUR, Window.DAY, Window.WEEK, Window.MONTH):
        assert spend.used(counter(window=window, at=later)) == 1_000_000
    assert spend.used(counter(window=Window.TOTAL)) == 2_000_000


def test_the_last_minute_is_told_by_moment_of_admission_oldest_first():
    spend = spend_of(
        record_of("a", at=NOON + 2), record_of("slow", at=NOON + 1), record_of("c", at=NOON + 3, user="bob")
    )
    minute = counter(meter=Meter.REQUESTS, window=Window.MINUTE)

    assert spend.recent(minute, NOON) == [(NOON + 1, 1), (NOON + 2, 1)]
    assert spend.recent(minute, NOON + 1) == [(NOON + 2, 1)]
    everyone = counter(Scope.EVERYONE, "", Meter.TOKENS, Window.MINUTE)
    assert spend.recent(everyone, NOON) == [(NOON + 1, 30), (NOON + 2, 30), (NOON + 3, 30)]


def test_memory_stays_flat_over_many_requests_of_the_same_people():
    spend = Spend(calendar(), NOON)
    for number in range(5_000):
        spend.add(record_of(f"r{number}", at=NOON + number, user=f"u{number % 10}"), NOON + number)

    assert len(spend._recent._all) == SLIDING_SECONDS
    assert len(spend._recent._users) == 10
    assert sum(len(payers) for payers in spend._total._users.values()) == 10
    assert spend.used(counter(Scope.EVERYONE, "", Meter.REQUESTS, Window.TOTAL)) == 5_000


def test_a_person_who_is_silent_for_a_minute_leaves_no_trace_in_it():
    spend = spend_of(record_of("a"), record_of("b", user="bob", at=NOON + SLIDING_SECONDS))

    assert set(spend._recent._users) == {"bob"}


def test_the_sums_are_those_of_the_counters_that_a_record_is_charged_to():
    record = record_of(groups=("staff",), served="openai/gpt-4o")
    shapes = [Shape(scope, Meter.TOKENS, Window.DAY, models) for scope in Scope for models in ((), ("openai/*",))]
    counters = counters_for(
        shapes,
        calendar(),
        user_id="ada",
        groups=("staff",),
        models=record.counted_models(),
        at=NOON,
    )

    assert len(counters) == 6
    assert [spend_of(record).used(each) for each in counters] == [30] * 6


async def test_what_the_store_holds_is_where_the_sums_start(store):
    await store.write(
        [],
        [
            record_of("hour", at=NOON),
            record_of("day", at=NOON - 2 * HOUR),
            record_of("month", at=NOON - 10 * DAY),
            record_of("ever", at=NOON - 400 * DAY),
            record_of("refused", status=Status.REFUSED, cost="0", tokens=0),
            record_of("open", status=Status.PENDING),
        ],
    )
    spend = await Spend.load(store, calendar(), NOON + 30)

    used = {window: spend.used(counter(meter=Meter.REQUESTS, window=window)) for window in Window}
    assert used == {"minute": 0, "hour": 1, "day": 2, "week": 2, "month": 3, "total": 4}
    assert spend.recent(counter(meter=Meter.USD, window=Window.MINUTE), NOON - 30) == [(NOON, 1_000_000)]


async def test_what_a_clock_that_was_ahead_left_in_the_store_counts_when_its_windows_come(store):
    ahead = NOON + 2 * DAY
    await store.write([], [record_of("now"), *(record_of(f"ahead{n}", at=ahead + n * HOUR) for n in range(6))])
    spend = await Spend.load(store, calendar(), NOON + 30)

    assert spend.used(counter(window=Window.HOUR)) == 1_000_000
    assert spend.used(counter(window=Window.DAY)) == 1_000_000
    assert spend.used(counter(window=Window.DAY, at=ahead)) == 6_000_000
    assert spend.used(counter(window=Window.MONTH)) == 7_000_000
    assert spend.recent(counter(window=Window.MINUTE), NOON - 30) == [(NOON, 1_000_000)]
