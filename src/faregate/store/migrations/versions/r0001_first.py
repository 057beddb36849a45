"""People, policies and usage records."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Boolean, Column, Integer, PrimaryKeyConstraint, String, Text

from faregate.store.migrations.kinds import instant, money

revision = "0001"
down_revision = None


def upgrade(op: Operations) -> None:
    """From nothing. There is no way back to that."""
    op.create_table(
        "meta",
        Column("key", String(64), nullable=False),
        Column("value", Text, nullable=False),
        PrimaryKeyConstraint("key", name="pk_meta"),
    )
    op.create_table(
        "users",
        Column("id", String(32), nullable=False),
        Column("connection", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("email", Text),
        Column("name", Text),
        Column("role", Text),
        Column("groups", Text, nullable=False),
        Column("is_active", Boolean, nullable=False),
        Column("policy_id", Text),
        Column("created_at", instant(), nullable=False),
        Column("last_seen_at", instant(), nullable=False),
        PrimaryKeyConstraint("id", name="pk_users"),
    )
    op.create_index("ix_users_connection_subject", "users", ["connection", "subject"], unique=True)
    op.create_table(
        "policies",
        Column("id", Text, nullable=False),
        Column("document", Text, nullable=False),
        PrimaryKeyConstraint("id", name="pk_policies"),
    )
    op.create_table(
        "group_policies",
        Column("group_name", Text, nullable=False),
        Column("policy_id", Text, nullable=False),
        Column("priority", Integer, nullable=False),
        PrimaryKeyConstraint("group_name", name="pk_group_policies"),
    )
    op.create_table(
        "usage_records",
        Column("request_id", Text, nullable=False),
        Column("ts", instant(), nullable=False),
        Column("user_id", Text, nullable=False),
        Column("email", Text),
        Column("connection", Text, nullable=False),
        Column("groups", Text, nullable=False),
        Column("policy_id", Text, nullable=False),
        Column("rules", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("models", Text, nullable=False),
        Column("served_model", Text),
        Column("provider", Text),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("total_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("reasoning_tokens", BigInteger, nullable=False),
        Column("cost", money()),
        Column("cost_nano", BigInteger, nullable=False),
        Column("requests", Integer, nullable=False),
        Column("status", String(16), nullable=False),
        Column("outcome", String(16)),
        Column("source", String(16)),
        Column("task", Text),
        Column("chat_id", Text),
        Column("stream", Boolean, nullable=False),
        Column("ttft_ms", BigInteger),
        Column("duration_ms", BigInteger),
        Column("generation_id", Text),
        Column("reason", Text),
        Column("facts", Text),
        PrimaryKeyConstraint("request_id", name="pk_usage_records"),
    )
    op.create_index("ix_usage_records_ts_request_id", "usage_records", ["ts", "request_id"])
    op.create_index("ix_usage_records_user_id_ts_request_id", "usage_records", ["user_id", "ts", "request_id"])
    op.create_index("ix_usage_records_status_ts", "usage_records", ["status", "ts"])
