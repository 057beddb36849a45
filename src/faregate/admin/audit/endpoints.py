"""/admin/audit: what administrators changed, newest first."""

from typing import Annotated

from fastapi import APIRouter, Query

from faregate.admin.audit.schemas import AuditOut, AuditParams
from faregate.admin.services import Fresh

router = APIRouter(tags=["audit"])


@router.get("/audit")
async def list_audit(params: Annotated[AuditParams, Query()], services: Fresh) -> list[AuditOut]:
    """A page of what administrators changed, newest first: who, when, what it was and what it is."""
    rows = await services.store.audit(params.limit, params.before, params.kind, params.key)
    return [AuditOut.of(row) for row in rows]
