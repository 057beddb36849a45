"""A database that an earlier Faregate has used is brought up to date with all that is in it, and back again."""

import asyncio
import logging
from decimal import Decimal

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import DEADLINE, postgres_database
from old_databases import EARLIER, SALT, contents, dialect_of, make_old
from rows import NOON, person, record
from sqlalchemy import inspect

from faregate.policy.model import GroupPolicy, Policy
from faregate.records import Status
from faregate.store import engine, schema, tables
from faregate.store.engine import WRITES, open_engine
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.store.locks import Lock
from faregate.store.migrations import run
from faregate.store.store import SpendRow, Store, UsageQuery

HOUR = 3600


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture(params=[1, 2], ids=["from 1", "from 2"])
def version(request):
    return request.param


@pytest.fixture
def old(database, version):
    """A database of an earlier schema, with people, rules and records in it."""
    make_old(database, version)
    return database


async def at(database, work):
    """What `work` on a connection gives, in a transaction."""
    opened = open_engine(database.url)
    try:
        async with opened.execution_options(**{WRITES: True}).begin() as connection:
            return await work(connection)
    finally:
        await opened.dispose()


async def move(database, to, **how):
    return await at(database, lambda connection: schema.move(connection, to, **how))


async def look(database, see):
    return await at(database, lambda connection: connection.run_sync(see))


def shape(connection):
    """All tables with their columns, keys and indexes, but for partitions, and for what Alembic keeps for itself."""
    inspector = inspect(connection)
    found = {}
    for name in inspector.get_table_names():
        if name.startswith("usage_records_") or name == "alembic_version":
            continue
        columns = {
            each["name"]: (str(each["type"]), each["nullable"], each["default"]) for each in inspector.get_columns(name)
        }
        foreign = {
            each["name"]: (each["constrained_columns"], each["referred_table"])
            for each in inspector.get_foreign_keys(name)
        }
        indexes = {each["name"]: (each["column_names"], bool(each["unique"])) for each in inspector.get_indexes(name)}
        key = inspector.get_pk_constraint(name)
        found[name] = (columns, (key["name"], key["constrained_columns"]), foreign, indexes)
    return found


async def test_what_was_there_is_there_and_takes_part_in_all_that_is_new(old, version):
    store = await Store.open(old.url, "heir")
    assert await store.salt() == bytes.fromhex(SALT)
    snapshot = await store.load()
    assert {user.id: user for user in snapshot.users} == {
        user.id: user
        for user in (
            person(),
            person("u-2", email=None, name=None, role=None, groups=("staff",), is_active=False, policy_id="rough",
                   created_at=EARLIER),
            person("u-1", id="of a script", connection="script", email=None, name=None, role=None, groups=(),
                   policy_id="default"),
        )
    }  # fmt: skip
    assert set(snapshot.policies) == {Policy("rough", "Rough"), Policy("default", "Default")}
    assert set(snapshot.group_policies) == {
        GroupPolicy("physics, applied", "rough", 7),
        GroupPolicy("nobody yet", "default", -1),
    }
    [final, earlier] = await store.usage(UsageQuery(status=Status.COMPLETED)) + await store.usage(
        UsageQuery(status=Status.FAILED)
    )
    assert (final.request_id, final.ts, final.cost) == ("final", NOON, Decimal("0.5"))
    assert (earlier.ts, earlier.cost, earlier.total_tokens) == (EARLIER, Decimal("1e-12"), 3)
    pending = record("pending", status=Status.PENDING, cost=None, generation_id="gen-1")
    assert await store.pending() == [pending]
    assert await store.spend(NOON, before_era=1) == [SpendRow("zoe", ("staff",), ("openai/gpt-4o",), 1, 7, 500_000_000)]
    era = 4 if version == 2 else 0
    assert (await store.era(), await store.next_era()) == (era, era + 1)
    assert await store.claim_pending(["heir"], 10) == [pending]
    assert await store.write([person("u-3")], [record("pending", era=era + 1)]) == []
    assert await store.pending() == []
    assert [change.key for change in await store.changes(0)] == [person("u-3").id]
    await store.close()


async def test_connections_and_groups_are_as_old_as_their_first_person(old):
    await move(old, 3)
    times = {"sqlite": "created_at", "postgresql": "CAST(extract(epoch FROM created_at) * 1000000 AS bigint)"}
    since = times[dialect_of(old)]
    noon, earlier = (str(round(moment * 1_000_000)) for moment in (NOON, EARLIER))

    def of(table):
        return sorted((name, str(when)) for name, when in old.sql(f"SELECT name, {since} FROM {table}"))

    assert of("connections") == [("owui", earlier), ("script", noon)]
    assert of("groups") == [("physics, applied", noon), ("staff", earlier)]


async def test_every_hour_that_has_records_is_to_be_added_up(old):
    await move(old, 3)
    hours = {"sqlite": "hour / 1000000", "postgresql": "CAST(extract(epoch FROM hour) AS bigint)"}[dialect_of(old)]
    found = old.sql(f"SELECT {hours}, touched FROM stale_hours ORDER BY hour")
    assert [(int(hour), int(touched)) for hour, touched in found] == [
        (int(EARLIER // HOUR * HOUR), 1),
        (int(NOON), 1),
    ]


async def test_there_and_back_again_all_is_as_it_was(old, version):
    before = contents(old)
    shaped = await look(old, shape)
    assert await move(old, 3) == version
    assert await move(old, version) == 3
    # The default policy is there now, for those whom it is assigned to.
    before["policies"].insert(0, ('{"id": "default", "name": "Default"}', "default"))
    assert contents(old) == before
    assert await look(old, shape) == shaped
    await (await Store.open(old.url)).close()


async def test_new_people_and_records_are_brought_back_too(database):
    store = await Store.open(database.url, "node")
    await store.write([person(groups=("z", "b")), person("u-2", groups=())], [record(), record("r-2", at=EARLIER)])
    await store.next_era()
    await store.close()
    await move(database, 1)
    assert sorted(database.sql("SELECT subject, groups FROM users")) == [("u-1", '["b","z"]'), ("u-2", "[]")]
    assert database.sql("SELECT request_id FROM usage_records ORDER BY ts") == [("r-2",), ("r-1",)]
    again = await Store.open(database.url)
    assert [user.groups for user in sorted((await again.load()).users, key=lambda user: user.subject)] == [
        ("b", "z"),
        (),
    ]
    # An era only grows, also where nobody knew of it for a while.
    assert (await again.era(), len(await again.recent(0, before_era=1))) == (1, 2)
    await again.close()


async def test_groups_whose_names_no_database_keeps_are_still_groups(database):
    make_old(database, 2)
    database.sql("""UPDATE users SET groups = '["a\\u0000","a\\ud800","b"]' WHERE subject = 'u-2'""")
    store = await Store.open(database.url)
    assert {user.groups for user in (await store.load()).users if user.subject == "u-2"} == {("a\ufffd", "b")}
    await store.close()


async def test_more_people_than_are_looked_at_at_once_come_through(database):
    make_old(database, 2, filled=False)
    people = [(f"id-{n:04}", f"u-{n:04}", f'["all","of {n % 7}"]') for n in range(1201)]
    now = {"sqlite": "0", "postgresql": "now()"}[dialect_of(database)]
    rows = ", ".join(f"('{key}', 'owui', '{who}', '{its}', TRUE, {now}, {now})" for key, who, its in people)
    database.sql(
        f"INSERT INTO users (id, connection, subject, groups, is_active, created_at, last_seen_at) VALUES {rows}"
    )
    await move(database, 3)
    assert [int(count) for (count,) in database.sql("SELECT count(*) FROM memberships")] == [2402]
    await move(database, 2)
    assert sorted(database.sql("SELECT id, subject, groups FROM users")) == people


async def test_a_migration_that_cannot_be_finished_leaves_all_as_it_was(old, version):
    old.sql("UPDATE users SET groups = 'broken' WHERE subject = 'u-2'")
    before = contents(old)
    shaped = await look(old, shape)
    with pytest.raises(ValueError, match="Expecting value"):
        await Store.open(old.url)
    assert (contents(old), await look(old, shape)) == (before, shaped)
    assert old.sql("SELECT value FROM meta WHERE key = 'schema_version'") == [(str(version),)]


async def test_a_database_is_in_the_end_what_the_tables_say(database):
    await (await Store.open(database.url)).close()

    def differences(connection):
        def is_ours(thing, name, type_, reflected, compared_to):
            return type_ != "table" or not name.startswith("usage_records_")

        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True, "include_object": is_ours}
        )
        return compare_metadata(context, tables.metadata)

    assert await look(database, differences) == []


async def test_a_migrated_database_is_the_same_as_one_made_of_the_tables(old, new_database):
    await move(old, 3)
    direct = new_database()
    await look(direct, tables.metadata.create_all)
    assert await look(old, shape) == await look(direct, shape)
    if dialect_of(old) == "postgresql":
        kind = "SELECT pg_get_partkeydef('usage_records'::regclass)"
        assert old.sql(kind) == direct.sql(kind) == [("RANGE (ts)",)]


async def test_each_version_is_as_the_faregate_of_then_made_it(database, new_database, version):
    make_old(database, version, filled=False)
    new = new_database()
    await move(new, version)
    assert await look(new, shape) == await look(database, shape)


def test_there_is_one_revision_for_each_version():
    scripts = ScriptDirectory(run.FOLDER)
    assert scripts.get_heads() == [run.revision(schema.NEWEST)]
    assert list(run.titles()) == list(range(schema.FIRST, schema.NEWEST + 1))


async def test_what_meta_says_and_what_alembic_says_are_in_step(old, version):
    for to in (3, version, 3, 1, 2):
        await move(old, to)
        assert old.sql("SELECT value FROM meta WHERE key = 'schema_version'") == [(str(to),)]
        assert old.sql("SELECT version_num FROM alembic_version") == [(run.revision(to),)]


async def test_what_an_old_faregate_did_to_a_database_that_went_back_is_not_done_again(database):
    make_old(database, 2)
    await move(database, 1)
    # As a Faregate of version 2 brings one up, which knows nothing of Alembic.
    for column in ("era BIGINT DEFAULT 0 NOT NULL", "node TEXT"):
        database.sql(f"ALTER TABLE usage_records ADD COLUMN {column}")
    key = {"sqlite": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT"}.get(
        dialect_of(database), "BIGSERIAL CONSTRAINT pk_changes PRIMARY KEY"
    )
    database.sql(f"CREATE TABLE changes (number {key}, kind VARCHAR(16) NOT NULL, key TEXT NOT NULL)")
    database.sql("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    store = await Store.open(database.url)
    assert len((await store.load()).users) == 3
    await store.close()


async def test_several_nodes_may_bring_it_up_to_date_at_once_and_again_later(old, version):
    stores = await asyncio.gather(*(Store.open(old.url, f"node-{n}") for n in range(5)))
    following = await stores[0].next_era()
    assert following == (5 if version == 2 else 1)
    again = await Store.open(old.url)
    assert (await again.era(), len(await again.usage(UsageQuery()))) == (following, 3)
    for store in (*stores, again):
        await store.close()


async def test_five_replicas_may_start_at_once_on_an_empty_database(database):
    stores = await asyncio.gather(*(Store.open(database.url, f"node-{n}") for n in range(5)))
    await asyncio.gather(*(store.write([person(f"u-{n}")], [record(f"r-{n}")]) for n, store in enumerate(stores)))
    assert len(await stores[0].usage(UsageQuery())) == 5
    assert len({await store.salt() for store in stores}) == 1
    for store in stores:
        await store.close()


async def test_who_finds_another_at_work_waits_until_it_has_finished(postgres):
    database = postgres_database(postgres)
    make_old(database, 2)
    waits = asyncio.Event()

    class Tells(logging.Handler):
        def emit(self, record):
            assert "another node is at work on the schema" in record.getMessage()
            waits.set()

    teller = Tells(logging.WARNING)
    schema.log.addHandler(teller)
    other = await asyncpg.connect(database.url)
    try:
        await other.execute(f"SELECT pg_advisory_lock({Lock.SCHEMA})")
        opening = asyncio.create_task(Store.open(database.url))
        async with asyncio.timeout(DEADLINE):
            await waits.wait()
        assert not opening.done()
    finally:
        await other.close()
        schema.log.removeHandler(teller)
    store = await opening
    assert len((await store.load()).users) == 3
    await store.close()


async def test_a_database_of_a_newer_faregate_is_left_alone(database):
    store = await Store.open(database.url)
    await store.close()
    database.sql("UPDATE meta SET value = '4' WHERE key = 'schema_version'")
    for opening in (Store.open(database.url), Store.open(database.url, migrate=False), move(database, 1)):
        with pytest.raises(StoreError, match="schema version 4, but this Faregate knows versions up to 3") as refusal:
            await opening
        assert not isinstance(refusal.value, StoreUnavailable)
    assert database.sql("SELECT value FROM meta WHERE key = 'schema_version'") == [("4",)]
    assert database.sql("SELECT count(*) FROM assignments") in ([(0,)], [("0",)])


async def test_where_an_administrator_migrates_a_start_does_not(old, version):
    shaped = await look(old, shape)
    with pytest.raises(StoreError, match=f"version {version}, this Faregate needs version 3, .*`faregate migrate`"):
        await Store.open(old.url, migrate=False)
    assert await look(old, shape) == shaped
    await move(old, 3)
    await (await Store.open(old.url, migrate=False)).close()


async def test_an_empty_database_is_left_empty_where_an_administrator_migrates(database):
    with pytest.raises(StoreError, match=r"no schema yet, this Faregate needs version 3, .*`faregate migrate`"):
        await Store.open(database.url, migrate=False)
    assert await look(database, shape) == {}


async def test_a_database_that_lost_its_version_is_not_taken_for_an_empty_one(old):
    old.sql("DELETE FROM meta WHERE key = 'schema_version'")
    with pytest.raises(StoreError, match="lost the version of its schema"):
        await Store.open(old.url)


async def test_what_would_be_lost_on_the_way_back_is_said_first(old, version):
    await move(old, 3)
    moment = {"sqlite": "0", "postgresql": "now()"}[dialect_of(old)]
    for n in range(2):
        old.sql(
            f"INSERT INTO audit_log (at, actor, action, kind, key) VALUES ({moment}, 'a key', 'delete', 'group', '{n}')"
        )
    old.sql(f"INSERT INTO reconciliations VALUES ('2027-01-14', 'm', 'p', 1, 0, 1, 0, {moment})")
    with pytest.raises(
        schema.WouldLose,
        match=r"the audit log \(rows: 2\) and the results of reconciliations \(rows: 1\), which would be lost",
    ):
        await move(old, version)
    assert await move(old, version, lose=True) == 3


async def test_sums_of_records_that_were_deleted_are_not_lost_unasked(database):
    store = await Store.open(database.url)
    await store.write([], [record(at=EARLIER), record("kept", at=NOON)])
    assert await store.refresh_rollups(10) == 2
    await move(database, 2)
    await move(database, 3)
    assert await store.refresh_rollups(10) == 2
    assert len(await store.drop_records(NOON)) == 1
    what = r"what deleted records had charged \(rows: 1\) and the sums of deleted records \(rows: \d+\)"
    with pytest.raises(schema.WouldLose, match=what):
        await move(database, 2)
    await store.close()


async def test_a_database_without_its_era_is_not_used_for_charges(old):
    await (await Store.open(old.url)).close()
    old.sql("DELETE FROM meta WHERE key = 'era'")
    store = await Store.open(old.url)
    for what in (store.era(), store.next_era(), store.write([], [record(era=1)])):
        with pytest.raises(StoreError, match="lost the number of its era"):
            await what
    await store.write([], [record("of no ledger that is shared")])
    await store.close()
