"""The journal of the in-process ledger: what it keeps over kills, full disks and restarts."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faregate.directory import User
from faregate.ledger.journal import Journal, JournalError, Replay
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Balance, Claim, Counter, Held, Hold
from faregate.policy.model import Meter, Scope, Window
from faregate.records import Facts, Source, Status, UsageRecord, altered

NOON = 1_790_002_800.0
USD = Counter(Scope.USER, "ada", Meter.USD, Window.HOUR, ("anthropic/*", "openai/*"), 1_790_002_800, 1_790_006_400)
RATE = Counter(Scope.EVERYONE, "", Meter.REQUESTS, Window.MINUTE)
SLOTS = Counter(Scope.GROUP, "Ω lab\n", Meter.CONCURRENT, None)


class Nothing:
    """A baseline of a ledger that is new."""

    def used(self, counter: Counter) -> int:
        return 0

    def recent(self, counter: Counter, since: float) -> list[tuple[float, int]]:
        return []


def facts(request_id: str) -> Facts:
    return Facts(
        request_id=request_id,
        admitted_at=NOON + 0.1,
        connection="webui",
        user_id="ada",
        email="ada@exämple.org",
        groups=("staff", "Ω lab\n"),
        policy_id="default",
        model="openai/gpt-5",
        candidates=("openai/gpt-5", "anthropic/claude-opus-4.5"),
        stream=True,
        chat_id='a "quoted"\nline\u2028',
        fixed_nano=2**53 - 1,
        rules=("default: $2.50 a day",),
    )


def record(request_id: str, cost: str = "0.000000000001") -> UsageRecord:
    return UsageRecord(
        facts(request_id), Status.COMPLETED, Source.USAGE, cost=Decimal(cost), cost_nano=7, generation_id="gen-1"
    )


def claims(amount: int = 10) -> list[Claim]:
    return [Claim(USD, amount, 2, limit=10**12), Claim(RATE, 1), Claim(SLOTS, 1)]


async def reserve(ledger: MemoryLedger, request_id: str, asked: list[Claim]) -> object:
    return await ledger.reserve(
        facts(request_id), node="node-1", lease=15.0, claims=asked, cap_wanted=100, cap_min=1, now=NOON
    )


def hold(request_id: str) -> Hold:
    return Hold(altered(facts(request_id), cap=100), "node-1", NOON + 15.0, 100, {USD: 210, RATE: 1, SLOTS: 1})


@contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal.open(path)
    try:
        yield journal
    finally:
        journal.close()


def replayed(path: Path) -> Replay:
    with opened(path) as journal:
        return journal.replay()


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """A real limit of the system: no file of this process grows beyond `size` bytes meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def content(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.journal"


# What it keeps


def test_holds_and_records_come_back_exactly(path: Path):
    parked = replace(hold("b"), amounts={USD: 210, RATE: 1}, parked=True, generation_id="gen-2")
    costs = ["0.000000000001", "123456789012.123456789012", "0", "0.10", "1E-12"]
    with opened(path) as journal:
        journal.held(hold("a"))
        journal.held(hold("b"))
        journal.noted("b", "gen-2")
        journal.parked("b")
        for n, cost in enumerate(costs):
            journal.held(hold(f"r{n}"))
            journal.settled(record(f"r{n}", cost))
        journal.settled(altered(record("unknown cost"), cost=None, status=Status.PENDING, source=None))
        journal.held(hold("c"))
        journal.released("c")
    again = replayed(path)
    assert again.holds == [hold("a"), parked]
    assert [str(record.cost) for record in again.records] == [*(str(Decimal(cost)) for cost in costs), "None"]
    assert again.records[:-1] == [record(f"r{n}", cost) for n, cost in enumerate(costs)]


def test_a_person_is_kept_as_they_were_met_last_also_by_a_compacted_journal(path: Path):
    ada = User("ada", "webui", "s1", "ada@exämple.org", "Ada Ω", "user", ("staff",), True, None, NOON, NOON)
    bob = replace(ada, id="bob", subject="s2", email=None, groups=())
    with opened(path) as journal:
        journal.met(ada)
        journal.met(bob)
        journal.met(replace(ada, name="Ada L."))
    assert replayed(path).people == [replace(ada, name="Ada L."), bob]
    with opened(path) as journal:
        journal.compact([], [], [bob])
    assert replayed(path).people == [bob]


def test_a_new_journal_knows_nothing_and_is_its_owners_alone(path: Path):
    before = os.umask(0)
    try:
        assert replayed(path) == Replay([], [])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_that_others_could_read_is_closed_to_them(path: Path):
    path.touch(mode=0o644)
    replayed(path)
    assert path.stat().st_mode & 0o777 == 0o600


steps = st.lists(
    st.tuples(st.sampled_from(["reserve", "reserve", "note", "park", "settle", "release"]), st.sampled_from("abcdef")),
    max_size=30,
)


async def live_a_history(ledger: MemoryLedger, journal: Journal, history: list[tuple[str, str]]) -> list[tuple]:
    """Do the steps; after each: the size of the journal, and what the engine then knows."""
    settled: list[UsageRecord] = []
    states = [(0, [], [])]
    over: set[str] = set()
    for n, (step, request_id) in enumerate(history):
        if step == "reserve" and request_id not in over:
            await reserve(ledger, request_id, claims(n))
        elif step == "note":
            await ledger.note(request_id, f"gen-{n}")
        elif step == "park":
            await ledger.park(request_id)
        elif step == "settle":
            if request_id not in {known.facts.request_id for known in settled}:
                settled.append(record(request_id, f"0.{n}"))
            await ledger.settle(request_id, [(USD, n)], record(request_id, f"0.{n}"))
            over.add(request_id)
        elif step == "release":
            await ledger.release(request_id, NOON)
            over.add(request_id)
        states.append((journal.size, ledger.live(), list(settled)))
    return states


@settings(max_examples=150, deadline=None)
@given(history=steps, data=st.data())
def test_a_journal_cut_anywhere_is_the_engine_as_of_its_last_whole_line(
    history: list[tuple[str, str]], data: st.DataObject
):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ledger.journal")
        with opened(path) as journal:
            states = asyncio.run(live_a_history(MemoryLedger(Nothing(), journal), journal, history))
        size = states[-1][0]
        ends = {end for end, _, _ in states}
        near_an_end = [cut for end in ends for cut in (end - 1, end, end + 1) if 0 <= cut <= size]
        cut = data.draw(st.one_of(st.integers(0, size), st.sampled_from(near_an_end)))
        os.truncate(path, cut)
        end, holds, records = [state for state in states if state[0] <= cut][-1]
        with opened(path) as journal:
            assert journal.replay() == Replay(holds, records)
            assert journal.size == path.stat().st_size == end
            journal.held(hold("next"))
            assert journal.replay() == Replay([*holds, hold("next")], records)


@settings(max_examples=50, deadline=None)
@given(history=steps, before=st.integers(0, 30))
def test_compacting_changes_nothing_that_is_known(history: list[tuple[str, str]], before: int):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "ledger.journal")
        with opened(path) as journal:
            ledger = MemoryLedger(Nothing(), journal)
            states = asyncio.run(live_a_history(ledger, journal, history))
            _, holds, records = states[-1]
            journal.compact(ledger.live(), records[before:])
            journal.held(hold("next"))
        assert replayed(path) == Replay([*holds, hold("next")], records[before:])


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import Nothing, claims, record, reserve
from faregate.directory import User
from faregate.ledger.journal import Journal
from faregate.ledger.memory import MemoryLedger

async def main():
    ledger = MemoryLedger(Nothing(), Journal.open(Path(sys.argv[1])))
    for n in range(1_000_000):
        await reserve(ledger, f"r{n}", claims())
        print("held", n, flush=True)
        if n % 3 == 0:
            await ledger.settle(f"r{n}", [], record(f"r{n}", f"0.{n}"))
            print("settled", n, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(path: Path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    with child:
        said = [child.stdout.readline() for _ in range(500)]
        child.send_signal(signal.SIGKILL)
        said += [line for line in child.stdout.readlines() if line.endswith("\n")]
    again = replayed(path)
    held = {int(line.split()[1]) for line in said if line.startswith("held")}
    settled = {int(line.split()[1]) for line in said if line.startswith("settled")}
    known_settled = {record.facts.request_id for record in again.records}
    known = known_settled | {hold.facts.request_id for hold in again.holds}
    assert child.returncode == -signal.SIGKILL
    assert {f"r{n}" for n in held} <= known
    assert {f"r{n}" for n in settled} <= known_settled
    # One request at most was under way and not acknowledged.
    assert len(known) - len(held) in (0, 1)


async def test_after_a_restart_the_ledger_holds_what_it_held(path: Path):
    with opened(path) as journal:
        ledger = MemoryLedger(Nothing(), journal)
        for request_id in "abc":
            await reserve(ledger, request_id, claims())
        await ledger.park("a")
        await ledger.release("c", NOON)
        before = await ledger.peek([USD, RATE, SLOTS], NOON)
    with opened(path) as journal:
        ledger = MemoryLedger(Nothing(), journal)
        ledger.restore(journal.replay().holds)
        assert await ledger.peek([USD, RATE, SLOTS], NOON) == before == [Balance(0, 420), Balance(0, 2), Balance(0, 1)]
        await ledger.settle("a", [(USD, 3)], record("a"))
        assert journal.replay() == Replay([hold("b")], [record("a")]) == Replay(ledger.live(), [record("a")])


# Damage


@pytest.mark.parametrize("damage", [b"}", b'{"event":"paid"}', b"\x00\x00", b"\xff\xfe", b""])
def test_damage_before_the_last_line_is_an_error_that_names_the_line(path: Path, damage: bytes):
    with opened(path) as journal:
        journal.held(hold("a"))
        whole = path.read_bytes()
    path.write_bytes(whole + damage + b"\n" + whole)
    with opened(path) as journal, pytest.raises(JournalError, match=rf"{path} is damaged in line 2: .*move it away"):
        journal.replay()


def test_a_last_line_longer_than_one_read_is_cut_off_whole(path: Path):
    with opened(path) as journal:
        journal.held(hold("a"))
        end = journal.size
    with path.open("ab") as file:
        file.write(b'{"event":"held' + b"x" * 200_000)
    assert replayed(path) == Replay([hold("a")], [])
    assert path.stat().st_size == end


def test_two_processes_cannot_have_one_journal(path: Path):
    with opened(path) as journal:
        for _ in range(2):
            with pytest.raises(JournalError, match="in use by another process"):
                Journal.open(path)
            journal.compact([])
    replayed(path)


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: Path):
    with pytest.raises(JournalError, match=r"cannot be opened: No such file or directory\. Give .* DATA_DIR"):
        Journal.open(tmp_path / "missing" / "ledger.journal")


# A full disk


async def test_on_a_full_disk_nothing_is_admitted_and_nothing_is_changed(path: Path):
    with opened(path) as journal:
        ledger = MemoryLedger(Nothing(), journal)
        assert await reserve(ledger, "a", claims()) == Held(100)
        whole = content(path)
        for room in (0, 1, 100):
            with disk_full_at(len(whole) + room):
                with pytest.raises(JournalError, match=r"cannot be written: .* Make room on its disk"):
                    await reserve(ledger, "b", claims())
                with pytest.raises(JournalError, match="cannot be written"):
                    await ledger.settle("a", [(USD, 5)], record("a"))
            assert content(path) == whole
            assert ledger.live() == [hold("a")]
            assert await ledger.peek([USD, SLOTS], NOON) == [Balance(0, 210), Balance(0, 1)]
        assert await reserve(ledger, "b", claims()) == Held(100)
        await ledger.settle("a", [(USD, 5)], record("a"))
        assert journal.replay() == Replay([hold("b")], [record("a")])


async def test_on_a_full_disk_slots_still_go_back_and_the_journal_learns_it_later(path: Path):
    with opened(path) as journal:
        ledger = MemoryLedger(Nothing(), journal)
        for request_id in "abc":
            await reserve(ledger, request_id, claims())
        with disk_full_at(len(content(path)) + 10):
            await ledger.note("a", "gen-1")
            await ledger.park("a")
            await ledger.release("b", NOON)
        assert await ledger.peek([SLOTS], NOON) == [Balance(0, 1)]
        assert len(journal.replay().holds) == 3
        await ledger.settle("c", [], record("c"))
        assert journal.replay() == Replay(ledger.live(), [record("c")])
        await ledger.release("a", NOON)
        assert journal.size == len(content(path))
        assert content(path).count(b'"event":"parked"') == 1


def test_of_a_person_who_is_met_again_and_again_on_a_full_disk_only_the_latest_state_is_owed(path: Path):
    ada = User("ada", "webui", "s1", "ada@example.org", "Ada", "user", ("staff",), True, None, NOON, NOON)
    with opened(path) as journal:
        journal.held(hold("a"))
        with disk_full_at(len(content(path))):
            for n in range(1_000):
                journal.met(replace(ada, last_seen_at=NOON + n))
            journal.released("a")
        before = journal.size
        journal.held(hold("b"))
        assert journal.size - before < 3_000
    assert replayed(path) == Replay([hold("b")], [], [replace(ada, last_seen_at=NOON + 999)])


def test_a_journal_that_cannot_be_written_says_so_until_it_can_be(path: Path):
    with opened(path) as journal:
        assert journal.failure is journal.retry() is None
        journal.held(hold("a"))
        whole = content(path)
        # Room for something, but not for a line.
        with disk_full_at(len(whole) + 10):
            with pytest.raises(JournalError) as failed:
                journal.held(hold("b"))
            assert journal.failure == journal.retry() == str(failed.value)
            journal.released("a")
            assert journal.retry() is not None
        assert journal.failure is not None
        assert content(path) == whole
        assert journal.retry() is journal.failure is None
        assert content(path) == whole
        journal.held(hold("b"))
        assert journal.replay() == Replay([hold("b")], [])


def test_a_journal_that_is_written_again_has_no_failure(path: Path):
    with opened(path) as journal:
        with disk_full_at(0):
            journal.released("a")
        assert journal.failure is not None
        journal.held(hold("b"))
        assert journal.failure is None


def test_without_a_file_descriptor_the_journal_says_what_to_do(path: Path):
    with opened(path) as journal:
        journal.held(hold("a"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            with pytest.raises(JournalError, match=r"Too many open files.* Allow more open files"):
                journal.sync()
            with pytest.raises(JournalError, match="Allow more open files"):
                journal.compact([])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert journal.failure is None
        journal.sync()


async def test_what_is_owed_is_written_when_the_journal_is_closed(path: Path):
    with opened(path) as journal:
        journal.held(hold("a"))
        with disk_full_at(len(content(path))):
            journal.released("a")
    assert replayed(path) == Replay([], [])


def test_what_is_owed_when_the_journal_is_compacted_is_owed_no_longer(path: Path):
    with opened(path) as journal:
        journal.held(hold("a"))
        with disk_full_at(path.stat().st_size):
            journal.released("a")
        journal.compact([])
        journal.held(hold("b"))
        assert path.read_bytes().count(b"\n") == 1
    assert replayed(path) == Replay([hold("b")], [])


def test_compacting_on_a_full_disk_keeps_the_old_journal(path: Path):
    with opened(path) as journal:
        for request_id in "abc":
            journal.held(hold(request_id))
        size = journal.size
        with disk_full_at(size // 2), pytest.raises(JournalError, match="cannot be written"):
            journal.compact([hold("a"), hold("b")])
        journal.released("a")
        assert journal.replay() == Replay([hold("b"), hold("c")], [])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# Compacting


def test_a_compacted_journal_is_small_its_owners_alone_and_goes_on(path: Path):
    with opened(path) as journal:
        for n in range(100):
            journal.held(hold(f"r{n}"))
            journal.settled(record(f"r{n}"))
        assert journal.size == path.stat().st_size > 100_000
        path.with_name(path.name + ".new").write_bytes(b"left by a kill in the middle of compacting")
        journal.compact([hold("live")], [record("r99")])
        assert journal.size == path.stat().st_size < 3_000
        assert path.stat().st_mode & 0o777 == 0o600
        journal.released("live")
        journal.sync()
    assert replayed(path) == Replay([], [record("r99")])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_syncing_from_a_thread_and_compacting_meanwhile_do_not_disturb_each_other(path: Path):
    with opened(path) as journal:
        journal.held(hold("a"))
        syncs = [asyncio.create_task(asyncio.to_thread(journal.sync)) for _ in range(20)]
        for _ in range(20):
            journal.compact([hold("a")])
            await asyncio.sleep(0)
        await asyncio.gather(*syncs)
        assert journal.replay() == Replay([hold("a")], [])
