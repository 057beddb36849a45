"""A database that an earlier Faregate has used is brought up to date at the start, with all that is in it."""

import asyncio
from decimal import Decimal

import pytest
from rows import NOON, person, record

from faregate.records import Status
from faregate.store import engine
from faregate.store.errors import StoreError
from faregate.store.store import SpendRow, Store, UsageQuery

VERSION_1 = """
CREATE TABLE meta (key VARCHAR(64) NOT NULL, value TEXT NOT NULL, CONSTRAINT pk_meta PRIMARY KEY (key));
CREATE TABLE users (
    id VARCHAR(32) NOT NULL, connection TEXT NOT NULL, subject TEXT NOT NULL, email TEXT, name TEXT, role TEXT,
    groups TEXT NOT NULL, is_active BOOLEAN NOT NULL, policy_id TEXT, created_at {instant} NOT NULL,
    last_seen_at {instant} NOT NULL, CONSTRAINT pk_users PRIMARY KEY (id));
CREATE UNIQUE INDEX ix_users_connection_subject ON users (connection, subject);
CREATE TABLE policies (id TEXT NOT NULL, document TEXT NOT NULL, CONSTRAINT pk_policies PRIMARY KEY (id));
CREATE TABLE group_policies (
    group_name TEXT NOT NULL, policy_id TEXT NOT NULL, priority INTEGER NOT NULL,
    CONSTRAINT pk_group_policies PRIMARY KEY (group_name));
CREATE TABLE usage_records (
    request_id TEXT NOT NULL, ts {instant} NOT NULL, user_id TEXT NOT NULL, email TEXT, connection TEXT NOT NULL,
    groups TEXT NOT NULL, policy_id TEXT NOT NULL, rules TEXT NOT NULL, model TEXT NOT NULL, models TEXT NOT NULL,
    served_model TEXT, provider TEXT, prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, cost {money},
    cost_nano BIGINT NOT NULL, requests INTEGER NOT NULL, status VARCHAR(16) NOT NULL, outcome VARCHAR(16),
    source VARCHAR(16), task TEXT, chat_id TEXT, stream BOOLEAN NOT NULL, ttft_ms BIGINT, duration_ms BIGINT,
    generation_id TEXT, reason TEXT, facts TEXT, CONSTRAINT pk_usage_records PRIMARY KEY (request_id));
CREATE INDEX ix_usage_records_ts_request_id ON usage_records (ts, request_id);
CREATE INDEX ix_usage_records_user_id_ts_request_id ON usage_records (user_id, ts, request_id);
CREATE INDEX ix_usage_records_status_ts ON usage_records (status, ts);
INSERT INTO meta VALUES ('schema_version', '1');
INSERT INTO meta VALUES ('salt', '{salt}');
INSERT INTO users VALUES (
    '{user_id}', 'owui', 'u-1', 'u-1@example.com', 'Zoë 山田', 'user', '["physics, applied","staff"]', TRUE, NULL,
    {noon}, {noon});
INSERT INTO usage_records VALUES (
    'final', {noon}, 'zoe', 'zoe@example.com', 'owui', '["staff"]', 'calm', '["policy calm"]', 'openai/gpt-4o',
    '["openai/gpt-4o"]', NULL, NULL, 0, 0, 7, 0, 0, {cost}, 500000000, 1, 'completed', NULL, 'usage', NULL, NULL,
    FALSE, NULL, NULL, NULL, NULL, NULL);
INSERT INTO usage_records VALUES (
    'pending', {noon}, 'zoe', 'zoe@example.com', 'owui', '["staff"]', 'calm', '["policy calm"]', 'openai/gpt-4o',
    '["openai/gpt-4o"]', NULL, NULL, 0, 0, 0, 0, 0, NULL, 0, 1, 'pending', NULL, NULL, NULL, NULL,
    FALSE, NULL, NULL, 'gen-1', NULL, '{facts}')
"""
FACTS = (
    '{"request_id":"pending","admitted_at":1800014400.0,"connection":"owui","user_id":"zoe","email":"zoe@example.com",'
    '"groups":["staff"],"policy_id":"calm","model":"openai/gpt-4o","candidates":["openai/gpt-4o"],'
    '"rules":["policy calm"]}'
)
SALT = "5a" * 32
DIALECT = {
    "sqlite": {"instant": "BIGINT", "money": "BIGINT", "noon": str(int(NOON) * 1_000_000), "cost": "500000000000"},
    "postgresql": {
        "instant": "TIMESTAMP WITH TIME ZONE",
        "money": "NUMERIC(24, 12)",
        "noon": f"to_timestamp({int(NOON)})",
        "cost": "0.5",
    },
}


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
def old(database):
    """A database of schema version 1, with a person, a final and a pending record in it."""
    dialect = DIALECT[database.url.partition(":")[0]]
    for statement in VERSION_1.format(**dialect, salt=SALT, user_id=person().id, facts=FACTS).split(";\n"):
        database.sql(statement)
    return database


async def test_what_was_there_is_there_and_takes_part_in_all_that_is_new(old):
    store = await Store.open(old.url, "heir")
    pending = record("pending", status=Status.PENDING, cost=None, generation_id="gen-1")
    assert await store.salt() == bytes.fromhex(SALT)
    assert (await store.load()).users == (person(),)
    [final, _] = sorted(await store.usage(UsageQuery()), key=lambda row: row.request_id)
    assert (final.request_id, final.cost) == ("final", Decimal("0.5"))
    assert await store.pending() == [pending]
    assert await store.spend(0, before_era=1) == [SpendRow("zoe", ("staff",), ("openai/gpt-4o",), 1, 7, 500_000_000)]
    assert (await store.era(), await store.next_era()) == (0, 1)
    assert await store.claim_pending(["heir"], 10) == [pending]
    await store.write([person("u-2")], [record("pending", era=1)])
    assert await store.pending() == []
    assert [change.key for change in await store.changes(0)] == [person("u-2").id]
    await store.close()


async def test_a_database_that_was_brought_up_to_date_is_as_a_new_one(old, new_database):
    new = new_database()
    for url in (old.url, new.url):
        await (await Store.open(url)).close()
    columns = {
        "sqlite": "SELECT name, type, dflt_value, \"notnull\" FROM pragma_table_info('usage_records') ORDER BY name",
        "postgresql": "SELECT column_name, data_type, column_default, is_nullable FROM information_schema.columns"
        " WHERE table_name = 'usage_records' ORDER BY column_name",
    }[old.url.partition(":")[0]]
    assert old.sql(columns) == new.sql(columns)
    for kept in ("schema_version", "era"):
        value = f"SELECT value FROM meta WHERE key = '{kept}'"
        assert old.sql(value) == new.sql(value)


async def test_several_nodes_may_bring_it_up_to_date_at_once_and_again_later(old):
    stores = await asyncio.gather(*(Store.open(old.url, f"node-{n}") for n in range(5)))
    assert await stores[0].next_era() == 1
    again = await Store.open(old.url)
    assert (await again.era(), len(await again.usage(UsageQuery()))) == (1, 2)
    for store in (*stores, again):
        await store.close()


async def test_a_faregate_that_still_runs_with_the_earlier_schema_goes_on_writing(old):
    store = await Store.open(old.url, "new")
    old.sql(
        "INSERT INTO usage_records (request_id, ts, user_id, connection, groups, policy_id, rules, model, models,"
        " prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost_nano, requests, status,"
        " stream, facts) SELECT 'from the old', ts, user_id, connection, groups, policy_id, rules, model, models, 0, 0,"
        " 0, 0, 0, 0, 1, 'pending', stream, facts FROM usage_records WHERE request_id = 'pending'"
    )
    assert len(await store.claim_pending(["new"], 10)) == 2
    await store.close()


async def test_a_database_without_its_era_is_not_used_for_charges(old):
    store = await Store.open(old.url)
    old.sql("DELETE FROM meta WHERE key = 'era'")
    for what in (store.era(), store.next_era(), store.write([], [record(era=1)])):
        with pytest.raises(StoreError, match="lost the number of its era"):
            await what
    await store.write([], [record("of no ledger that is shared")])
    await store.close()
