"""What is done from time to time, by one node at a time: when that was last, by whom, and what came of it."""

from dataclasses import asdict, dataclass, fields

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from faregate.store.tables import jobs
from faregate.store.upsert import upsert

LEAST_PAUSE = 9
"""How many times as long as it took a job rests at least: it has a tenth of the time, however much there is to do."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """The last run of a job. It began at `ran_at` (epoch seconds), on `node`; `said` is a sentence on what it did."""

    name: str
    ran_at: float
    duration_ms: int
    node: str
    said: str

    def next_after(self, every: float) -> float:
        """Seconds from its beginning to that of the next run, of a job that is to be done `every` seconds."""
        return max(every, self.duration_ms / 1000 * (1 + LEAST_PAUSE))


_NAMES = tuple(field.name for field in fields(JobRun))


async def note(connection: AsyncConnection, run: JobRun) -> None:
    """Keep `run` instead of the one before."""
    rest = [name for name in _NAMES if name != "name"]
    await connection.execute(upsert(connection, jobs, key=("name",), update=rest), [asdict(run)])


async def load(connection: AsyncConnection) -> list[JobRun]:
    """The last run of each job that has ever run, by name."""
    rows = await connection.execute(select(*(jobs.c[name] for name in _NAMES)).order_by(jobs.c.name))
    return [JobRun(*row) for row in rows]
