"""A change by an administrator, and which of them to list, as the admin API says it."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from faregate.admin.formats import instant
from faregate.store.audit import Action, AuditRow, Kind

Number = Annotated[int, Field(ge=1, lt=2**63)]


class AuditParams(BaseModel):
    """Which changes: those of one `kind`, of what has this `key` (the id of a policy or a person, the name of a
    group); `before` is the `number` that the page follows."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    before: Number | None = None
    kind: Kind | None = None
    key: Annotated[str, Field(min_length=1, max_length=500)] | None = None


class AuditOut(BaseModel):
    """One change. `before` is what it was and `after` what it is, null where there was or is nothing.

    A policy is its document; a group has `policy_id` and `priority`, a person `policy_id` and `is_active`.
    """

    number: int
    at: str
    actor: str
    action: Action
    kind: Kind
    key: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @classmethod
    def of(cls, row: AuditRow) -> Self:
        """`row` in the words of the API."""
        same = {name: getattr(row, name) for name in cls.model_fields if name != "at"}
        return cls(at=instant(row.at), **same)
