"""The schema as it is now. How a database gets there, and back, is in `migrations`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from faregate.store.types import Instant, Money, Names, Words

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# SQLite counts on by itself in INTEGER alone.
_Number = BigInteger().with_variant(Integer, "sqlite")

connections = Table(
    "connections",
    metadata,
    Column("name", Words, primary_key=True),
    Column("created_at", Instant, nullable=False),
)

groups = Table(
    "groups",
    metadata,
    Column("name", Words, primary_key=True),
    Column("created_at", Instant, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("connection", Words, ForeignKey("connections.name"), nullable=False),
    Column("subject", Words, nullable=False),
    Column("email", Words),
    Column("name", Words),
    Column("role", Words),
    Column("is_active", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("last_seen_at", Instant, nullable=False),
    Index(None, "connection", "subject", unique=True),
)

memberships = Table(
    "memberships",
    metadata,
    Column("user_id", String(32), ForeignKey("users.id"), primary_key=True),
    Column("group_name", Words, ForeignKey("groups.name"), primary_key=True),
    Index(None, "group_name"),
)

policies = Table(
    "policies",
    metadata,
    Column("id", Words, primary_key=True),
    Column("document", Text, nullable=False),
)

# Which policy a person or a group has. A group may be assigned one before anybody is known to be in it.
assignments = Table(
    "assignments",
    metadata,
    # "user" or "group".
    Column("kind", String(16), primary_key=True),
    # The id of the user, the name of the group.
    Column("key", Words, primary_key=True),
    Column("policy_id", Words, ForeignKey("policies.id"), nullable=False),
    # Of several groups the highest counts; 0 for a person.
    Column("priority", Integer, nullable=False),
    Index(None, "policy_id"),
)

# On PostgreSQL partitioned by month (see `partitions`); so its key has to have `ts`, which never changes for a request.
usage_records = Table(
    "usage_records",
    metadata,
    Column("request_id", Words, primary_key=True),
    Column("ts", Instant, primary_key=True),
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
    postgresql_partition_by="RANGE (ts)",
)

# What `usage_records` add up to: for everybody ("all", with an empty key), and by "user", "model", "group", "task" and
# "connection". A request of a person in two groups is in the sums of both. Of every hour, and of longer spans that
# are made of those (see `rollups`), so that a report about months reads few rows.
usage_sums = Table(
    "usage_sums",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("hours", Integer, primary_key=True),
    Column("start", Instant, primary_key=True),
    Column("key", Words, primary_key=True),
    # Those that were admitted; refusals are counted apart, as is which of those admitted failed.
    Column("requests", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("cost", Money, nullable=False),
)

# The hours whose records have changed since they were added up.
stale_hours = Table(
    "stale_hours",
    metadata,
    # An instant is a number to SQLite, and the only key of a table would be one that counts on by itself.
    Column("hour", Instant, primary_key=True, autoincrement=False),
    Column("touched", BigInteger, nullable=False),
)

# What records that retention dropped had charged, for limits over all time: see `carried`. Only ever appended to.
carried_charges = Table(
    "carried_charges",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("user_id", Words, nullable=False),
    Column("groups", Names, nullable=False),
    Column("models", Names, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("nano", BigInteger, nullable=False),
)

# What administrators changed. Only ever appended to.
audit_log = Table(
    "audit_log",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    # Who asked: by which key, from which address.
    Column("actor", Words, nullable=False),
    # "create", "replace", "assign", "delete".
    Column("action", String(16), nullable=False),
    # "policy", "group", "user", and its id or name.
    Column("kind", String(16), nullable=False),
    Column("key", Words, nullable=False),
    # JSON of what it was and what it is; null where there was or is nothing.
    Column("before", Text),
    Column("after", Text),
    Index(None, "kind", "key", "number"),
    sqlite_autoincrement=True,
)

# What our records and OpenRouter's own say about one closed UTC day. Costs in dollars.
reconciliations = Table(
    "reconciliations",
    metadata,
    Column("day", Date, primary_key=True),
    Column("model", Words, primary_key=True),
    # Empty where it is not known.
    Column("provider", Words, primary_key=True),
    Column("our_requests", BigInteger, nullable=False),
    Column("our_cost", Money, nullable=False),
    Column("their_requests", BigInteger, nullable=False),
    Column("their_cost", Money, nullable=False),
    Column("checked_at", Instant, nullable=False),
)

# What is done from time to time, by one node at a time: when that was, by whom, and what came of it.
jobs = Table(
    "jobs",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("ran_at", Instant, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("node", Words, nullable=False),
    Column("said", Text, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("key", Words, nullable=False),
    # A number is not given again after the row that had it was deleted.
    sqlite_autoincrement=True,
)
