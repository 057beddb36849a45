"""/admin/users: who there is, who may use the gateway, and under which policy."""

from fastapi import APIRouter

from faregate.admin.access import Actor
from faregate.admin.body import JsonObject, documented
from faregate.admin.errors import not_found
from faregate.admin.services import AdminServices, Fresh
from faregate.admin.users.schemas import UserOut, UserPatch
from faregate.directory import Assignment, User
from faregate.store.errors import UnknownPolicy

router = APIRouter(tags=["users"])


@router.get("/users")
async def list_users(services: Fresh) -> list[UserOut]:
    """Everybody, first registered first."""
    return [UserOut.of(user, services.directory) for user in services.directory.users()]


@router.patch("/users/{user_id}", openapi_extra=documented(UserPatch))
async def change_user(user_id: str, body: JsonObject, services: Fresh, actor: Actor) -> UserOut:
    """Deactivate or reactivate a person, assign a policy, or take it away with null."""
    patch = UserPatch.model_validate(body)
    changes = Assignment()
    if "is_active" in patch.model_fields_set:
        changes["is_active"] = patch.is_active
    if "policy_id" in patch.model_fields_set:
        changes["policy_id"] = patch.policy_id
    async with services.directory.changing:
        user = known_user(services, user_id)
        if patch.policy_id is not None and patch.policy_id not in services.directory.rulebook.policies:
            raise UnknownPolicy(patch.policy_id)
        await services.store.assign(user, actor=actor, at=services.clock(), **changes)
        services.directory.assign(user_id, **changes)
    await services.changed()
    return UserOut.of(user, services.directory)


def known_user(services: AdminServices, user_id: str) -> User:
    """The user with this id. Raises the 404 of the API."""
    user = services.directory.user(user_id)
    if user is None:
        raise not_found("user", user_id)
    return user
