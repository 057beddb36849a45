"""What is on its way to the database gets there, once, in order, whatever happens on the way."""

import asyncio
import logging
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
from accounting_world import NOON, FarStore, HandClock, facts_of, others_run, record_of, unknown_of

from faregate.accounting import outbox as outbox_module
from faregate.accounting.figures import pending_row
from faregate.accounting.keeping import JournalKeeper
from faregate.accounting.outbox import BATCH_ROWS, GROUP_SECONDS, MOST_PATIENCE, Outbox
from faregate.directory import User
from faregate.ledger.journal import Journal
from faregate.ledger.port import Hold
from faregate.records import Status, UsageRecord, altered
from faregate.store.errors import StoreUnavailable
from faregate.store.usage import UsageQuery


def user_of(name="ada", **changes):
    user = User(
        id=name,
        connection="main",
        subject=name,
        email=f"{name}@example.org",
        name=name,
        role="user",
        groups=(),
        is_active=True,
        policy_id=None,
        created_at=NOON,
        last_seen_at=NOON,
    )
    return replace(user, **changes)


def refusal_of(request_id):
    return UsageRecord(facts=facts_of(request_id), status=Status.REFUSED, requests=0, reason="the limit is reached")


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def far(clock):
    far = FarStore()
    far.clock = clock
    return far


@pytest.fixture
async def outbox(far, clock):
    outbox = Outbox(far, clock=clock)
    outbox.start()
    yield outbox
    far.away = False
    await outbox.stop()


@pytest.fixture
def journal(tmp_path):
    journal = Journal.open(tmp_path / "journal")
    yield journal
    journal.close()


async def test_rows_that_come_together_are_written_together_after_a_moment(outbox, far, clock):
    outbox.add_record(record_of("a"))
    await others_run()
    outbox.add_record(record_of("b"))
    await clock.advance(GROUP_SECONDS * 0.9)
    assert far.batches == []

    await clock.advance(GROUP_SECONDS * 0.1)

    assert far.batches == [["a", "b"]]
    assert outbox.lag == (0, 0.0, None, ())


async def test_a_full_batch_does_not_wait(outbox, far):
    for number in range(BATCH_ROWS + 1):
        outbox.add_record(record_of(f"r{number}"))
    await others_run()

    assert [len(batch) for batch in far.batches] == [BATCH_ROWS]
    assert outbox.lag.waiting == 1


async def test_people_are_written_before_their_records(outbox, far):
    for number in range(BATCH_ROWS):
        outbox.add_record(record_of(f"r{number}"))
    outbox.add_user(user_of("ada"))
    await outbox.flush()

    assert far.batches[0][:2] == ["ada", "r0"]
    assert far.batches[1] == [f"r{BATCH_ROWS - 1}"]


async def test_only_the_latest_state_of_a_person_is_written_and_as_it_was_when_told(outbox, far):
    told = user_of(role="user")
    outbox.add_user(told)
    told.role = "admin"
    outbox.add_user(told)
    told.role = "somebody else's change"
    await outbox.flush()

    assert [user.role for user in far.people] == ["admin"]


async def test_a_state_that_comes_while_the_one_before_is_being_written_is_written_too(outbox, far):
    outbox.add_user(user_of(role="user"))
    writing = asyncio.ensure_future(outbox.flush())
    await asyncio.sleep(0)
    outbox.add_user(user_of(role="admin"))
    await writing
    await outbox.flush()

    assert [user.role for user in far.people] == ["user", "admin"]


async def test_a_final_record_takes_the_place_of_its_pending_one_but_never_the_other_way_round(outbox, far):
    pending, final = pending_row(unknown_of("a")), record_of("a")
    outbox.add_record(pending)
    outbox.add_record(final)
    outbox.add_record(pending)
    await outbox.flush()

    assert far.records == [final]


async def test_while_the_store_is_away_everything_is_kept_and_then_written_once_in_order(outbox, far, clock):
    far.away = True
    for number in range(1_200):
        outbox.add_record(record_of(f"r{number}"))
        if number % 100 == 0:
            await clock.advance(1)
    assert far.records == []
    assert outbox.lag.waiting == 1_200
    assert outbox.lag.error == "the database is away"

    far.away = False
    await clock.advance(2 * MOST_PATIENCE)

    assert [record.facts.request_id for record in far.records] == [f"r{number}" for number in range(1_200)]
    assert outbox.lag == (0, 0.0, None, ())


async def test_patience_grows_and_is_bounded_and_starts_anew_after_a_success(outbox, far, clock):
    far.away = True
    outbox.add_record(record_of("a"))
    await clock.advance(60)
    waits = [later - earlier for earlier, later in zip(far.tries, far.tries[1:], strict=False)]

    assert waits == sorted(waits)
    assert waits[0] < 0.5
    assert waits[-1] == pytest.approx(MOST_PATIENCE + GROUP_SECONDS)

    far.away = False
    await clock.advance(MOST_PATIENCE + 1)
    far.away, far.tries[:] = True, []
    outbox.add_record(record_of("b"))
    await clock.advance(1)
    assert far.tries[1] - far.tries[0] == pytest.approx(waits[0])


async def test_the_age_of_the_oldest_row_is_told(outbox, far, clock):
    far.away = True
    outbox.add_record(record_of("a"))
    await clock.advance(30)
    outbox.add_record(record_of("b"))

    assert outbox.lag.oldest == pytest.approx(30)


async def test_flush_says_when_the_store_is_away_and_loses_nothing(outbox, far):
    far.away = True
    outbox.add_record(record_of("a"))
    with pytest.raises(StoreUnavailable):
        await outbox.flush()
    far.away = False
    await outbox.flush()

    assert far.batches == [["a"]]


async def test_a_row_that_the_store_refuses_does_not_block_the_others_and_is_reported(outbox, far, caplog):
    far.refuses = {"r3", "r8"}
    for number in range(10):
        outbox.add_record(record_of(f"r{number}"))
    await outbox.flush()

    assert [record.facts.request_id for record in far.records] == [
        f"r{number}" for number in range(10) if number not in {3, 8}
    ]
    assert outbox.lag.dead == ("r3", "r8")
    assert [record.facts.request_id for record in outbox.unwritten()] == ["r3", "r8"]
    assert "refuses UsageRecord r3" in caplog.text
    assert "ada@example.org" not in caplog.text


async def test_a_refused_row_that_is_written_later_is_no_longer_reported(outbox, far):
    far.refuses = {"a"}
    outbox.add_record(record_of("a"))
    await outbox.flush()
    far.refuses = set()
    outbox.add_record(record_of("a"))
    await outbox.flush()

    assert outbox.lag.dead == ()


async def test_a_real_database_refuses_a_number_that_is_too_large_and_takes_the_rest(store):
    outbox = Outbox(store)
    for request_id, tokens in [("a", 10), ("b", 2**70), ("c", 30)]:
        outbox.add_record(record_of(request_id, tokens=tokens))
    await outbox.flush()

    assert {row.request_id for row in await store.usage(UsageQuery())} == {"a", "c"}
    assert outbox.lag.dead == ("b",)


async def test_stopping_writes_what_is_left(far, clock):
    outbox = Outbox(far, clock=clock)
    outbox.start()
    for number in range(BATCH_ROWS + 10):
        outbox.add_record(record_of(f"r{number}"))
    await outbox.stop()

    assert len(far.records) == BATCH_ROWS + 10


async def test_stopping_while_the_store_says_nothing_ends_and_says_what_is_left(far, clock, caplog, monkeypatch):
    monkeypatch.setattr(outbox_module, "LAST_PATIENCE", 0.05)
    outbox = Outbox(far, clock=clock)
    outbox.start()
    far.silence = asyncio.Event()
    outbox.add_record(record_of("r1"))
    await clock.advance(1)
    outbox.add_record(record_of("r2"))

    async with asyncio.timeout(10):
        await outbox.stop()

    assert [record.facts.request_id for record in outbox.unwritten()] == ["r1", "r2"]
    assert "2 rows are not in the database at the end: it does not answer" in caplog.text


async def test_stopping_while_the_store_is_away_ends_and_says_what_is_left(far, clock, caplog):
    far.away = True
    outbox = Outbox(far, clock=clock)
    outbox.start()
    outbox.add_record(record_of("a"))
    await clock.advance(10)
    await outbox.stop()

    assert "1 rows are not in the database at the end" in caplog.text


@contextmanager
def no_more_files():
    """A real limit of the system: this process opens no further file meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_running_out_of_file_descriptors_for_a_moment_does_not_end_the_writing(far, clock, journal, caplog):
    outbox = Outbox(far, JournalKeeper(journal), clock=clock)
    outbox.start()
    await asyncio.to_thread(journal.sync)
    with no_more_files():
        for request_id in ("a", "b"):
            journal.settled(record_of(request_id))
            outbox.add_record(record_of(request_id))
            await clock.advance(1)
            # The batch is over when its keeper is, who works in a thread.
            async with outbox._writing:
                pass
    outbox.add_record(record_of("c"))
    await outbox.stop()

    assert far.batches == [["a"], ["b"], ["c"]]
    assert "Allow more open files" in caplog.text


async def test_an_error_that_nobody_foresaw_ends_neither_the_writing_nor_the_end(far, clock, journal, caplog):
    def live():
        raise MemoryError("ada@example.org")

    keeper = JournalKeeper(journal, compact_bytes=1)
    outbox = Outbox(far, keeper, clock=clock)
    keeper.watch(live, outbox)
    outbox.start()
    for request_id in ("a", "b"):
        journal.settled(record_of(request_id))
        outbox.add_record(record_of(request_id))
        await clock.advance(2 * MOST_PATIENCE)
    assert far.batches == [["a"], ["b"]]
    outbox.add_record(record_of("c"))
    await outbox.stop()

    assert far.batches == [["a"], ["b"], ["c"]]
    assert "MemoryError" in caplog.text
    assert "ada@example.org" not in caplog.text


async def test_a_background_task_that_has_died_does_not_keep_the_end_from_writing_what_is_left(far, caplog):
    class Stopped(HandClock):
        async def wait(self, event, seconds):
            raise OSError("the clock cannot be read")

    outbox = Outbox(far, clock=Stopped())
    outbox.start()
    outbox.add_record(record_of("a"))
    await others_run()
    await outbox.stop()

    assert far.batches == [["a"]]
    assert "the background task outbox has ended by an error" in caplog.text


async def test_what_is_not_on_the_disk_yet_is_put_there_with_the_next_batch(far, clock, journal, monkeypatch):
    outbox = Outbox(far, JournalKeeper(journal), clock=clock)
    journal.settled(record_of("a"))
    outbox.add_record(record_of("a"))
    with no_more_files():
        await outbox.flush()
    synced = []
    monkeypatch.setattr(journal, "sync", lambda: synced.append(journal.size))
    outbox.add_record(record_of("b"))
    await outbox.flush()

    assert synced == [journal.size]


async def test_a_growing_backlog_raises_an_alarm_at_each_doubling_and_is_not_trimmed(outbox, far, monkeypatch, caplog):
    monkeypatch.setattr(outbox, "_alarm_at", 10)
    far.away = True
    with caplog.at_level(logging.ERROR, logger=outbox_module.__name__):
        for number in range(45):
            outbox.add_record(record_of(f"r{number}"))

    assert [message.split()[0] for message in caplog.messages] == ["10", "20", "40"]
    assert outbox.lag.waiting == 45


async def test_a_journal_is_compacted_to_what_is_alive_and_what_the_database_refuses(far, journal):
    hold = Hold(facts_of("live"), "node-1", expires_at=NOON, cap=100)
    far.refuses = {"dead"}
    keeper = JournalKeeper(journal, compact_bytes=100)
    outbox = Outbox(far, keeper, clock=HandClock())
    keeper.watch(lambda: [hold], outbox)
    outbox.start()
    journal.held(hold)
    for request_id in ("written", "dead"):
        journal.settled(record_of(request_id))
        outbox.add_record(record_of(request_id))
    await outbox.stop()

    replay = journal.replay()
    assert replay.holds == [hold]
    assert [record.facts.request_id for record in replay.records] == ["dead"]


async def test_a_journal_is_not_compacted_before_the_live_holds_are_known(far, journal):
    outbox = Outbox(far, JournalKeeper(journal, compact_bytes=1))
    journal.held(Hold(facts_of("live"), "node-1", expires_at=NOON, cap=100))
    outbox.restore([record_of("left")])
    await outbox.flush()

    assert [hold.facts.request_id for hold in journal.replay().holds] == ["live"]


async def test_a_record_that_waits_survives_a_compaction(far, journal):
    keeper = JournalKeeper(journal, compact_bytes=100)
    outbox = Outbox(far, keeper, clock=HandClock())
    keeper.watch(list, outbox)
    outbox.start()
    for number in range(BATCH_ROWS + 1):
        journal.settled(record_of(f"r{number}"))
        outbox.add_record(record_of(f"r{number}"))
    await outbox._write_batch()

    assert [record.facts.request_id for record in journal.replay().records] == [f"r{BATCH_ROWS}"]
    await outbox.stop()


async def test_a_refusal_is_in_the_journal_until_the_database_has_it(far, journal):
    far.away = True
    outbox = Outbox(far, JournalKeeper(journal))
    outbox.add_record(refusal_of("no"))

    assert journal.replay().records == [refusal_of("no")]


class NotingKeeper:
    """A keeper that notes what it is told."""

    def __init__(self):
        self.kept = []
        self.gone = []

    def refused(self, record):
        self.kept.append(record.facts.request_id)

    def met(self, user):
        self.kept.append((user.id, user.role))

    async def written(self, people, records):
        self.gone += [(user.id, user.role) for user in people] + [record.facts.request_id for record in records]


async def test_a_keeper_is_told_of_refusals_and_people_and_of_what_the_database_has(far):
    keeper = NotingKeeper()
    outbox = Outbox(far, keeper)
    outbox.add_user(user_of(role="admin"))
    outbox.add_record(refusal_of("no"))
    outbox.add_record(record_of("yes"))
    assert keeper.kept == [("ada", "admin"), "no"]

    await outbox.flush()

    assert keeper.gone == [("ada", "admin"), "no", "yes"]


async def test_a_keeper_keeps_what_the_database_refuses_and_lets_go_of_the_others(far):
    keeper = NotingKeeper()
    far.refuses = {"b"}
    outbox = Outbox(far, keeper)
    for request_id in ("a", "b", "c"):
        outbox.add_record(record_of(request_id))
    await outbox.flush()

    assert keeper.gone == ["a", "c"]


async def test_what_was_written_before_the_database_went_away_is_told_to_the_keeper(far):
    class HalfWay(FarStore):
        async def write(self, people, records):
            late = await super().write(people, records)
            self.away = True
            return late

    keeper, half_way = NotingKeeper(), HalfWay()
    half_way.refuses = {"b"}
    outbox = Outbox(half_way, keeper)
    for request_id in ("a", "b"):
        outbox.add_record(record_of(request_id))
    with pytest.raises(StoreUnavailable):
        await outbox.flush()

    assert keeper.gone == ["a"]


async def test_a_pending_row_lets_nobody_forget_the_final_record_that_may_be_kept_already(far):
    keeper = NotingKeeper()
    outbox = Outbox(far, keeper)
    outbox.add_record(pending_row(unknown_of("a")))
    await outbox.flush()
    assert keeper.gone == []

    outbox.add_record(record_of("a"))
    await outbox.flush()
    assert keeper.gone == ["a"]


async def test_an_earlier_state_that_is_written_lets_nobody_forget_the_latest(far):
    keeper = NotingKeeper()
    outbox = Outbox(far, keeper)
    outbox.add_user(user_of(role="user"))
    writing = asyncio.ensure_future(outbox.flush())
    await asyncio.sleep(0)
    outbox.add_user(user_of(role="admin"))
    await writing
    await outbox.flush()

    assert keeper.gone == [("ada", "admin")]


async def test_a_record_of_an_era_that_is_over_is_handed_back_and_written_when_it_comes_again(far):
    keeper, back = NotingKeeper(), []
    far.era = 4
    outbox = Outbox(far, keeper, late=back.append)
    for request_id, era in [("old", 3), ("new", 4), ("embedded", 0)]:
        outbox.add_record(altered(record_of(request_id), era=era))
    await outbox.flush()
    assert [record.facts.request_id for record in back] == ["old"]
    assert keeper.gone == ["new", "embedded"]
    assert outbox.lag.waiting == 0

    outbox.add_record(altered(back[0], era=4))
    await outbox.flush()

    assert [(record.facts.request_id, record.era) for record in far.records] == [
        ("new", 4),
        ("embedded", 0),
        ("old", 4),
    ]
    assert keeper.gone == ["new", "embedded", "old"]


async def test_a_late_record_that_nobody_can_charge_again_is_reported_and_not_lost(far, caplog):
    far.era = 4
    outbox = Outbox(far)
    outbox.add_record(altered(record_of("old"), era=3))
    await outbox.flush()

    assert outbox.lag.dead == ("old",)
    assert [record.facts.request_id for record in outbox.unwritten()] == ["old"]
    assert "its era 3 is over" in caplog.text
