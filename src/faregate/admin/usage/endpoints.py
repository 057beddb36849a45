"""/admin/usage: every request, newest first."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query

from faregate.admin.errors import not_found
from faregate.admin.services import Fresh
from faregate.admin.usage.schemas import UsageOut, UsageParams
from faregate.directory import Directory
from faregate.store.errors import UnknownRecord
from faregate.store.store import UsageQuery

router = APIRouter(tags=["usage"])


@router.get("/usage")
async def list_usage(params: Annotated[UsageParams, Query()], services: Fresh) -> list[UsageOut]:
    """A page of usage records, newest first; refusals are records too."""
    query = UsageQuery(
        limit=params.limit,
        before=params.before,
        model=params.model,
        since=params.since,
        until=params.until,
        status=params.status,
    )
    if params.user is not None:
        query = _of_person(query, services.directory, params.user)
    try:
        rows = await services.store.usage(query)
    except UnknownRecord as unknown:
        raise not_found("usage record", unknown.request_id, param="before") from None
    return [UsageOut.of(row) for row in rows]


def _of_person(query: UsageQuery, directory: Directory, id_or_email: str) -> UsageQuery:
    if directory.user(id_or_email) is not None:
        return replace(query, user_ids=(id_or_email,))
    # Also what was recorded under this e-mail, or this id, by somebody whom the directory knows otherwise or no more.
    people = tuple(user.id for user in directory.find(id_or_email))
    return replace(query, user_ids=(id_or_email, *people), email=id_or_email.strip().lower())
