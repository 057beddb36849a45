"""/admin/reports: what was used and spent, added up by hours."""

from typing import Annotated

from fastapi import APIRouter, Query

from faregate.admin.errors import invalid
from faregate.admin.reports.schemas import ReportOut, ReportParams
from faregate.admin.services import Fresh
from faregate.store.reports import Every
from faregate.store.rollups import By
from faregate.store.spans import DAY, HOUR, floor

USUAL_DAYS = 30
"""A report that does not say `since` begins with the day (UTC) that is so many days before `until`."""

USUAL_LIMIT = 100
USUAL_LIMIT_OF_SERIES = 10

MOST_ROWS = 50_000
MOST_KEYS = 500
"""Of a series: more is no page."""

router = APIRouter(tags=["reports"])


@router.get("/reports")
async def read_report(params: Annotated[ReportParams, Query()], services: Fresh) -> ReportOut:
    """Requests, tokens and dollars by person, model, group, task or connection, the dearest first."""
    until = services.clock() if params.until is None else params.until
    since = max(floor(until, DAY) - USUAL_DAYS * DAY, 0.0) if params.since is None else params.since
    if since >= until:
        raise invalid("until", "until should be later than since: a report is about the time between them.")
    limit = params.limit or (USUAL_LIMIT if params.every is None else USUAL_LIMIT_OF_SERIES)
    if params.every is not None:
        _check_series(params.by, until - since, params.every, limit)
    report = await services.store.report(params.by, since, until, params.every, limit)
    return ReportOut.of(report, params, services.directory)


def _check_series(by: By, seconds: float, every: Every, limit: int) -> None:
    if limit > MOST_KEYS:
        raise invalid("limit", f"limit should be {MOST_KEYS} at most in a series.")
    step = HOUR if every is Every.HOUR else DAY
    if seconds / step * (1 if by is By.ALL else limit) > MOST_ROWS:
        raise invalid(
            "every",
            f"This series could have more than {MOST_ROWS:,} rows: ask for a shorter time, for days instead of hours, "
            "or for a smaller limit.",
        )
