"""/admin/users: who there is and what an administrator decides about them."""

import asyncio

import pytest

from faregate.policy.model import GroupPolicy


async def test_everybody_is_listed_in_the_order_of_arrival(gateway, admin):
    zoe = gateway.meet("zoe", groups=("staff", "physics"))
    gateway.now += 0.25
    gateway.meet("abe", email=None, name=None, role=None, groups=None)
    response = await admin.get("/admin/users")
    assert response.status_code == 200
    first, second = response.json()
    assert first == {
        "id": zoe.id,
        "connection": "owui",
        "subject": "zoe",
        "email": "zoe@example.com",
        "name": "Zoë 山田",
        "role": "user",
        "groups": ["physics", "staff"],
        "is_active": True,
        "policy_id": None,
        "effective_policy_id": "default",
        "created_at": "2027-01-15T12:00:00Z",
        "last_seen_at": "2027-01-15T12:00:00Z",
    }
    assert (second["subject"], second["email"], second["groups"]) == ("abe", None, [])
    assert second["created_at"] == "2027-01-15T12:00:00.250000Z"


async def test_60_first_requests_at_once_show_as_one_person_in_api_and_store(gateway, admin):
    async def request():
        await asyncio.sleep(0)
        gateway.meet()

    await asyncio.gather(*(request() for _ in range(60)))
    assert len((await admin.get("/admin/users")).json()) == 1
    assert len((await gateway.store.load()).users) == 1


async def test_a_person_is_deactivated_and_reactivated(gateway, admin):
    user = gateway.meet()
    for is_active in (False, True):
        response = await admin.patch(f"/admin/users/{user.id}", json={"is_active": is_active})
        assert response.status_code == 200
        assert response.json()["is_active"] is is_active
        assert gateway.directory.user(user.id).is_active is is_active
        assert (await gateway.store.load()).users[0].is_active is is_active


async def test_an_assigned_policy_applies_at_once_and_null_takes_it_away(gateway, admin):
    await admin.post("/admin/policies", json={"id": "calm"})
    await admin.post("/admin/policies", json={"id": "wild"})
    gateway.directory.put_group_policy(GroupPolicy("staff", "wild"))
    user = gateway.meet()
    for policy_id, effective in (("calm", "calm"), (None, "wild")):
        body = (await admin.patch(f"/admin/users/{user.id}", json={"policy_id": policy_id})).json()
        assert (body["policy_id"], body["effective_policy_id"]) == (policy_id, effective)
        assert (await gateway.store.load()).users[0].policy_id == policy_id


async def test_a_patch_leaves_alone_what_it_does_not_name(gateway, admin):
    await admin.post("/admin/policies", json={"id": "calm"})
    user = gateway.meet()
    path = f"/admin/users/{user.id}"
    changes = ({"policy_id": "calm"}, {"is_active": False})
    await asyncio.gather(*(admin.patch(path, json=change) for change in changes))
    body = (await admin.patch(path, json={})).json()
    assert (body["is_active"], body["policy_id"]) == (False, "calm")
    [stored] = (await gateway.store.load()).users
    assert (stored.is_active, stored.policy_id) == (False, "calm")


@pytest.mark.parametrize(
    ("patch", "param"),
    [
        ({"is_active": None}, "is_active"),
        ({"is_active": "false"}, "is_active"),
        ({"is_active": 0}, "is_active"),
        ({"policy_id": 7}, "policy_id"),
        ({"policy_id": "unknown"}, "policy_id"),
        ({"policy_id": ""}, "policy_id"),
        ({"is_activ": False}, "is_activ"),
        ({"is_active": False, "email": "x@example.com"}, "email"),
    ],
)
async def test_a_patch_that_makes_no_sense_is_422_and_names_the_field(gateway, admin, refusal, patch, param):
    user = gateway.meet()
    error = refusal(await admin.patch(f"/admin/users/{user.id}", json=patch), 422)
    assert error["param"] == param
    assert param in error["message"] or "policy" in error["message"]
    assert user.is_active


async def test_a_person_who_is_not_there_is_404(admin, refusal):
    assert refusal(await admin.patch("/admin/users/nobody", json={"is_active": False}), 404)["code"] == "not_found"
