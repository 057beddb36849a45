"""Databases as earlier Faregates made and filled them, spelled out: what is there now says nothing of them."""

from databases import Database
from rows import NOON, person

SALT = "5a" * 32

OLD_TABLES = ("users", "policies", "group_policies", "usage_records")

_VERSION_1 = """
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
INSERT INTO meta VALUES ('salt', '{salt}')
"""
_VERSION_2 = """
ALTER TABLE usage_records ADD COLUMN era BIGINT DEFAULT 0 NOT NULL;
ALTER TABLE usage_records ADD COLUMN node TEXT;
{changes};
UPDATE meta SET value = '2' WHERE key = 'schema_version';
INSERT INTO meta VALUES ('era', '4')
"""
_CONTENTS = """
INSERT INTO policies VALUES ('rough', '{{"id": "rough", "name": "Rough"}}');
INSERT INTO group_policies VALUES ('physics, applied', 'rough', 7);
INSERT INTO group_policies VALUES ('nobody yet', 'default', -1);
INSERT INTO users VALUES (
    '{zoe}', 'owui', 'u-1', 'u-1@example.com', 'Zoë 山田', 'user', '["physics, applied","staff"]', TRUE, NULL,
    {noon}, {noon});
INSERT INTO users VALUES ('{ben}', 'owui', 'u-2', NULL, NULL, NULL, '["staff"]', FALSE, 'rough', {earlier}, {noon});
INSERT INTO users VALUES ('of a script', 'script', 'u-1', NULL, NULL, NULL, '[]', TRUE, 'default', {noon}, {noon});
INSERT INTO usage_records ({columns}) VALUES (
    'final', {noon}, 'zoe', 'zoe@example.com', 'owui', '["staff"]', 'calm', '["policy calm"]', 'openai/gpt-4o',
    '["openai/gpt-4o"]', 0, 0, 7, 0, 0, {cost}, 500000000, 1, 'completed', 'usage', FALSE, NULL, NULL);
INSERT INTO usage_records ({columns}) VALUES (
    'pending', {noon}, 'zoe', 'zoe@example.com', 'owui', '["staff"]', 'calm', '["policy calm"]', 'openai/gpt-4o',
    '["openai/gpt-4o"]', 0, 0, 0, 0, 0, NULL, 0, 1, 'pending', NULL, FALSE, 'gen-1', '{facts}');
INSERT INTO usage_records ({columns}) VALUES (
    'of another month', {earlier}, 'ben', NULL, 'owui', '[]', 'default', '[]', 'openai/gpt-4o',
    '["openai/gpt-4o"]', 1, 2, 3, 0, 0, {least}, 1, 1, 'failed', 'usage', TRUE, NULL, NULL)
"""
_COLUMNS = (
    "request_id, ts, user_id, email, connection, groups, policy_id, rules, model, models, prompt_tokens,"
    " completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost, cost_nano, requests, status, source,"
    " stream, generation_id, facts"
)
_FACTS = (
    '{"request_id":"pending","admitted_at":1800014400.0,"connection":"owui","user_id":"zoe","email":"zoe@example.com",'
    '"groups":["staff"],"policy_id":"calm","model":"openai/gpt-4o","candidates":["openai/gpt-4o"],'
    '"rules":["policy calm"]}'
)
EARLIER = NOON - 40 * 86_400 + 0.123456
_DIALECT = {
    "sqlite": {
        "instant": "BIGINT",
        "money": "BIGINT",
        "noon": str(int(NOON) * 1_000_000),
        "earlier": str(round(EARLIER * 1_000_000)),
        "cost": "500000000000",
        "least": "1",
        "changes": "CREATE TABLE changes (number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,"
        " kind VARCHAR(16) NOT NULL, key TEXT NOT NULL)",
    },
    "postgresql": {
        "instant": "TIMESTAMP WITH TIME ZONE",
        "money": "NUMERIC(24, 12)",
        "noon": f"to_timestamp({int(NOON)})",
        "earlier": f"to_timestamp({int(EARLIER)}) + interval '0.123456 s'",
        "cost": "0.5",
        "least": "0.000000000001",
        "changes": "CREATE TABLE changes (number BIGSERIAL NOT NULL, kind VARCHAR(16) NOT NULL, key TEXT NOT NULL,"
        " CONSTRAINT pk_changes PRIMARY KEY (number))",
    },
}


def dialect_of(database: Database) -> str:
    """`sqlite` or `postgresql`."""
    return database.url.partition(":")[0]


def make_old(database: Database, version: int, *, filled: bool = True) -> None:
    """Make `database` one of schema version 1 or 2, and fill it with people, rules and records of two months."""
    parts = [_VERSION_1, *([_VERSION_2] if version == 2 else []), *([_CONTENTS] if filled else [])]
    values = _DIALECT[dialect_of(database)] | {"salt": SALT, "columns": _COLUMNS, "facts": _FACTS}
    values |= {"zoe": person().id, "ben": person("u-2").id}
    script = ";\n".join(part.format(**values).strip() for part in parts)
    # psql takes them all at once, SQLite's driver one at a time.
    for statement in [script] if dialect_of(database) == "postgresql" else script.split(";\n"):
        database.sql(statement)


def contents(database: Database) -> dict[str, list[tuple[str | None, ...]]]:
    """All rows of the old tables, their columns by name."""
    names = {
        "sqlite": "SELECT name FROM pragma_table_info('{}')",
        "postgresql": "SELECT column_name FROM information_schema.columns WHERE table_name = '{}'",
    }[dialect_of(database)]
    found = {}
    for table in OLD_TABLES:
        columns = sorted(name for (name,) in database.sql(names.format(table)))
        found[table] = sorted(database.sql(f"SELECT {', '.join(columns)} FROM {table}"), key=str)
    return found
