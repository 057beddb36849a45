"""/admin/audit: what administrators changed."""

import httpx
import pytest

from faregate.admin.app import create_admin

KEY = "adminkey-ünïcode".encode()
CALM = {"id": "calm", "name": "Calm", "limits": [{"meter": "usd", "window": "day", "amount": "2.50"}]}


@pytest.fixture
async def log(admin):
    async def log(**params):
        return (await admin.get("/admin/audit", params=params)).json()

    return log


async def test_a_change_shows_with_who_when_and_what_it_was(gateway, admin, log):
    user = gateway.meet()
    shown = (await admin.post("/admin/policies", json=CALM)).json()
    gateway.now += 0.5
    await admin.patch(f"/admin/users/{user.id}", json={"policy_id": "calm"})
    assert await log() == [
        {
            "number": 2,
            "at": "2027-01-15T12:00:00.500000Z",
            "actor": "admin key from 127.0.0.1",
            "action": "assign",
            "kind": "user",
            "key": user.id,
            "before": {"policy_id": None, "is_active": True},
            "after": {"policy_id": "calm", "is_active": True},
        },
        {
            "number": 1,
            "at": "2027-01-15T12:00:00Z",
            "actor": "admin key from 127.0.0.1",
            "action": "create",
            "kind": "policy",
            "key": "calm",
            "before": None,
            "after": shown | {"limits": [{"meter": "usd", "window": "day", "amount": "2.5"} | EVERY_MODEL]},
        },
    ]


EVERY_MODEL = {"scope": "user", "models": []}


async def test_every_change_that_the_api_can_make_shows_and_no_other_request_does(gateway, admin, log):
    user = gateway.meet()
    rule = {"group_name": "science/physics", "policy_id": "calm"}
    for _ in range(2):
        await admin.post("/admin/policies", json=CALM)
        await admin.post("/admin/group-policies", json=rule)
        await admin.patch(f"/admin/users/{user.id}", json={"is_active": False})
        await admin.delete("/admin/policies/calm")
        await admin.patch(f"/admin/users/{user.id}", json={"is_active": "no"})
        await admin.get("/admin/users")
    await admin.delete("/admin/group-policies/science%2Fphysics")
    await admin.delete("/admin/policies/calm")
    assert [(entry["action"], entry["kind"], entry["key"]) for entry in await log()] == [
        ("delete", "policy", "calm"),
        ("delete", "group", "science/physics"),
        ("assign", "user", user.id),
        ("assign", "group", "science/physics"),
        ("create", "policy", "calm"),
    ]


async def test_pages_follow_each_other_and_are_about_what_was_asked(admin, log):
    for turn in range(7):
        await admin.post("/admin/policies", json=CALM | {"name": f"{turn}"})
        await admin.post("/admin/policies", json={"id": "wild", "name": f"{turn}"})
    seen, before = [], {}
    while page := await log(kind="policy", key="calm", limit=3, **before):
        seen += [entry["after"]["name"] for entry in page]
        before = {"before": page[-1]["number"]}
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert (await log(kind="group"), await log(key="nobody")) == ([], [])


@pytest.mark.parametrize(
    ("address", "actor"),
    [(("10.1.2.3", 4711), "admin key from 10.1.2.3"), (("::1", 4711), "admin key from ::1"), (None, "admin key")],
)
async def test_who_asked_is_told_by_the_address_and_never_by_the_key(gateway, log, address, actor):
    transport = httpx.ASGITransport(create_admin(gateway.services()), client=address)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://faregate", headers={"x-admin-key": KEY, "x-forwarded-for": "10.9.9.9"}
    ) as somebody:
        await somebody.post("/admin/policies", json=CALM)
    [entry] = await log()
    assert entry["actor"] == actor
    assert KEY.decode() not in str(entry)


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 1001}, {"before": 0}, {"before": 2**63}, {"kind": "role"}, {"key": ""}, {"x": 1}]
)
async def test_a_question_that_makes_no_sense_is_422_and_names_the_parameter(admin, refusal, params):
    [param] = params
    assert refusal(await admin.get("/admin/audit", params=params), 422)["param"] == param
