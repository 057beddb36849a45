"""A usage record, and which records to list, as the admin API says it."""

from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from faregate.admin.formats import dollars, instant, seconds_of
from faregate.records import Source, Status
from faregate.store.store import UsageRow

type_of_moment = {"type": "string", "description": "ISO 8601 date or time (UTC without a zone), or epoch seconds"}
Moment = Annotated[float, BeforeValidator(seconds_of), WithJsonSchema(type_of_moment)]
Text = Annotated[str, Field(min_length=1, max_length=500)]


class UsageParams(BaseModel):
    """Which records: those of one `user` (id or e-mail), one `model` (`*` stands for anything), from `since` up to
    but without `until`, with one `status`; `before` is the `request_id` that the page follows."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    before: Text | None = None
    user: Text | None = None
    model: Text | None = None
    since: Moment | None = None
    until: Moment | None = None
    status: Status | None = None


class UsageOut(BaseModel):
    """One request. `cost` is in dollars, null while it is not known; `ts` is when it was admitted."""

    request_id: str
    ts: str
    user_id: str
    email: str | None
    connection: str
    model: str
    served_model: str | None
    provider: str | None
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: str | None
    status: Status
    source: Source | None
    task: str | None
    chat_id: str | None
    stream: bool
    ttft_ms: int | None
    duration_ms: int | None
    generation_id: str | None
    reason: str | None
    policy_id: str
    groups: tuple[str, ...]
    rules: tuple[str, ...]

    @classmethod
    def of(cls, row: UsageRow) -> Self:
        """`row` in the words of the API."""
        same = {name: getattr(row, name) for name in cls.model_fields if name not in {"ts", "cost"}}
        return cls(ts=instant(row.ts), cost=None if row.cost is None else dollars(row.cost), **same)
