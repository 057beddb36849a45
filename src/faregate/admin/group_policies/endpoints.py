"""/admin/group-policies: the policies that groups bring to their members."""

from http import HTTPStatus

from fastapi import APIRouter

from faregate.admin.access import Actor
from faregate.admin.body import JsonObject, documented
from faregate.admin.errors import not_found
from faregate.admin.group_policies.schemas import GroupPolicyBody
from faregate.admin.services import Fresh
from faregate.store.errors import UnknownPolicy

router = APIRouter(tags=["group policies"])


@router.get("/group-policies")
async def list_group_policies(services: Fresh) -> list[GroupPolicyBody]:
    """The policy of every group that has one, in the order in which they win."""
    return [GroupPolicyBody.of(rule) for rule in services.directory.rulebook.group_policies]


@router.post("/group-policies", openapi_extra=documented(GroupPolicyBody))
async def put_group_policy(body: JsonObject, services: Fresh, actor: Actor) -> GroupPolicyBody:
    """Assign a policy to a group, instead of the one it may have."""
    rule = GroupPolicyBody.model_validate(body).rule()
    async with services.directory.changing:
        if rule.policy_id not in services.directory.rulebook.policies:
            raise UnknownPolicy(rule.policy_id)
        await services.store.save_group_policy(rule, actor=actor, at=services.clock())
        services.directory.put_group_policy(rule)
    await services.changed()
    return GroupPolicyBody.of(rule)


@router.delete("/group-policies/{group_name:path}", status_code=HTTPStatus.NO_CONTENT)
async def delete_group_policy(group_name: str, services: Fresh, actor: Actor) -> None:
    """Take its policy from a group."""
    async with services.directory.changing:
        if all(rule.group != group_name for rule in services.directory.rulebook.group_policies):
            raise not_found("policy for the group", group_name)
        await services.store.delete_group_policy(group_name, actor=actor, at=services.clock())
        services.directory.drop_group_policy(group_name)
    await services.changed()
