"""/admin/users/{id}/quota: what a person may still use."""

from dataclasses import replace

from fastapi import APIRouter

from faregate.admin.quota.schemas import QuotaOut
from faregate.admin.services import Fresh
from faregate.admin.users.endpoints import known_user
from faregate.ledger.counters import counters_for

router = APIRouter(tags=["quota"])


@router.get("/users/{user_id}/quota")
async def list_quota(user_id: str, services: Fresh) -> list[QuotaOut]:
    """One entry for each counter that limits this person."""
    user = known_user(services, user_id)
    resolution = services.directory.resolve(user)
    now = services.clock()
    limited = []
    for shape in services.directory.rulebook.shapes:
        # Whatever model the person may ask for next: the patterns are put back on the counters.
        any_model = [replace(shape, models=())]
        for counter in counters_for(
            any_model, services.calendar, user_id=user.id, groups=user.groups, models=(), at=now
        ):
            limit = resolution.limit_for(shape, counter.scope_id)
            if limit is not None:
                limited.append((counter._replace(models=shape.models), limit))
    balances = await services.ledger.peek([counter for counter, _ in limited], now)
    return [QuotaOut.of(counter, limit, balance) for (counter, limit), balance in zip(limited, balances, strict=True)]
