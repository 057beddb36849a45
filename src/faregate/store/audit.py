"""The audit log: what administrators changed, when, and from where. Rows are added, and never changed or deleted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.tables import audit_log

Action = Literal["create", "replace", "assign", "delete"]
Kind = Literal["policy", "group", "user"]
Document = Mapping[str, Any]


class Edit(NamedTuple):
    """What a request did to one thing: `before` is what it was, `after` what it is, None where there is nothing.

    `key` is the id of a policy or a person, the name of a group. Documents are ready for JSON.
    """

    action: Action
    kind: Kind
    key: str
    before: Document | None
    after: Document | None

    @property
    def changes(self) -> bool:
        """Whether anything is another than it was."""
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An edit as it was logged: `at` is in seconds since the epoch, `actor` says by which key and from where.

    `number` grows with each.
    """

    number: int
    at: float
    actor: str
    action: Action
    kind: Kind
    key: str
    before: Document | None
    after: Document | None


async def append(connection: AsyncConnection, edit: Edit, *, actor: str, at: float) -> None:
    """Log `edit`, which `actor` asked for, in the transaction that makes it."""
    row = {
        "at": at,
        "actor": actor,
        "action": edit.action,
        "kind": edit.kind,
        "key": edit.key,
        "before": _json(edit.before),
        "after": _json(edit.after),
    }
    await connection.execute(insert(audit_log), row)


async def page(
    connection: AsyncConnection, limit: int, before_number: int | None, kind: Kind | None, key: str | None
) -> list[AuditRow]:
    """At most `limit` edits, newest first: those before that number, of that kind, about what has that key."""
    column = audit_log.c
    statement = select(audit_log).order_by(column.number.desc()).limit(limit)
    if before_number is not None:
        statement = statement.where(column.number < before_number)
    if kind is not None:
        statement = statement.where(column.kind == kind)
    if key is not None:
        statement = statement.where(column.key == key)
    rows = (await connection.execute(statement)).mappings()
    return [AuditRow(**{**row, "before": _document(row["before"]), "after": _document(row["after"])}) for row in rows]


def _json(document: Document | None) -> str | None:
    return None if document is None else json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _document(text: str | None) -> Document | None:
    return None if text is None else json.loads(text)
