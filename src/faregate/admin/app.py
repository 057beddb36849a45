"""The admin API: one FastAPI application, everything of it under /admin and behind the admin key."""

from fastapi import Depends, FastAPI
from fastapi.security import APIKeyHeader

from faregate import __version__
from faregate.admin import errors
from faregate.admin.access import HEADER, AdminKey, NoStore
from faregate.admin.audit import endpoints as audit
from faregate.admin.group_policies import endpoints as group_policies
from faregate.admin.jobs import endpoints as jobs
from faregate.admin.policies import endpoints as policies
from faregate.admin.quota import endpoints as quota
from faregate.admin.reports import endpoints as reports
from faregate.admin.services import AdminServices
from faregate.admin.usage import endpoints as usage
from faregate.admin.users import endpoints as users

_FAILURES = {
    401: "The admin key is missing or wrong.",
    422: "A field or parameter is wrong; `param` names it.",
    503: "The database or the ledger is away; `Retry-After` says when to try again.",
}


def create_admin(services: AdminServices) -> FastAPI:
    """The application for `services`. Raises ValueError without an admin key: there is no open door."""
    if not services.admin_key:
        raise ValueError("the admin API needs an admin key")
    # `AdminKey` does the checking, before any route; this only lets the OpenAPI document say so.
    documented_key = Depends(APIKeyHeader(name=HEADER, auto_error=False))
    app = FastAPI(
        title="Faregate admin API",
        version=__version__,
        openapi_url="/admin/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[documented_key],
        responses={
            status: {"model": errors.ErrorBody, "description": description} for status, description in _FAILURES.items()
        },
    )
    app.state.services = services
    errors.install(app)
    app.add_middleware(AdminKey, key=services.admin_key)
    app.add_middleware(NoStore)
    for noun in (users, policies, group_policies, audit, usage, reports, quota, jobs):
        app.include_router(noun.router, prefix="/admin")
    return app
