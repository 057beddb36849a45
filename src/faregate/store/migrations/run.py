"""Alembic, run on a connection of ours, in its transaction: nothing needs a file of settings.

Its global `op` and `context` are not used: they are one for the process, in which several stores may be opened at
once. Each revision gets its `Operations` as an argument.
"""

from collections.abc import Iterator
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

FOLDER = Path(__file__).parent


def revision(version: int) -> str:
    """The revision that makes version `version` of the schema."""
    return f"{version:04}"


def titles() -> dict[int, str]:
    """What each version of the schema brought, in its order."""
    scripts = ScriptDirectory(FOLDER)
    return {int(script.revision): script.doc for script in reversed(list(scripts.walk_revisions()))}


def run(connection: Connection, start: int, to: int) -> None:
    """Bring the database from version `start`, 0 if it is empty, up or down to version `to`.

    What the database says of itself in `meta` counts, for an early Faregate, which made and changed databases without
    Alembic, kept that alone.
    """
    scripts = ScriptDirectory(FOLDER)
    context = MigrationContext.configure(connection, opts={"fn": lambda heads, context: _steps(scripts, start, to)})
    if start and context.get_current_heads() != (revision(start),):
        context.stamp(scripts, revision(start))
    context.run_migrations(op=Operations(context))


def _steps(scripts: ScriptDirectory, start: int, to: int) -> Iterator[MigrationStep]:
    for version in range(start + 1, to + 1):
        yield MigrationStep.upgrade_from_script(scripts.revision_map, scripts.get_revision(revision(version)))
    for version in range(start, to, -1):
        yield MigrationStep.downgrade_from_script(scripts.revision_map, scripts.get_revision(revision(version)))
