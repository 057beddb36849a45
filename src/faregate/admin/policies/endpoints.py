"""/admin/policies: the rules themselves."""

from http import HTTPStatus

from fastapi import APIRouter

from faregate.admin.access import Actor
from faregate.admin.body import JsonObject, documented
from faregate.admin.errors import conflict, invalid, not_found
from faregate.admin.policies.schemas import PolicyOut
from faregate.admin.services import Fresh
from faregate.policy.document import InvalidPolicy, PolicyDocument, document_of, parse_policy
from faregate.policy.model import DEFAULT_POLICY_ID, Policy
from faregate.policy.rulebook import Rulebook
from faregate.store.errors import PolicyInUse

router = APIRouter(tags=["policies"])


@router.get("/policies")
async def list_policies(services: Fresh) -> list[PolicyOut]:
    """Every policy, by id. There always is a `default`."""
    policies = services.directory.rulebook.policies
    return [_out(policies[policy_id]) for policy_id in sorted(policies)]


@router.post("/policies", openapi_extra=documented(PolicyDocument))
async def put_policy(body: JsonObject, services: Fresh, actor: Actor) -> PolicyOut:
    """Create a policy, or replace the one with its id. What was already used stays used."""
    try:
        policy = parse_policy(body)
    except InvalidPolicy as error:
        raise invalid(error.field, f"{error.field} {error.message}.") from None
    # First, and with nobody waiting: of a new kind of limit the counters may have to be added up from many records.
    await services.prepare(Rulebook((policy,), ()).shapes)
    async with services.directory.changing:
        await services.store.save_policy(policy, actor=actor, at=services.clock())
        services.directory.put_policy(policy)
    await services.changed()
    return _out(policy)


@router.delete("/policies/{policy_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_policy(policy_id: str, services: Fresh, actor: Actor) -> None:
    """Delete a policy that nobody is assigned to."""
    if policy_id == DEFAULT_POLICY_ID:
        raise conflict(
            "policy_is_default",
            "The default policy cannot be deleted: it applies to everybody who has no other. Replace it instead.",
        )
    async with services.directory.changing:
        if policy_id not in services.directory.rulebook.policies:
            raise not_found("policy", policy_id)
        try:
            await services.store.delete_policy(policy_id, actor=actor, at=services.clock())
        except PolicyInUse as use:
            raise conflict("policy_in_use", _in_use(use)) from None
        services.directory.drop_policy(policy_id)
    await services.changed()


def _out(policy: Policy) -> PolicyOut:
    return PolicyOut.model_validate(document_of(policy))


def _in_use(use: PolicyInUse) -> str:
    users = f"{use.users} {'user' if use.users == 1 else 'users'}" if use.users else ""
    groups = f"the {'group' if len(use.groups) == 1 else 'groups'} {', '.join(use.groups)}" if use.groups else ""
    return (
        f"The policy {use.policy_id!r} is assigned to {' and '.join(filter(None, (users, groups)))}: deleting it "
        "would lift their limits. Assign another policy to them first."
    )
