"""/admin/jobs: what is done from time to time, when it last was, and what came of it."""

from fastapi import APIRouter

from faregate.admin.jobs.schemas import JobOut
from faregate.admin.services import Fresh

router = APIRouter(tags=["jobs"])


@router.get("/jobs")
async def list_jobs(services: Fresh) -> list[JobOut]:
    """Every job that is planned, or that ever ran, by name."""
    runs = {run.name: run for run in await services.store.jobs()}
    now = services.clock()
    names = sorted(services.jobs.keys() | runs.keys())
    return [JobOut.of(name, runs.get(name), services.jobs.get(name), now) for name in names]
