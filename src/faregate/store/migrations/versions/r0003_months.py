"""Usage by month, hourly sums, groups and assignments in tables of their own, an audit log."""

from alembic.operations import Operations
from sqlalchemy import (
    BigInteger,
    Column,
    Date,
    ForeignKeyConstraint,
    Integer,
    PrimaryKeyConstraint,
    String,
    Text,
)

from faregate.store.migrations import people, records
from faregate.store.migrations.kinds import instant, money, number

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations) -> None:
    """All hours are stale at first: sums are made of the records by whoever looks for such."""
    _create_rules(op)
    _create_reports(op)
    people.to_tables(op)
    with op.batch_alter_table("users") as users:
        users.drop_column("groups")
        users.drop_column("policy_id")
        users.create_foreign_key("fk_users_connection", "connections", ["connection"], ["name"])
    op.drop_table("group_policies")
    _create_memberships(op)
    people.fill_memberships(op)
    hours = records.rebuild(op, by_month=True)
    records.mark_stale(op.get_bind(), hours)


def downgrade(op: Operations) -> None:
    """What only this version knows goes: sums, the audit log, results of reconciliations, when jobs ran."""
    for name in ("usage_sums", "stale_hours", "carried_charges", "audit_log", "reconciliations", "jobs"):
        op.drop_table(name)
    records.rebuild(op, by_month=False)
    op.create_table(
        "group_policies",
        Column("group_name", Text, nullable=False),
        Column("policy_id", Text, nullable=False),
        Column("priority", Integer, nullable=False),
        PrimaryKeyConstraint("group_name", name="pk_group_policies"),
    )
    # With a default for as long as there are rows without a value.
    op.add_column("users", Column("groups", Text, nullable=False, server_default="[]"))
    op.add_column("users", Column("policy_id", Text))
    people.from_tables(op.get_bind())
    for name in ("memberships", "groups", "assignments"):
        op.drop_table(name)
    with op.batch_alter_table("users") as users:
        users.drop_constraint("fk_users_connection", type_="foreignkey")
        users.alter_column("groups", server_default=None)
    op.drop_table("connections")


def _create_rules(op: Operations) -> None:
    for name in ("connections", "groups"):
        op.create_table(
            name,
            Column("name", Text, nullable=False),
            Column("created_at", instant(), nullable=False),
            PrimaryKeyConstraint("name", name=f"pk_{name}"),
        )
    op.create_table(
        "assignments",
        Column("kind", String(16), nullable=False),
        Column("key", Text, nullable=False),
        Column("policy_id", Text, nullable=False),
        Column("priority", Integer, nullable=False),
        PrimaryKeyConstraint("kind", "key", name="pk_assignments"),
        ForeignKeyConstraint(["policy_id"], ["policies.id"], name="fk_assignments_policy_id"),
    )
    op.create_index("ix_assignments_policy_id", "assignments", ["policy_id"])


def _create_memberships(op: Operations) -> None:
    op.create_table(
        "memberships",
        Column("user_id", String(32), nullable=False),
        Column("group_name", Text, nullable=False),
        PrimaryKeyConstraint("user_id", "group_name", name="pk_memberships"),
        ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_memberships_user_id"),
        ForeignKeyConstraint(["group_name"], ["groups.name"], name="fk_memberships_group_name"),
    )
    op.create_index("ix_memberships_group_name", "memberships", ["group_name"])


def _create_reports(op: Operations) -> None:
    op.create_table(
        "usage_sums",
        Column("kind", String(16), nullable=False),
        Column("hours", Integer, nullable=False),
        Column("start", instant(), nullable=False),
        Column("key", Text, nullable=False),
        Column("requests", BigInteger, nullable=False),
        Column("refused", BigInteger, nullable=False),
        Column("failed", BigInteger, nullable=False),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("total_tokens", BigInteger, nullable=False),
        Column("cost", money(), nullable=False),
        PrimaryKeyConstraint("kind", "hours", "start", "key", name="pk_usage_sums"),
    )
    op.create_table(
        "stale_hours",
        Column("hour", instant(), autoincrement=False, nullable=False),
        Column("touched", BigInteger, nullable=False),
        PrimaryKeyConstraint("hour", name="pk_stale_hours"),
    )
    op.create_table(
        "carried_charges",
        Column("number", number(), autoincrement=True, nullable=False),
        Column("user_id", Text, nullable=False),
        Column("groups", Text, nullable=False),
        Column("models", Text, nullable=False),
        Column("requests", BigInteger, nullable=False),
        Column("tokens", BigInteger, nullable=False),
        Column("nano", BigInteger, nullable=False),
        PrimaryKeyConstraint("number", name="pk_carried_charges"),
    )
    op.create_table(
        "audit_log",
        Column("number", number(), autoincrement=True, nullable=False),
        Column("at", instant(), nullable=False),
        Column("actor", Text, nullable=False),
        Column("action", String(16), nullable=False),
        Column("kind", String(16), nullable=False),
        Column("key", Text, nullable=False),
        Column("before", Text),
        Column("after", Text),
        PrimaryKeyConstraint("number", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_kind_key_number", "audit_log", ["kind", "key", "number"])
    op.create_table(
        "reconciliations",
        Column("day", Date, nullable=False),
        Column("model", Text, nullable=False),
        Column("provider", Text, nullable=False),
        Column("our_requests", BigInteger, nullable=False),
        Column("our_cost", money(), nullable=False),
        Column("their_requests", BigInteger, nullable=False),
        Column("their_cost", money(), nullable=False),
        Column("checked_at", instant(), nullable=False),
        PrimaryKeyConstraint("day", "model", "provider", name="pk_reconciliations"),
    )
    op.create_table(
        "jobs",
        Column("name", String(32), nullable=False),
        Column("ran_at", instant(), nullable=False),
        Column("duration_ms", BigInteger, nullable=False),
        Column("node", Text, nullable=False),
        Column("said", Text, nullable=False),
        PrimaryKeyConstraint("name", name="pk_jobs"),
    )
