"""Jobs are done when they are due, by one node, and say what came of them; nothing ends them."""

import logging

import pytest
from accounting_world import NOON, HandClock, others_run

from faregate.accounting.upkeep import (
    DAILY_SECONDS,
    HOURLY_SECONDS,
    HOURS_AT_ONCE,
    LOOK_SECONDS,
    RECONCILIATION,
    Upkeep,
    is_due,
)
from faregate.store.errors import JobTaken, RollupFailed, StillStale, StoreUnavailable
from faregate.store.jobs import JobRun

YEAR = 365 * 86_400.0


class Estate:
    """A database that several nodes look after, as far as their jobs are concerned."""

    def __init__(self):
        self.away = False
        self.runs = {}
        self.noted = []
        self.stale = []
        self.bad = set()
        self.asked = []
        self.taken = set()
        self.partitions_until = []
        self.partitions_fail = None
        self.records = []
        self.drop_fails = None
        self.drops = []

    def _there(self, job):
        if self.away:
            raise StoreUnavailable("the database is away")
        if job in self.taken:
            raise JobTaken(job)

    async def jobs(self):
        self._there("jobs")
        return list(self.runs.values())

    async def note_job(self, run):
        self._there("jobs")
        self.noted.append((run.name, run.said))
        self.runs[run.name] = run

    async def refresh_rollups(self, limit, after=0.0):
        self._there("rollups")
        hours = sorted(hour for hour in self.stale if hour > after)[:limit]
        for hour in hours:
            if hour in self.bad:
                raise RollupFailed(hour, "DataError")
            self.stale.remove(hour)
        return len(hours)

    async def make_partitions(self, now):
        self._there("partitions")
        if self.partitions_fail is not None:
            raise self.partitions_fail
        self.partitions_until.append(now)

    async def drop_records(self, before):
        self._there("retention")
        if self.drop_fails is not None:
            raise self.drop_fails
        self.drops.append(before)
        return [self.records.pop(0)] if self.records else []

    def said(self, job):
        return [said for name, said in self.noted if name == job]


def run(ran_at, duration_ms=41):
    return JobRun("rollups", ran_at, duration_ms, "node-1", "1 hour added up")


@pytest.fixture
def estate():
    return Estate()


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
async def node(estate, clock):
    """Starts nodes, which stop at the end."""
    started = []

    def start(name="node-1", **more):
        started.append(Upkeep(estate, name, clock=clock, **more))
        started[-1].start()
        return started[-1]

    yield start
    for upkeep in started:
        await upkeep.stop()


async def test_everything_is_done_at_the_start_and_then_when_it_is_due(estate, clock, node):
    estate.stale = [NOON - 3600.0, NOON]
    upkeep = node(kept_since=lambda now: now - YEAR)
    await others_run()
    assert estate.noted == [
        ("partitions", "the months to come are there"),
        ("rollups", "2 hours added up"),
        ("retention", "no month was old enough to be dropped"),
    ]
    estate.stale = [NOON]
    await clock.advance(LOOK_SECONDS)
    assert estate.noted[3:] == [("rollups", "1 hour added up")]
    await clock.advance(HOURLY_SECONDS)
    assert estate.partitions_until == [NOON, NOON + HOURLY_SECONDS]
    assert estate.drops == [NOON - YEAR, NOON + HOURLY_SECONDS - YEAR]
    assert estate.said("rollups")[-1] == "every hour was added up already"
    assert upkeep.plan == {"partitions": HOURLY_SECONDS, "rollups": LOOK_SECONDS, "retention": HOURLY_SECONDS}


async def test_the_day_is_compared_with_openrouter_once_a_day_if_it_can_be_asked(estate, clock, node):
    asked = []

    async def compare(now):
        asked.append(now)
        return "they agree"

    assert RECONCILIATION not in node().plan
    node("node-2", compare=compare)
    await clock.advance(DAILY_SECONDS / 2)
    assert asked == [NOON]
    await clock.advance(DAILY_SECONDS / 2 + LOOK_SECONDS)
    assert len(asked) == 2
    assert estate.said(RECONCILIATION) == ["they agree", "they agree"]


async def test_a_run_says_when_and_where_it_was(estate, node):
    upkeep = node("node-7")
    await others_run()
    assert estate.runs["rollups"] == JobRun("rollups", NOON, 0, "node-7", "every hour was added up already")
    assert upkeep.last_runs == {"partitions": NOON, "rollups": NOON}


async def test_without_a_retention_nothing_is_dropped(estate, clock, node):
    assert "retention" not in node().plan
    await clock.advance(HOURLY_SECONDS)
    assert (estate.drops, estate.said("retention")) == ([], [])


async def test_all_that_is_stale_is_added_up_in_one_run_however_much_it_is(estate, node):
    estate.stale = [NOON - 3600.0 * n for n in range(5 * HOURS_AT_ONCE + 1)]
    node()
    await others_run()
    assert (estate.stale, estate.said("rollups")) == ([], [f"{5 * HOURS_AT_ONCE + 1} hours added up"])


async def test_of_many_nodes_one_does_what_is_due(estate, clock, node):
    first = node("node-1")
    await others_run()
    second = node("node-2")
    await clock.advance(HOURLY_SECONDS - LOOK_SECONDS)
    assert len(estate.said("partitions")) == 1
    assert second.last_runs.get("partitions") is None
    assert first.last_runs["partitions"] == NOON
    assert len(estate.said("rollups")) <= HOURLY_SECONDS / LOOK_SECONDS + 1


async def test_a_job_that_another_node_is_at_is_left_to_it(estate, clock, node):
    estate.taken = {"partitions"}
    upkeep = node()
    await others_run()
    assert (estate.said("partitions"), upkeep.last_runs) == ([], {"rollups": NOON})
    estate.taken = set()
    await clock.advance(LOOK_SECONDS)
    assert upkeep.last_runs["partitions"] == NOON + LOOK_SECONDS


async def test_an_hour_that_cannot_be_added_up_does_not_hold_up_those_after_it(estate, clock, node, caplog):
    estate.stale, estate.bad = [NOON - 7200.0, NOON - 3600.0, NOON], {NOON - 3600.0}
    upkeep = node()
    await clock.advance(3 * LOOK_SECONDS)
    assert estate.stale == [NOON - 3600.0]
    assert set(estate.said("rollups")) == {"failed: the hour from 2027-01-15 11:00 UTC cannot be added up (DataError)"}
    assert "rollups" not in upkeep.last_runs
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    estate.bad = set()
    await clock.advance(LOOK_SECONDS)
    assert (estate.stale, estate.said("rollups")[-1]) == ([], "1 hour added up")


async def test_a_job_that_fails_is_tried_again_and_keeps_no_other_from_being_done(estate, clock, node, caplog):
    estate.partitions_fail = ValueError("what is in a row")
    node()
    await others_run()
    assert estate.noted == [("partitions", "failed: ValueError"), ("rollups", "every hour was added up already")]
    assert "the job partitions is tried again in 3600 seconds: it failed: ValueError" in caplog.messages
    estate.partitions_fail = None
    await clock.advance(HOURLY_SECONDS)
    assert estate.said("partitions") == ["failed: ValueError", "the months to come are there"]


async def test_records_that_others_read_are_dropped_an_hour_later(estate, clock, node):
    """The database is there; who waits for the table keeps others waiting, so it is not tried at once."""
    estate.drop_fails = StoreUnavailable("the database did not do its work (lock timeout); try again")
    estate.records = ["usage_records_2026_01"]
    node(kept_since=lambda now: now - YEAR)
    await clock.advance(10 * LOOK_SECONDS)
    assert estate.said("retention") == ["failed: the database did not do its work (lock timeout); try again"]
    estate.drop_fails = StillStale()
    await clock.advance(HOURLY_SECONDS)
    estate.drop_fails = None
    await clock.advance(HOURLY_SECONDS)
    assert estate.said("retention")[1:] == [
        "failed: nothing was deleted, because some of it is not added up yet",
        "dropped: usage_records_2026_01",
    ]


async def test_what_is_dropped_in_many_steps_is_said_in_one_sentence(estate, node):
    estate.records = ["5000 records"] * 40 + ["7 records"]
    node(kept_since=lambda now: now - YEAR)
    await others_run()
    assert estate.said("retention") == ["dropped: 5000 records (40 times), 7 records"]


async def test_a_database_that_is_away_is_news_once_and_so_is_its_return(estate, clock, node, caplog):
    caplog.set_level(logging.INFO)
    estate.away = True
    node()
    await clock.advance(100 * LOOK_SECONDS)
    assert caplog.messages == ["jobs wait for the database: the database is away"]
    estate.away = False
    estate.stale = [NOON]
    await clock.advance(LOOK_SECONDS)
    assert (estate.stale, len(estate.said("partitions"))) == ([], 1)
    assert caplog.messages[1:] == ["jobs are done again: the database is back"]


async def test_what_nobody_foresaw_does_not_end_the_jobs(estate, clock, node, caplog, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(estate, "jobs", None)
        node()
        await others_run()
    assert "jobs could not be looked after; tried again in 10 seconds" in caplog.messages
    await clock.advance(LOOK_SECONDS)
    assert estate.said("rollups") == ["every hour was added up already"]


async def test_who_stops_begins_nothing_new_and_may_start_again(estate, clock, node):
    upkeep = node()
    await others_run()
    await upkeep.stop()
    done = len(estate.noted)
    await clock.advance(HOURLY_SECONDS)
    assert len(estate.noted) == done
    upkeep.start()
    await others_run()
    assert len(estate.noted) == done + 2


@pytest.mark.parametrize(
    ("ran_at", "due"),
    [
        (None, True),
        (NOON, False),
        (NOON - 9.999, False),
        (NOON - 10, True),
        # Another node's clock may be a little ahead of ours; one that is far ahead is wrong.
        (NOON + 5, False),
        (NOON + 11, True),
    ],
)
def test_a_job_is_due_when_its_time_has_passed_or_its_last_run_cannot_have_been(ran_at, due):
    assert is_due(None if ran_at is None else run(ran_at), 10.0, NOON) is due


@pytest.mark.parametrize(("duration_ms", "ago", "due"), [(1000, 10, True), (7000, 69, False), (7000, 70, True)])
def test_a_job_that_takes_long_has_a_tenth_of_the_time(duration_ms, ago, due):
    assert is_due(run(NOON - ago, duration_ms), 10.0, NOON) is due
