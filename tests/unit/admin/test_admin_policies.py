"""/admin/policies and /admin/group-policies: the rules, and who has them."""

import asyncio

import pytest

STUDENT = {
    "id": "student",
    "name": "Student",
    "limits": [
        {"meter": "usd", "window": "day", "amount": "2.50"},
        {"meter": "tokens", "window": "month", "amount": 1000000, "scope": "user"},
        {"meter": "usd", "window": "month", "amount": "900", "scope": "group"},
        {"meter": "requests", "window": "minute", "amount": 20},
        {"meter": "concurrent", "amount": 3},
        {"meter": "usd", "window": "day", "amount": "0.50", "models": ["anthropic/*"]},
    ],
    "models": {"allow": ["openai/*", "google/*"], "deny": ["*:online"]},
    "max_output_tokens": 8192,
    "enforcement": "strict",
}


async def policies(admin):
    return {policy["id"]: policy for policy in (await admin.get("/admin/policies")).json()}


async def test_there_is_a_default_policy_without_limits(admin):
    assert await policies(admin) == {
        "default": {
            "id": "default",
            "name": "Default",
            "limits": [],
            "models": {"allow": [], "deny": []},
            "max_output_tokens": 16384,
            "enforcement": "strict",
        }
    }


async def test_a_policy_is_created_shown_stored_and_applied(gateway, admin):
    response = await admin.post("/admin/policies", json=STUDENT)
    assert response.status_code == 200
    shown = (await policies(admin))["student"]
    assert response.json() == shown
    assert [limit["amount"] for limit in shown["limits"]] == ["2.5", 1000000, "900", 20, 3, "0.5"]
    assert [limit["window"] for limit in shown["limits"]] == ["day", "month", "month", "minute", None, "day"]
    assert shown["models"] == STUDENT["models"]
    [stored] = (await gateway.store.load()).policies
    assert stored == gateway.directory.rulebook.policies["student"]


async def test_what_is_shown_can_be_posted_again(admin):
    shown = (await admin.post("/admin/policies", json=STUDENT)).json()
    assert (await admin.post("/admin/policies", json=shown)).json() == shown
    assert (await policies(admin))["student"] == shown


async def test_dollars_lose_no_digit_as_strings_or_as_numbers(admin):
    for amount in ("9007199.254740991", "0.000000001", "0.1"):
        for spelling in (f'"{amount}"', amount):
            content = f'{{"id": "p", "limits": [{{"meter": "usd", "window": "day", "amount": {spelling}}}]}}'
            body = (await admin.post("/admin/policies", content=content)).json()
            assert body["limits"][0]["amount"] == amount


async def test_a_post_replaces_the_whole_policy(gateway, admin):
    await admin.post("/admin/policies", json=STUDENT)
    await admin.post("/admin/policies", json={"id": "student", "name": "Pupil"})
    assert (await policies(admin))["student"]["limits"] == []
    assert (await gateway.store.load()).policies[0].name == "Pupil"


async def test_the_default_policy_can_be_replaced(gateway, admin):
    await admin.post("/admin/policies", json={"id": "default", "name": "House rules", "daily_token_limit": 5})
    assert gateway.directory.resolve(gateway.meet()).policy.name == "House rules"


async def test_the_short_form_is_shown_in_full(admin):
    short = {
        "id": "short",
        "name": "Short",
        "daily_token_limit": 1000,
        "monthly_token_limit": 9000,
        "allowed_models": ["openai/*"],
    }
    body = (await admin.post("/admin/policies", json=short)).json()
    assert [(limit["meter"], limit["window"], limit["amount"]) for limit in body["limits"]] == [
        ("tokens", "day", 1000),
        ("tokens", "month", 9000),
    ]
    assert body["models"] == {"allow": ["openai/*"], "deny": []}


def student(**changes):
    return {**STUDENT, **changes}


def limited(**limit):
    return student(limits=[{"meter": "usd", "window": "day", "amount": "1"} | limit])


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ({"name": "No id"}, "id"),
        (student(id="a/b"), "id"),
        (student(id=7), "id"),
        (student(surprise=1), "surprise"),
        (student(limits={}), "limits"),
        (student(max_output_tokens=0), "max_output_tokens"),
        (student(max_output_tokens=1.5), "max_output_tokens"),
        (student(enforcement="harsh"), "enforcement"),
        (student(models={"allow": ["a", 1]}), "models.allow[1]"),
        (student(models={"allowed": []}), "models.allowed"),
        (student(daily_token_limit=5), "daily_token_limit"),
        (limited(amount="-1"), "limits[0].amount"),
        (limited(amount="NaN"), "limits[0].amount"),
        (limited(amount="1e999999999"), "limits[0].amount"),
        (limited(amount=True), "limits[0].amount"),
        (limited(meter="euro"), "limits[0].meter"),
        (limited(window="year"), "limits[0].window"),
        (limited(scope="role"), "limits[0].scope"),
        (limited(meter="concurrent"), "limits[0].window"),
        (limited(meter="tokens", amount="5.5"), "limits[0].amount"),
    ],
)
async def test_a_policy_that_makes_no_sense_is_422_and_names_the_field(gateway, admin, refusal, policy, param):
    error = refusal(await admin.post("/admin/policies", json=policy), 422)
    assert error["param"] == param
    assert error["message"].startswith(param)
    assert (await gateway.store.load()).policies == ()
    assert list(gateway.directory.rulebook.policies) == ["default"]


async def test_a_policy_that_nobody_has_is_deleted(gateway, admin, refusal):
    await admin.post("/admin/policies", json=STUDENT)
    response = await admin.delete("/admin/policies/student")
    assert (response.status_code, response.content) == (204, b"")
    assert (await gateway.store.load()).policies == ()
    assert list(await policies(admin)) == ["default"]
    refusal(await admin.delete("/admin/policies/student"), 404)


async def test_the_default_policy_cannot_be_deleted(admin, refusal):
    error = refusal(await admin.delete("/admin/policies/default"), 409)
    assert error["code"] == "policy_is_default"


async def test_a_policy_in_use_is_not_deleted_and_the_refusal_says_who_has_it(gateway, admin, refusal):
    await admin.post("/admin/policies", json=STUDENT)
    await admin.patch(f"/admin/users/{gateway.meet().id}", json={"policy_id": "student"})
    for group in ("physics", "arts"):
        await admin.post("/admin/group-policies", json={"group_name": group, "policy_id": "student"})
    error = refusal(await admin.delete("/admin/policies/student"), 409)
    assert error["code"] == "policy_in_use"
    assert "assigned to 1 user and the groups arts, physics:" in error["message"]
    assert "student" in await policies(admin)


async def test_a_policy_is_never_deleted_while_it_is_being_assigned(gateway, admin):
    for turn in range(10):
        await admin.post("/admin/policies", json=STUDENT)
        user = gateway.meet(f"u-{turn}")
        deleted, assigned = await asyncio.gather(
            admin.delete("/admin/policies/student"),
            admin.patch(f"/admin/users/{user.id}", json={"policy_id": "student"}),
        )
        assert {deleted.status_code, assigned.status_code} in ({204, 422}, {409, 200})
        await admin.patch(f"/admin/users/{user.id}", json={"policy_id": None})


async def test_the_policy_of_a_group_is_set_shown_stored_and_applied(gateway, admin):
    await admin.post("/admin/policies", json=STUDENT)
    rules = [
        {"group_name": "physics, applied", "policy_id": "student", "priority": 5},
        {"group_name": "science/physics", "policy_id": "default", "priority": -1},
        {"group_name": "arts", "policy_id": "student", "priority": 0},
    ]
    for rule in rules:
        response = await admin.post("/admin/group-policies", json=rule)
        assert (response.status_code, response.json()) == (200, rule)
    assert (await admin.get("/admin/group-policies")).json() == [rules[0], rules[2], rules[1]]
    assert len((await gateway.store.load()).group_policies) == 3
    assert gateway.directory.resolve(gateway.meet(groups=("arts",))).policy.id == "student"


async def test_the_policy_of_a_group_is_replaced(gateway, admin):
    await admin.post("/admin/group-policies", json={"group_name": "arts", "policy_id": "default", "priority": 3})
    await admin.post("/admin/group-policies", json={"group_name": "arts", "policy_id": "default"})
    [rule] = (await gateway.store.load()).group_policies
    assert rule.priority == 0
    assert len((await admin.get("/admin/group-policies")).json()) == 1


@pytest.mark.parametrize("group", ["arts", "science/physics", "100% café", "a?b#c", "山田"])
async def test_the_policy_of_a_group_is_taken_away_whatever_its_name(gateway, admin, refusal, group):
    await admin.post("/admin/group-policies", json={"group_name": group, "policy_id": "default"})
    path = "/admin/group-policies/" + "".join(f"%{byte:02X}" for byte in group.encode())
    assert (await admin.delete(path)).status_code == 204
    assert (await gateway.store.load()).group_policies == ()
    assert (await admin.get("/admin/group-policies")).json() == []
    refusal(await admin.delete(path), 404)


def rule(**changes):
    return {"group_name": "arts", "policy_id": "default", "priority": 0} | changes


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"policy_id": "default"}, "group_name"),
        ({"group_name": "arts"}, "policy_id"),
        (rule(group_name=""), "group_name"),
        (rule(group_name="x" * 501), "group_name"),
        (rule(group_name=None), "group_name"),
        (rule(policy_id="unknown"), "policy_id"),
        (rule(policy_id=None), "policy_id"),
        (rule(priority="1"), "priority"),
        (rule(priority=1.5), "priority"),
        (rule(priority=True), "priority"),
        (rule(priority=10**30), "priority"),
        (rule(surprise=1), "surprise"),
    ],
)
async def test_a_group_policy_that_makes_no_sense_is_422_and_names_the_field(gateway, admin, refusal, body, param):
    assert refusal(await admin.post("/admin/group-policies", json=body), 422)["param"] == param
    assert (await gateway.store.load()).group_policies == ()
