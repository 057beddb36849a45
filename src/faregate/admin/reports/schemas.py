"""What is asked of a report, and a report, as the admin API says it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from faregate.admin.formats import dollars, instant
from faregate.admin.usage.schemas import Moment
from faregate.directory import Directory
from faregate.store.reports import Every, Report, ReportRow
from faregate.store.rollups import By

_SAME = ("requests", "refused", "failed", "prompt_tokens", "completion_tokens", "total_tokens")


class ReportParams(BaseModel):
    """Sums over the whole hours (UTC) from `since` up to but without `until`: the last 30 days if nothing is said.

    `by` divides them; the `limit` dearest are shown, 100 if nothing is said. `every` makes it a series, by hour or by
    day of UTC, of the 10 dearest if nothing is said.
    """

    model_config = ConfigDict(extra="forbid")

    by: By = By.ALL
    since: Moment | None = None
    until: Moment | None = None
    every: Every | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] | None = None


class ReportUser(BaseModel):
    """Whose sums they are; `email` and `name` are null for somebody who is not known any more."""

    id: str
    email: str | None
    name: str | None


class ReportRowOut(BaseModel):
    """The sums of one `key`; in a series, those of the step that begins at `start`.

    `key` is the id, the model, the name of the group or the connection; of a task it is empty for what a person asked.
    `requests` are those that were admitted and whose cost is known, `failed` is how many of them failed; `refused` are
    beside them. `cost` is in dollars.
    """

    start: str | None
    key: str
    user: ReportUser | None
    requests: int
    refused: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost: str

    @classmethod
    def of(cls, row: ReportRow, user: ReportUser | None) -> Self:
        """`row`, which is about `user`, in the words of the API."""
        return cls(
            start=None if row.start is None else instant(row.start),
            key=row.key,
            user=user,
            cost=dollars(row.cost),
            **{name: getattr(row, name) for name in _SAME},
        )


class ReportOut(BaseModel):
    """The sums over the hours from `since` up to but without `until`.

    `stale_hours` of these hours have records that are not in the sums yet: 0 says that nothing is missing.
    """

    by: By
    every: Every | None
    since: str
    until: str
    stale_hours: int
    rows: list[ReportRowOut]

    @classmethod
    def of(cls, report: Report, params: ReportParams, directory: Directory) -> Self:
        """`report`, asked for by `params`, with the people whom `directory` knows."""

        def user(key: str) -> ReportUser | None:
            if params.by is not By.USER:
                return None
            if (known := directory.user(key)) is None:
                return ReportUser(id=key, email=None, name=None)
            return ReportUser(id=key, email=known.email, name=known.name)

        return cls(
            by=params.by,
            every=params.every,
            since=instant(report.since),
            until=instant(report.until),
            stale_hours=report.stale_hours,
            rows=[ReportRowOut.of(row, user(row.key)) for row in report.rows],
        )
