"""/admin/usage: every request, with its exact cost, found by who, what and when."""

from decimal import Decimal

import pytest

from faregate.records import Source, Status

NOON = 1_800_014_400.0


async def listed(admin, **params):
    response = await admin.get("/admin/usage", params=params)
    assert response.status_code == 200, response.text
    return [row["request_id"] for row in response.json()]


async def test_a_record_shows_everything_that_is_known(gateway, admin):
    user = gateway.meet()
    gateway.accept(
        user,
        "r-1",
        at=NOON + 0.5,
        source=Source.USAGE,
        served_model="openai/gpt-4o-2024-08-06",
        provider="OpenAI",
        prompt_tokens=11,
        completion_tokens=22,
        total_tokens=33,
        cached_tokens=4,
        reasoning_tokens=5,
        cost=Decimal("0.000123400000"),
        cost_nano=123_400,
        ttft_ms=180,
        duration_ms=950,
        generation_id="gen-1",
    )
    assert (await admin.get("/admin/usage")).json() == [
        {
            "request_id": "r-1",
            "ts": "2027-01-15T12:00:00.500000Z",
            "user_id": user.id,
            "email": "u-1@example.com",
            "connection": "owui",
            "model": "openai/gpt-4o",
            "served_model": "openai/gpt-4o-2024-08-06",
            "provider": "OpenAI",
            "prompt_tokens": 11,
            "completion_tokens": 22,
            "total_tokens": 33,
            "cached_tokens": 4,
            "reasoning_tokens": 5,
            "cost": "0.0001234",
            "status": "completed",
            "source": "usage",
            "task": None,
            "chat_id": None,
            "stream": False,
            "ttft_ms": 180,
            "duration_ms": 950,
            "generation_id": "gen-1",
            "reason": None,
            "policy_id": "default",
            "groups": ["staff"],
            "rules": ["the default policy"],
        }
    ]


async def test_a_refusal_costs_0_and_a_pending_cost_is_null(gateway, admin):
    user = gateway.meet()
    gateway.accept(user, "r-1", status=Status.REFUSED, requests=0, reason="the daily limit of $2.50 is used up")
    gateway.accept(user, "r-2", status=Status.PENDING, cost=None)
    gateway.accept(user, "r-3", cost=Decimal(1200))
    rows = {row["request_id"]: row for row in (await admin.get("/admin/usage")).json()}
    assert (rows["r-1"]["cost"], rows["r-1"]["reason"]) == ("0", "the daily limit of $2.50 is used up")
    assert (rows["r-2"]["cost"], rows["r-2"]["status"]) == (None, "pending")
    assert rows["r-3"]["cost"] == "1200"


async def test_the_latest_100_come_newest_first_and_pages_follow(gateway, admin):
    user = gateway.meet()
    for n in range(250):
        gateway.accept(user, f"r-{n:03}", at=NOON + n // 4)
    whole = [f"r-{n:03}" for n in reversed(range(250))]
    assert await listed(admin) == whole[:100]
    assert await listed(admin, before="r-150") == whole[100:200]
    assert await listed(admin, before="r-050") == whole[200:]
    assert await listed(admin, before="r-000") == []
    assert await listed(admin, limit=1000) == whole
    assert await listed(admin, limit=1) == whole[:1]


async def test_a_page_after_a_record_that_is_not_there_is_404(admin, refusal):
    assert refusal(await admin.get("/admin/usage", params={"before": "nothing"}), 404)["param"] == "before"


async def test_records_of_one_person_by_id_by_e_mail_and_by_an_e_mail_of_then(gateway, admin):
    zoe, abe = gateway.meet("zoe"), gateway.meet("abe")
    gateway.accept(zoe, "r-1", at=NOON)
    gateway.accept(abe, "r-2", at=NOON + 1)
    gateway.meet("zoe", email="married@example.com")
    gateway.accept(zoe, "r-3", at=NOON + 2)
    assert await listed(admin, user=zoe.id) == ["r-3", "r-1"]
    assert await listed(admin, user="Married@Example.com") == ["r-3", "r-1"]
    assert await listed(admin, user="zoe@example.com") == ["r-1"]
    assert await listed(admin, user="nobody@example.com") == []


async def test_records_of_models_by_name_and_pattern(gateway, admin):
    user = gateway.meet()
    for n, model in enumerate(["openai/gpt-4o", "openai/gpt-oss:free", "google/gemma:free"]):
        gateway.accept(user, f"r-{n}", model=model)
    assert await listed(admin, model="OpenAI/GPT-4o") == ["r-0"]
    assert await listed(admin, model="*:free") == ["r-2", "r-1"]
    assert await listed(admin, model="openai/*", limit=1) == ["r-1"]


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"since": "2027-01-16"}, ["r-2"]),
        ({"until": "2027-01-16"}, ["r-1", "r-0"]),
        ({"since": "2027-01-15T12:00:00"}, ["r-2", "r-1"]),
        ({"since": "2027-01-15T12:00:00.000001Z"}, ["r-2"]),
        ({"since": "2027-01-15T13:00:00+01:00", "until": "2027-01-15T12:00:01Z"}, ["r-1"]),
        ({"since": "1800014400"}, ["r-2", "r-1"]),
        ({"since": "1800014400.5"}, ["r-2"]),
        ({"until": "1800014400"}, ["r-0"]),
    ],
)
async def test_records_of_a_time(gateway, admin, params, found):
    user = gateway.meet()
    for n, at in enumerate([NOON - 1, NOON, NOON + 43_200]):
        gateway.accept(user, f"r-{n}", at=at)
    assert await listed(admin, **params) == found


async def test_a_plus_that_was_not_quoted_is_understood(gateway, admin):
    gateway.accept(gateway.meet(), "r-1")
    response = await admin.get("/admin/usage?since=2027-01-15T13:00:00+01:00&until=2027-01-15T13:00:01+01:00")
    assert [row["request_id"] for row in response.json()] == ["r-1"]


async def test_the_time_of_a_record_can_be_sent_back(gateway, admin):
    gateway.accept(gateway.meet(), "r-1", at=NOON + 0.123457)
    [row] = (await admin.get("/admin/usage")).json()
    assert await listed(admin, since=row["ts"]) == ["r-1"]
    assert await listed(admin, until=row["ts"]) == []


async def test_records_of_a_status(gateway, admin):
    user = gateway.meet()
    for status in Status:
        gateway.accept(user, status.value, status=status)
    for status in Status:
        assert await listed(admin, status=status.value) == [status.value]


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", "1.5"),
        ("status", "cheap"),
        ("since", "yesterday"),
        ("since", "2027-02-30"),
        ("since", "nan"),
        ("since", "-5"),
        ("since", "1e9"),
        ("until", "0001-01-01T00:00:00+14:00"),
        ("until", "9999-12-31T23:59:59-14:00"),
        ("until", "999999999999999"),
        ("user", ""),
        ("model", ""),
        ("before", ""),
        ("model", "x" * 501),
        ("form", "2027-01-01"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_422_and_is_named(admin, refusal, param, value):
    error = refusal(await admin.get("/admin/usage", params={param: value}), 422)
    assert error["param"] == param
    assert error["message"].startswith(param)
