"""A job, as the admin API says it."""

from typing import Self

from pydantic import BaseModel

from faregate.admin.formats import instant
from faregate.store.jobs import JobRun

GRACE_SECONDS = 60.0
"""A job may be late by one run, and by this: nodes look at what is due from time to time only."""


class JobOut(BaseModel):
    """Something that one node at a time does, every `every_seconds`; null if this node does not plan it.

    `ran_at` is when its last run began, on `node`; `said` is what came of it. All are null while it never ran.
    """

    name: str
    every_seconds: float | None
    ran_at: str | None
    duration_ms: int | None
    node: str | None
    said: str | None
    is_overdue: bool

    @classmethod
    def of(cls, name: str, run: JobRun | None, every: float | None, now: float) -> Self:
        """The job `name` at `now` (epoch seconds), whose last run was `run`."""
        is_late = every is not None and (run is None or now - run.ran_at > 2 * run.next_after(every) + GRACE_SECONDS)
        return cls(
            name=name,
            every_seconds=every,
            ran_at=None if run is None else instant(run.ran_at),
            duration_ms=None if run is None else run.duration_ms,
            node=None if run is None else run.node,
            said=None if run is None else run.said,
            is_overdue=is_late,
        )
