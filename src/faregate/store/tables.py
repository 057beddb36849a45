"""The schema."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text, text

from faregate.store.types import Instant, Money, Names, Words

SCHEMA_VERSION = 2

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("connection", Words, nullable=False),
    Column("subject", Words, nullable=False),
    Column("email", Words),
    Column("name", Words),
    Column("role", Words),
    Column("groups", Names, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("policy_id", Words),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Index(None, "connection", "subject", unique=True),
)

policies = Table(
    "policies",
    metadata,
    Column("id", Words, primary_key=True),
    Column("document", Text, nullable=False),
)

group_policies = Table(
    "group_policies",
    metadata,
    Column("group_name", Words, primary_key=True),
    Column("policy_id", Words, nullable=False),
    Column("priority", Integer, nullable=False),
)

usage_records = Table(
    "usage_records",
    metadata,
    Column("request_id", Words, primary_key=True),
    Column("ts", Instant, nullable=False),
    Column("user_id", Words, nullable=False),
    Column("email", Words),
    Column("connection", Words, nullable=False),
    Column("groups", Names, nullable=False),
    Column("policy_id", Words, nullable=False),
    Column("rules", Names, nullable=False),
    Column("model", Words, nullable=False),
    # Whose model limits the record counts on: `UsageRecord.counted_models()`.
    Column("models", Names, nullable=False),
    Column("served_model", Words),
    Column("provider", Words),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost", Money),
    Column("cost_nano", BigInteger, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    # How a pending request ended.
    Column("outcome", String(16)),
    Column("source", String(16)),
    Column("task", Words),
    Column("chat_id", Words),
    Column("stream", Boolean, nullable=False),
    Column("ttft_ms", BigInteger),
    Column("duration_ms", BigInteger),
    Column("generation_id", Words),
    Column("reason", Words),
    # What settling later needs; emptied when the record is final.
    Column("facts", Text),
    # In which era of a shared ledger it was charged: see `eras`.
    Column("era", BigInteger, nullable=False, server_default=text("0")),
    # Whose it is to settle a pending request.
    Column("node", Words),
    # Newest first, for everybody and for one person.
    Index(None, "ts", "request_id"),
    Index(None, "user_id", "ts", "request_id"),
    Index(None, "status", "ts"),
)

changes = Table(
    "changes",
    metadata,
    # SQLite counts on by itself in INTEGER alone.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("key", Words, nullable=False),
    # A number is not given again after the row that had it was deleted.
    sqlite_autoincrement=True,
)
