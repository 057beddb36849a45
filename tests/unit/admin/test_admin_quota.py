"""/admin/users/{id}/quota: what a person may still use, to the last nano-dollar."""

import pytest

from faregate.ledger.counters import counters_for
from faregate.ledger.port import Claim
from faregate.policy.document import parse_policy
from faregate.policy.model import GroupPolicy, Meter
from faregate.records import Facts, Status, UsageRecord

NOON = 1_800_014_400.0
LIMITS = [
    {"meter": "usd", "window": "day", "amount": "2.50"},
    {"meter": "tokens", "window": "total", "amount": 1000},
    {"meter": "requests", "window": "minute", "amount": 20},
    {"meter": "concurrent", "amount": 3},
    {"meter": "usd", "window": "month", "amount": "900", "scope": "group"},
    {"meter": "requests", "window": "week", "amount": 100, "scope": "everyone"},
    {"meter": "usd", "window": "day", "amount": "0.50", "models": ["anthropic/*", "openai/*"]},
]
AMOUNTS = {Meter.USD: 400_000_001, Meter.TOKENS: 70, Meter.REQUESTS: 1, Meter.CONCURRENT: 1}


def put(gateway, policy_id="default", limits=LIMITS):
    gateway.directory.put_policy(parse_policy({"id": policy_id, "limits": limits}))


def touched(gateway, user, model):
    return counters_for(
        gateway.directory.rulebook.shapes,
        gateway.calendar,
        user_id=user.id,
        groups=user.groups,
        models=(model,),
        at=gateway.now,
    )


async def hold(gateway, user, request_id, model="openai/gpt-4o"):
    counters = touched(gateway, user, model)
    facts = Facts(request_id, gateway.now, "owui", user.id, user.email, user.groups, "default", model)
    claims = [Claim(counter, AMOUNTS[counter.meter]) for counter in counters]
    await gateway.ledger.reserve(facts, node="n", lease=15, claims=claims, cap_wanted=0, cap_min=0, now=gateway.now)
    return facts, counters


async def settle(gateway, facts, counters, amounts=AMOUNTS):
    charges = [(counter, amounts[counter.meter]) for counter in counters if counter.meter is not Meter.CONCURRENT]
    await gateway.ledger.settle(facts.request_id, charges, UsageRecord(facts, Status.COMPLETED))


async def quota(admin, user):
    response = await admin.get(f"/admin/users/{user.id}/quota")
    assert response.status_code == 200, response.text
    return response.json()


def entry(meter, window, limit, *, scope="user", group=None, models=(), used, held, remaining, resets_at=None):
    return {
        "meter": meter,
        "window": window,
        "scope": scope,
        "group": group,
        "models": list(models),
        "limit": limit,
        "used": used,
        "held": held,
        "remaining": remaining,
        "resets_at": resets_at,
    }


async def test_every_limit_shows_what_is_used_held_and_left(gateway, admin):
    put(gateway)
    user = gateway.meet(groups=("arts", "staff"))
    await settle(gateway, *await hold(gateway, user, "r-1"))
    await hold(gateway, user, "r-2")
    midnight, monday, month = "2027-01-15T23:00:00Z", "2027-01-17T23:00:00Z", "2027-01-31T23:00:00Z"
    one = {"used": "0.400000001", "held": "0.400000001"}
    assert await quota(admin, user) == [
        entry("usd", "day", "2.5", **one, remaining="1.699999998", resets_at=midnight),
        entry("tokens", "total", 1000, used=70, held=70, remaining=860),
        entry("requests", "minute", 20, used=1, held=1, remaining=18),
        entry("concurrent", None, 3, used=0, held=1, remaining=2),
        entry("usd", "month", "900", scope="group", group="arts", **one, remaining="899.199999998", resets_at=month),
        entry("usd", "month", "900", scope="group", group="staff", **one, remaining="899.199999998", resets_at=month),
        entry("requests", "week", 100, scope="everyone", used=1, held=1, remaining=98, resets_at=monday),
        entry("usd", "day", "0.5", models=["anthropic/*", "openai/*"], **one, remaining="0", resets_at=midnight),
    ]


async def test_a_limit_on_other_models_shows_although_nothing_was_used_of_it(gateway, admin):
    put(gateway, limits=[LIMITS[-1]])
    user = gateway.meet()
    await settle(gateway, *await hold(gateway, user, "r-1", model="google/gemma"))
    [only] = await quota(admin, user)
    assert (only["models"], only["used"], only["remaining"]) == (["anthropic/*", "openai/*"], "0", "0.5")


async def test_what_remains_is_never_negative(gateway, admin):
    put(gateway, limits=[{"meter": "tokens", "window": "total", "amount": 100}])
    user = gateway.meet()
    facts, counters = await hold(gateway, user, "r-1")
    await settle(gateway, facts, counters, {Meter.TOKENS: 170})
    put(gateway, limits=[{"meter": "tokens", "window": "total", "amount": 50}])
    [only] = await quota(admin, user)
    assert (only["limit"], only["used"], only["remaining"]) == (50, 170, 0)


async def test_only_the_effective_policy_limits(gateway, admin):
    put(gateway)
    put(gateway, "calm", [{"meter": "requests", "window": "hour", "amount": 5}])
    user = gateway.meet()
    gateway.directory.assign(user.id, policy_id="calm")
    [only] = await quota(admin, user)
    assert (only["meter"], only["window"], only["resets_at"]) == ("requests", "hour", "2027-01-15T13:00:00Z")


async def test_a_policy_that_came_through_a_group_limits_the_pool_of_that_group_alone(gateway, admin):
    put(gateway, "pool", [{"meter": "usd", "window": "month", "amount": "9", "scope": "group"}])
    gateway.directory.put_group_policy(GroupPolicy("arts", "pool"))
    [only] = await quota(admin, gateway.meet(groups=("arts", "staff")))
    assert only["group"] == "arts"


async def test_the_window_is_that_of_now(gateway, admin):
    put(gateway, limits=[{"meter": "requests", "window": "day", "amount": 5}])
    user = gateway.meet()
    await settle(gateway, *await hold(gateway, user, "r-1"))
    assert (await quota(admin, user))[0]["used"] == 1
    gateway.now += 86_400
    [tomorrow] = await quota(admin, user)
    assert (tomorrow["used"], tomorrow["resets_at"]) == (0, "2027-01-16T23:00:00Z")


@pytest.mark.parametrize("groups", [(), ("staff",)])
async def test_without_limits_there_is_nothing_to_show(gateway, admin, groups):
    assert await quota(admin, gateway.meet(groups=groups)) == []


async def test_the_quota_of_a_person_who_is_not_there_is_404(admin, refusal):
    refusal(await admin.get("/admin/users/nobody/quota"), 404)
