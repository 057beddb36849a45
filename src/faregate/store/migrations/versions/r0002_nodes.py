"""Many nodes: eras of charges, owners of what is pending, a feed of changes."""

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, PrimaryKeyConstraint, String, Text, text

from faregate.store.migrations.kinds import number

revision = "0002"
down_revision = "0001"


def upgrade(op: Operations) -> None:
    """What is there was charged before the first era."""
    op.add_column("usage_records", Column("era", BigInteger, nullable=False, server_default=text("0")))
    op.add_column("usage_records", Column("node", Text))
    op.create_table(
        "changes",
        Column("number", number(), autoincrement=True, nullable=False),
        Column("kind", String(16), nullable=False),
        Column("key", Text, nullable=False),
        PrimaryKeyConstraint("number", name="pk_changes"),
        sqlite_autoincrement=True,
    )
    # It is there already if this database has been here before: an era only grows.
    op.execute("INSERT INTO meta (key, value) VALUES ('era', '0') ON CONFLICT DO NOTHING")


def downgrade(op: Operations) -> None:
    """The era that it is stays in `meta`: whatever is charged meanwhile is before it."""
    op.drop_table("changes")
    with op.batch_alter_table("usage_records") as records:
        records.drop_column("node")
        records.drop_column("era")
