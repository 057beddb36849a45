"""The store on SQLite and on PostgreSQL: what was written is there, once, exactly, and can be asked for."""

import asyncio
import sqlite3
import stat
from dataclasses import replace
from decimal import Decimal
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import BY, NOON, person, record
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from faregate.policy.model import DEFAULT_POLICY_ID, Enforcement, GroupPolicy, Limit, Meter, Policy, Scope, Window
from faregate.records import Source, Status
from faregate.store import engine
from faregate.store.errors import PolicyInUse, StoreError, StoreUnavailable, UnknownRecord
from faregate.store.store import SpendRow, Store, UsageQuery

ROUGH = Policy(
    id="rough",
    name="Rough ✓",
    limits=(
        Limit(Meter.USD, Window.DAY, 2_500_000_001),
        Limit(Meter.TOKENS, Window.MONTH, 1_000_000, Scope.GROUP),
        Limit(Meter.CONCURRENT, None, 3, Scope.EVERYONE, ("anthropic/*", "openai/*")),
    ),
    allow=("openai/*", "google/*"),
    deny=("*:online",),
    max_output_tokens=8192,
    enforcement=Enforcement.SHADOW,
)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
def url(database):
    return database.url


@pytest.fixture
async def store(url):
    store = await Store.open(url)
    yield store
    await store.close()


FINAL = {
    "source": Source.USAGE,
    "served_model": "openai/gpt-4o-2024-08-06",
    "provider": "OpenAI",
    "prompt_tokens": 11,
    "completion_tokens": 22,
    "total_tokens": 33,
    "cached_tokens": 4,
    "reasoning_tokens": 5,
    "cost": Decimal("0.000123456789"),
    "cost_nano": 123_457,
    "ttft_ms": 180,
    "duration_ms": 950,
    "generation_id": "gen-1",
}


async def ids(store, **query):
    return [row.request_id for row in await store.usage(UsageQuery(**query))]


async def test_a_new_store_is_empty_and_answers(store):
    await store.ping()
    snapshot = await store.load()
    assert (snapshot.users, snapshot.policies, snapshot.group_policies) == ((), (), ())
    assert await store.usage(UsageQuery()) == []
    assert await store.pending() == []


async def test_a_relative_url_is_a_file_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = await Store.open("sqlite:///data/faregate.db")
    await store.close()
    assert (tmp_path / "data" / "faregate.db").is_file()


async def test_nobody_else_may_read_what_sqlite_writes(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    await store.write([person()], [record()])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["faregate.db", "faregate.db-wal", "faregate.db-shm"], 0o600)
    await store.close()


async def test_what_was_written_is_there_after_a_restart(store, url):
    await store.save_policy(ROUGH, **BY)
    await store.save_group_policy(GroupPolicy("physics, applied", "rough", 7), **BY)
    await store.write([person()], [record(**FINAL)])
    await store.close()
    again = await Store.open(url)
    snapshot = await again.load()
    [row] = await again.usage(UsageQuery())
    await again.close()
    assert snapshot.users == (person(),)
    assert snapshot.policies == (ROUGH,)
    assert snapshot.group_policies == (GroupPolicy("physics, applied", "rough", 7),)
    assert (row.request_id, row.cost) == ("r-1", FINAL["cost"])


async def test_a_database_of_a_newer_faregate_is_left_alone(store, database):
    await store.close()
    database.sql("UPDATE meta SET value = '4' WHERE key = 'schema_version'")
    database.sql("ALTER TABLE assignments RENAME TO of_the_newer")
    with pytest.raises(StoreError, match="schema version 4, but this Faregate knows versions up to 3") as refusal:
        await Store.open(database.url)
    assert not isinstance(refusal.value, StoreUnavailable)
    with pytest.raises((AssertionError, sqlite3.OperationalError), match="assignments"):
        database.sql("SELECT * FROM assignments")


async def test_a_file_that_is_no_database_is_not_overwritten(tmp_path):
    (tmp_path / "faregate.db").write_text("my diary, " * 1000)
    with pytest.raises(StoreError, match="not a database"):
        await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    assert (tmp_path / "faregate.db").read_text().startswith("my diary")


async def test_several_nodes_may_start_at_once_and_share_one_salt(url):
    stores = await asyncio.gather(*(Store.open(url) for _ in range(5)))
    salts = await asyncio.gather(*(store.salt() for store in stores for _ in range(3)))
    await asyncio.gather(*(store.close() for store in stores))
    again = await Store.open(url)
    salts.append(await again.salt())
    await again.close()
    assert len(set(salts)) == 1
    assert len(salts[0]) == 32


async def test_another_store_has_another_salt(store, new_database):
    other = await Store.open(new_database().url)
    salts = (await store.salt(), await other.salt())
    await other.close()
    assert salts[0] != salts[1]


async def test_60_writers_of_one_new_person_make_one_row(store):
    await asyncio.gather(*(store.write([person(seen=NOON + n)], []) for n in range(60)))
    assert (await store.load()).users == (person(seen=NOON + 59),)


async def test_a_person_keeps_the_id_of_the_first_sight(store):
    await store.write([person(id="first")], [])
    await store.write([person(id="second", name="New", created_at=NOON + 1, seen=NOON + 1)], [])
    [user] = (await store.load()).users
    assert (user.id, user.name, user.created_at, user.last_seen_at) == ("first", "New", NOON, NOON + 1)


async def test_a_late_batch_does_not_undo_what_was_seen_since(store):
    await store.write([person(seen=NOON + 60, name="New", groups=())], [])
    await store.write([person(seen=NOON, name="Old")], [])
    [user] = (await store.load()).users
    assert (user.name, user.groups, user.last_seen_at) == ("New", (), NOON + 60)


async def test_somebody_joins_and_leaves_groups_by_what_was_seen_last(store, database):
    for turn, groups in enumerate([("arts", "staff"), ("physics", "staff"), (), ("arts",)]):
        await store.write([person(seen=NOON + turn, groups=groups)], [])
        assert (await store.load()).users == (person(seen=NOON + turn, groups=groups),)
    assert sorted(database.sql("SELECT name FROM groups")) == [("arts",), ("physics",), ("staff",)]


async def test_people_of_one_batch_share_their_connection_and_groups(store, database):
    crowd = [
        person(f"u-{n}", id=f"{connection}-{n}", connection=connection, groups=tuple(f"g-{m:02}" for m in range(n)))
        for connection in ("owui", "script")
        for n in range(100)
    ]
    for _ in range(2):
        await store.write(crowd, [])
        assert sorted((await store.load()).users, key=lambda user: user.id) == sorted(crowd, key=lambda user: user.id)
    assert sorted(database.sql("SELECT name FROM connections")) == [("owui",), ("script",)]
    assert len(database.sql("SELECT name FROM groups")) == 99


async def test_groups_that_no_database_can_tell_apart_are_one(store):
    await store.write([person(groups=("a\0", "a\ud800", "b"))], [])
    assert (await store.load()).users[0].groups == ("a\ufffd", "b")


async def test_writing_a_person_assigns_nothing(store):
    await store.save_policy(ROUGH, **BY)
    await store.write([person(policy_id="rough"), person("u-2", policy_id="never saved")], [record()])
    assert [user.policy_id for user in (await store.load()).users] == [None, None]
    assert await ids(store) == ["r-1"]


async def test_the_database_too_refuses_to_assign_a_policy_that_is_not_there_or_to_delete_one_that_is_assigned(store):
    await store.save_policy(ROUGH, **BY)
    await store.assign(person(), policy_id="rough", **BY)
    for statement in (
        "INSERT INTO assignments VALUES ('group', 'staff', 'calm', 0)",
        "DELETE FROM policies",
        "INSERT INTO memberships VALUES ('nobody', 'staff')",
        "UPDATE users SET connection = 'nowhere'",
    ):
        with pytest.raises(IntegrityError):
            async with store._write() as connection:
                await connection.exec_driver_sql(statement)


async def test_however_many_people_there_are_a_node_asks_for_them_a_few_times(store):
    asked = []
    event.listen(store._reader.sync_engine, "before_cursor_execute", lambda *about: asked.append(about[2]))
    questions = set()
    for first in (0, 1, 300):
        await store.write([person(f"u-{first + n}", groups=(f"g-{n}", "staff")) for n in range(first + 1)], [])
        asked.clear()
        await store.load()
        questions.add(len(asked))
    [few] = questions
    assert few <= 6


async def test_the_latest_state_of_a_person_in_a_batch_wins(store):
    await store.write([person(seen=NOON + 2, name="New"), person(seen=NOON + 1, name="Old")], [])
    assert (await store.load()).users[0].name == "New"


async def test_writing_a_person_does_not_undo_what_an_administrator_decided(store):
    await store.save_policy(ROUGH, **BY)
    await store.write([person()], [])
    await store.assign(person(), is_active=False, policy_id="rough", **BY)
    await store.write([person(seen=NOON + 60, role="admin", is_active=True, policy_id=None)], [])
    [user] = (await store.load()).users
    assert (user.role, user.is_active, user.policy_id) == ("admin", False, "rough")


async def test_a_decision_about_somebody_who_was_not_written_yet_is_kept(store):
    await store.assign(person(), is_active=False, **BY)
    await store.write([person(seen=NOON + 1)], [])
    assert (await store.load()).users == (person(seen=NOON + 1, is_active=False),)


async def test_a_decision_leaves_alone_what_it_does_not_name(store):
    await store.save_policy(ROUGH, **BY)
    await store.assign(person(), is_active=False, policy_id="rough", **BY)
    await store.assign(person(), policy_id=None, **BY)
    await store.assign(person(), **BY)
    [user] = (await store.load()).users
    assert (user.is_active, user.policy_id) == (False, None)


async def test_what_no_database_can_keep_in_a_name_does_not_stop_the_batch(store):
    await store.write([person(name="Z\0oë\ud800")], [record(reason="bad \udfff input")])
    assert (await store.load()).users[0].name == "Z\ufffdoë\ufffd"
    [row] = await store.usage(UsageQuery())
    assert row.reason == "bad \ufffd input"


@pytest.mark.parametrize("people", [[], [person()]], ids=["alone", "with a person"])
async def test_text_comes_back_but_for_what_no_database_can_keep(store, people):
    texts = ["", 'it\'s "so"', r"C:\u0000 \n", "null", '["a"]', "\t\r\n\x1f\x7f", "$1", "%s :name", "山田 🚇", "\ufffd"]
    await store.write(people, [record(text, reason=text, groups=(text,)) for text in texts])
    assert {row.request_id: (row.reason, row.groups) for row in await store.usage(UsageQuery())} == {
        text: (text, (text,)) for text in texts
    }
    broken = [record("half", at=NOON + 1, reason="a\ud83d"), record("nul", at=NOON + 2, model="a\0/b")]
    await store.write(people, broken)
    assert [(row.model, row.reason) for row in await store.usage(UsageQuery(limit=2))] == [
        ("a\ufffd/b", None),
        ("openai/gpt-4o", "a\ufffd"),
    ]


async def test_a_pending_record_keeps_text_that_no_database_can_keep(store):
    waiting = record(status=Status.PENDING, cost=None, chat_id="a\0", task="\ud83d", groups=("b\0", "c\udfff"))
    await store.write([], [waiting, record("r-2")])
    assert await store.pending() == [waiting]


async def test_a_cost_is_kept_to_the_pico_dollar_halves_rounded_up(store):
    costs = ["0.0000000000005", "0.00000000000049", "1E-12", "1234567.0123456789015", "0E-20", "7"]
    await store.write([], [record(f"r-{n}", at=NOON - n, cost=Decimal(cost)) for n, cost in enumerate(costs)])
    kept = ["0.000000000001", "0", "0.000000000001", "1234567.012345678902", "0", "7"]
    assert [row.cost for row in await store.usage(UsageQuery())] == [Decimal(cost) for cost in kept]


@pytest.mark.parametrize("seconds", [0.000001, 0.1 + 0.2, 0.9999994, 0.9999999, -1e-7], ids=str)
async def test_a_moment_is_kept_to_the_microsecond_and_in_its_second(store, seconds):
    await store.write([], [record(at=NOON + seconds)])
    [row] = await store.usage(UsageQuery())
    assert row.ts // 1 == (NOON + seconds) // 1
    assert abs(row.ts - NOON - seconds) <= 1e-6


async def test_every_field_of_a_record_comes_back(store):
    await store.write([], [record(at=NOON + 0.123457, chat_id="c-1", task="title_generation", stream=True, **FINAL)])
    [row] = await store.usage(UsageQuery())
    assert {name: getattr(row, name) for name in row.__dataclass_fields__} == {
        "request_id": "r-1",
        "ts": NOON + 0.123457,
        "user_id": "zoe",
        "email": "zoe@example.com",
        "connection": "owui",
        "groups": ("staff",),
        "policy_id": "calm",
        "rules": ("policy calm",),
        "model": "openai/gpt-4o",
        "status": Status.COMPLETED,
        "task": "title_generation",
        "chat_id": "c-1",
        "stream": True,
        "reason": None,
        **{name: value for name, value in FINAL.items() if name != "cost_nano"},
    }


async def test_a_record_is_kept_once_however_often_it_is_written(store):
    for _ in range(3):
        await store.write([], [record("r-1", cost_nano=5), record("r-1", cost_nano=5), record("r-2", cost_nano=7)])
    assert await ids(store) == ["r-2", "r-1"]
    assert sum(row.nano for row in await store.spend(0)) == 12


async def test_a_pending_record_becomes_final_and_then_never_changes(store):
    pending = record(status=Status.PENDING, cost=None, generation_id="gen-1")
    final = record(**FINAL)
    await store.write([], [pending])
    await store.write([], [final])
    for late in (pending, record(status=Status.FAILED, cost=Decimal(9), cost_nano=9)):
        await store.write([], [late])
        [row] = await store.usage(UsageQuery())
        assert (row.status, row.cost, row.served_model) == (Status.COMPLETED, FINAL["cost"], FINAL["served_model"])
    assert await store.pending() == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([Status.PENDING, Status.COMPLETED, Status.ABORTED]), min_size=1, max_size=6), st.data())
async def test_it_does_not_matter_how_records_fall_into_batches(new_database, statuses, data):
    cut = data.draw(st.integers(0, len(statuses)))
    store = await Store.open(new_database().url)
    for request_id in ("together", "cut", "one by one"):
        history = [record(request_id, status=status, prompt_tokens=n) for n, status in enumerate(statuses)]
        batches = {
            "together": [history],
            "cut": [history[:cut], history[cut:]],
            "one by one": [[entry] for entry in history],
        }
        for batch in batches[request_id]:
            await store.write([], batch)
    rows = await store.usage(UsageQuery())
    await store.close()
    assert len(rows) == 3
    assert len({(row.status, row.prompt_tokens) for row in rows}) == 1


async def test_pending_records_come_back_whole_oldest_first(store):
    facts = {
        "candidates": ("a/b", "c/d"),
        "stream": True,
        "chat_id": "c-1",
        "task": "tags",
        "cap": 4096,
        "prompt_bound": 1200,
        "fixed_nano": 2**53 - 1,
        "nano_per_output_token": 75_000,
        "rules": ("policy calm", "group staff"),
        "groups": (),
        "email": None,
    }
    late = record("r-2", at=NOON + 0.1 + 0.2, status=Status.PENDING, cost=None, generation_id="gen-2", **facts)
    early = record("r-1", status=Status.PENDING, cost=None, requests=1, reason="the client left", duration_ms=5)
    await store.write([], [late, early, record("r-3")])
    assert await store.pending() == [early, late]


async def test_a_final_record_does_not_keep_what_only_settling_needed(store, database):
    await store.write([], [record(status=Status.PENDING, cost=None)])
    await store.write([], [record(**FINAL)])
    assert database.sql("SELECT facts FROM usage_records") == [(None,)]


@pytest.mark.parametrize("people", [[], [person()]], ids=["alone", "with a person"])
@pytest.mark.parametrize("tokens", [2**63, 2**70])
async def test_a_batch_is_kept_whole_or_not_at_all(store, people, tokens):
    unwritable = record("r-2", total_tokens=tokens)
    with pytest.raises(Exception, match=r"too large|out of") as refusal:
        await store.write(people, [record("r-1"), unwritable])
    assert not isinstance(refusal.value, StoreError)
    assert (await store.load()).users == ()
    assert await ids(store) == []


async def test_records_come_newest_first_and_ties_by_request_id(store):
    moments = [NOON, NOON + 1, NOON + 1, NOON + 1, NOON + 0.000001]
    await store.write([], [record(f"r-{n}", at=at) for n, at in enumerate(moments)])
    assert await ids(store) == ["r-3", "r-2", "r-1", "r-4", "r-0"]


async def test_pages_meet_without_gaps_or_repeats(store):
    random = Random(7)
    records = [record(f"r-{n}", at=NOON + random.randrange(9), user_id=random.choice("ab")) for n in range(60)]
    await store.write([], records)
    for filters in ({}, {"user_ids": ("a",)}):
        whole = await ids(store, limit=1000, **filters)
        pages, before = [], None
        while page := await ids(store, limit=7, before=before, **filters):
            pages += page
            before = page[-1]
        assert pages == whole


async def test_a_page_after_a_record_that_is_not_there_is_an_error(store):
    with pytest.raises(UnknownRecord) as unknown:
        await store.usage(UsageQuery(before="nothing"))
    assert unknown.value.request_id == "nothing"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("openai/gpt-4o", ["r-0"]),
        ("OpenAI/GPT-4o", ["r-0"]),
        ("openai/*", ["r-4", "r-3", "r-1", "r-0"]),
        ("*:free", ["r-2", "r-1"]),
        ("openai/gpt_4o", ["r-3"]),
        ("openai/100%", ["r-4"]),
        ("openai/1*%", ["r-4"]),
        ("openai/%", []),
        ("a\\*", []),
        ("*", ["r-4", "r-3", "r-2", "r-1", "r-0"]),
    ],
)
async def test_models_are_found_by_name_or_pattern(store, pattern, found):
    models = ["openai/gpt-4o", "openai/gpt-oss:free", "Google/gemma:free", "openai/gpt_4o", "openai/100%"]
    await store.write([], [record(f"r-{n}", model=model) for n, model in enumerate(models)])
    assert await ids(store, model=pattern) == found


async def test_records_are_found_by_person_time_and_status(store):
    await store.write(
        [],
        [
            record("r-0", at=NOON, user_id="a", email="old@example.com"),
            record("r-1", at=NOON + 1, user_id="a", email="new@example.com", status=Status.REFUSED, requests=0),
            record("r-2", at=NOON + 2, user_id="b", email="old@example.com"),
        ],
    )
    assert await ids(store, user_ids=("a",)) == ["r-1", "r-0"]
    assert await ids(store, email="old@example.com") == ["r-2", "r-0"]
    assert await ids(store, user_ids=("a",), email="old@example.com") == ["r-2", "r-1", "r-0"]
    assert await ids(store, user_ids=()) == []
    assert await ids(store, since=NOON + 1) == ["r-2", "r-1"]
    assert await ids(store, until=NOON + 1) == ["r-0"]
    assert await ids(store, status=Status.REFUSED) == ["r-1"]
    assert await ids(store, status=Status.COMPLETED, user_ids=("a",), since=NOON, until=NOON + 9) == ["r-0"]


async def test_spending_adds_up_what_was_charged_by_person_groups_and_models(store):
    usage = {"total_tokens": 100, "cost_nano": 2**52}
    await store.write(
        [],
        [
            record("r-0", at=NOON - 1, **usage),
            *(record(f"r-1{n}", at=NOON + n, **usage) for n in range(5)),
            record("r-2", groups=("staff", "physics"), **usage),
            record("r-3", model="x/y", candidates=("x/y", "x/z"), served_model="x/z", **usage),
            record("r-4", status=Status.REFUSED, requests=0),
            record("r-5", status=Status.PENDING, cost=None, **usage),
            record("r-6", status=Status.FAILED),
            record("r-7", status=Status.ABORTED, source=Source.ESTIMATE, **usage),
        ],
    )
    gpt = ("openai/gpt-4o",)
    assert sorted(await store.spend(NOON)) == [
        SpendRow("zoe", ("staff",), gpt, 7, 600, 6 * 2**52),
        SpendRow("zoe", ("staff",), ("x/z",), 1, 100, 2**52),
        SpendRow("zoe", ("staff", "physics"), gpt, 1, 100, 2**52),
    ]


async def test_recent_charges_come_one_by_one_with_their_moment(store):
    await store.write(
        [],
        [
            record("r-0", at=NOON - 0.5),
            record("r-2", at=NOON + 0.25, total_tokens=7, cost_nano=9),
            record("r-1", at=NOON, status=Status.FAILED),
            record("r-3", at=NOON, status=Status.REFUSED, requests=0),
            record("r-4", at=NOON, status=Status.PENDING, cost=None),
        ],
    )
    models = ("openai/gpt-4o",)
    assert await store.recent(NOON) == [
        ("zoe", ("staff",), models, 1, 0, 0, NOON, "r-1"),
        ("zoe", ("staff",), models, 1, 7, 9, NOON + 0.25, "r-2"),
    ]


async def test_a_policy_is_replaced_by_its_id(store):
    await store.save_policy(ROUGH, **BY)
    await store.save_policy(replace(ROUGH, limits=()), **BY)
    assert (await store.load()).policies == (replace(ROUGH, limits=()),)


async def test_a_policy_that_is_assigned_is_not_deleted(store):
    await store.save_policy(ROUGH, **BY)
    await store.assign(person("u-1"), policy_id="rough", **BY)
    await store.assign(person("u-2"), policy_id="rough", **BY)
    await store.save_group_policy(GroupPolicy("b", "rough"), **BY)
    await store.save_group_policy(GroupPolicy("a", "rough"), **BY)
    await store.save_group_policy(GroupPolicy("c", DEFAULT_POLICY_ID), **BY)
    with pytest.raises(PolicyInUse) as use:
        await store.delete_policy("rough", **BY)
    assert (use.value.users, use.value.groups) == (2, ("a", "b"))
    assert ROUGH in (await store.load()).policies


async def test_a_policy_that_nobody_has_any_more_is_deleted(store):
    await store.save_policy(ROUGH, **BY)
    await store.assign(person(), policy_id="rough", **BY)
    await store.save_group_policy(GroupPolicy("a", "rough"), **BY)
    await store.assign(person(), policy_id=None, **BY)
    await store.delete_group_policy("a", **BY)
    await store.delete_policy("rough", **BY)
    snapshot = await store.load()
    assert (snapshot.policies, snapshot.group_policies) == ((), ())


async def test_a_policy_in_the_database_that_makes_no_sense_is_named(store, database):
    await store.save_policy(ROUGH, **BY)
    database.sql("""UPDATE policies SET document = '{"id": "rough", "max_output_tokens": -1}'""")
    with pytest.raises(StoreError, match=r"policy rough in the database cannot be read .*max_output_tokens"):
        await store.load()


async def test_a_writer_waits_for_another_one_and_gives_up_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 0.05)
    impatient = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    other = sqlite3.connect(tmp_path / "faregate.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"database is locked.*try again"):
        await impatient.write([person()], [record()])
    assert await ids(impatient) == []
    other.execute("ROLLBACK")
    other.close()
    await impatient.write([person()], [record()])
    assert await ids(impatient) == ["r-1"]
    await impatient.close()


async def test_eight_writers_on_the_same_people_and_records_do_not_fail(store):
    async def writer(seed):
        random = Random(seed)
        for turn in range(6):
            some = random.sample(range(40), 15)
            await store.write(
                [person(f"u-{n}", seen=NOON + turn) for n in some], [record(f"r-{n:02}", cost_nano=n) for n in some]
            )

    await asyncio.gather(*(writer(seed) for seed in range(8)))
    written = await ids(store, limit=1000)
    assert len(written) == len(set(written)) == len((await store.load()).users)
    assert sum(row.nano for row in await store.spend(0)) == sum(int(name[2:]) for name in written)
