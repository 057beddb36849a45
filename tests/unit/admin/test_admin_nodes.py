"""The admin API of one node among several: it shows what the others did, and tells them what it does."""

from dataclasses import replace

import pytest

from faregate.directory import Directory, Person
from faregate.following import Following
from faregate.ledger.port import LedgerAway
from faregate.policy.document import parse_policy
from faregate.policy.model import GroupPolicy, Policy
from faregate.store.errors import StoreUnavailable

BY = {"actor": "admin key of another node", "at": 1_800_014_400.0}
CALM = Policy("calm", "Calm")
LIMITED = {"id": "limited", "limits": [{"meter": "requests", "window": "day", "amount": 5}]}


@pytest.fixture
def follow(gateway):
    """Takes over what other nodes have stored."""

    async def learn(shapes):
        pass

    return Following(gateway.store, gateway.directory, learn).round


@pytest.fixture
async def node(gateway, follow, as_admin):
    """A client of a node that follows others."""
    async with as_admin(gateway.services(follow=follow)) as node:
        yield node


@pytest.fixture
async def zoe(gateway):
    """Somebody whom another node has met."""
    met = []
    directory = Directory((), (), (), changed=met.append)
    zoe = directory.recognise(Person("owui", "zoe", "zoe@example.com", "Zoë 山田", "user", ("staff",)), gateway.now)
    await gateway.store.write(met, [])
    return zoe


async def test_somebody_whom_another_node_met_is_listed(node, zoe):
    assert [user["id"] for user in (await node.get("/admin/users")).json()] == [zoe.id]


async def test_somebody_whom_another_node_met_is_deactivated_here(gateway, node, zoe):
    response = await node.patch(f"/admin/users/{zoe.id}", json={"is_active": False})
    assert (response.status_code, response.json()["is_active"]) == (200, False)
    assert not gateway.directory.user(zoe.id).is_active
    assert not (await gateway.store.load()).users[0].is_active


async def test_the_quota_of_somebody_whom_another_node_met_is_shown(gateway, node, zoe):
    await gateway.store.save_policy(parse_policy(LIMITED), **BY)
    await gateway.store.assign(zoe, policy_id="limited", **BY)
    [only] = (await node.get(f"/admin/users/{zoe.id}/quota")).json()
    assert (only["limit"], only["remaining"]) == (5, 5)


async def test_a_policy_that_another_node_made_is_shown_assigned_and_deleted(gateway, node, zoe):
    await gateway.store.save_policy(CALM, **BY)
    assert [policy["id"] for policy in (await node.get("/admin/policies")).json()] == ["calm", "default"]
    for body in ({"policy_id": "calm"}, {"policy_id": None}):
        assert (await node.patch(f"/admin/users/{zoe.id}", json=body)).status_code == 200
    await gateway.store.save_policy(replace(CALM, id="calmer"), **BY)
    assert (await node.delete("/admin/policies/calmer")).status_code == 204


async def test_the_policy_of_a_group_that_another_node_set_is_shown_and_taken_away(gateway, node):
    await gateway.store.save_policy(CALM, **BY)
    await gateway.store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    assert [rule["group_name"] for rule in (await node.get("/admin/group-policies")).json()] == ["staff"]
    assert (await node.delete("/admin/group-policies/staff")).status_code == 204


async def test_a_policy_that_another_node_deleted_cannot_be_assigned(gateway, node, zoe, refusal):
    await gateway.store.save_policy(CALM, **BY)
    await node.get("/admin/policies")
    await gateway.store.delete_policy("calm", **BY)
    assert refusal(await node.patch(f"/admin/users/{zoe.id}", json={"policy_id": "calm"}), 422)["param"] == "policy_id"
    rule = {"group_name": "staff", "policy_id": "calm"}
    assert refusal(await node.post("/admin/group-policies", json=rule), 422)["param"] == "policy_id"


async def test_the_others_are_told_of_every_change_once_the_store_and_this_node_have_it(gateway, as_admin):
    told = []

    async def changed():
        snapshot = await gateway.store.load()
        rulebook = gateway.directory.rulebook
        assert [policy.id for policy in snapshot.policies] == [name for name in rulebook.policies if name != "default"]
        assert snapshot.group_policies == rulebook.group_policies
        assert [user.is_active for user in snapshot.users] == [user.is_active for user in gateway.directory.users()]
        assert not gateway.directory.changing.locked()
        told.append((len(snapshot.policies), len(snapshot.group_policies), snapshot.users[0].is_active))

    user = gateway.meet()
    async with as_admin(gateway.services(changed=changed)) as node:
        await node.post("/admin/policies", json=LIMITED)
        await node.post("/admin/group-policies", json={"group_name": "staff", "policy_id": "limited"})
        await node.patch(f"/admin/users/{user.id}", json={"is_active": False})
        await node.delete("/admin/group-policies/staff")
        await node.delete("/admin/policies/limited")
    assert told == [(1, 0, True), (1, 1, True), (1, 1, False), (1, 0, False), (0, 0, False)]


async def test_the_others_are_not_told_of_what_did_not_happen(gateway, as_admin):
    told = []

    async def changed():
        told.append(True)

    async with as_admin(gateway.services(changed=changed)) as node:
        refused = [
            await node.post("/admin/policies", json={"id": "a/b"}),
            await node.delete("/admin/policies/nothing"),
            await node.delete("/admin/policies/default"),
            await node.post("/admin/group-policies", json={"group_name": "staff", "policy_id": "nothing"}),
            await node.delete("/admin/group-policies/nobody"),
            await node.patch("/admin/users/nobody", json={"is_active": False}),
        ]
        assert {response.status_code for response in refused} == {404, 409, 422}
        assert (await node.get("/admin/policies")).status_code == 200
    assert told == []


async def test_new_limits_are_counted_before_anybody_is_held_to_them(gateway, as_admin):
    seen = []

    async def prepare(shapes):
        seen.append(([shape.window for shape in shapes], "limited" in gateway.directory.rulebook.policies))

    async with as_admin(gateway.services(prepare=prepare)) as node:
        assert (await node.post("/admin/policies", json=LIMITED)).status_code == 200
    assert seen == [(["day"], False)]
    assert "limited" in gateway.directory.rulebook.policies


async def test_what_may_have_changed_elsewhere_is_not_shown_while_nobody_can_be_followed(gateway, as_admin, refusal):
    async def follow():
        raise StoreUnavailable("the database did not answer")

    gateway.meet()
    async with as_admin(gateway.services(follow=follow)) as node:
        response = await node.get("/admin/users")
    assert refusal(response, 503)["code"] == "store_unavailable"
    assert response.headers["retry-after"] == "5"


async def test_a_full_disk_does_not_hide_what_other_nodes_did(gateway, follow, as_admin, zoe):
    async def flush():
        raise StoreUnavailable("the disk is full")

    async with as_admin(gateway.services(flush=flush, follow=follow)) as node:
        assert [user["id"] for user in (await node.get("/admin/users")).json()] == [zoe.id]


async def test_while_the_ledger_is_away_a_quota_is_503_with_a_time_to_try_again(gateway, as_admin, refusal):
    class Away:
        async def peek(self, counters, now):
            raise LedgerAway("Redis did not answer within 50 ms.")

    gateway.directory.put_policy(parse_policy(LIMITED | {"id": "default"}))
    user = gateway.meet()
    async with as_admin(gateway.services(ledger=Away())) as node:
        response = await node.get(f"/admin/users/{user.id}/quota")
        assert (await node.get("/admin/users")).status_code == 200
    error = refusal(response, 503)
    assert (error["code"], error["type"]) == ("ledger_unavailable", "server_error")
    assert response.headers["retry-after"] == "5"
    assert error["message"] == (
        "What was used cannot be read at the moment: Redis did not answer within 50 ms. Try again in 5 seconds."
    )
