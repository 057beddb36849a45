"""The simulator's activity: the bills of completed UTC days, for management keys alone."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import httpx
import pytest

from faregate.simulator.app import Options, create_app

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
CHAT_KEY = "sk-or-v1-anything"
MANAGEMENT_KEY = "sk-or-v1-mgmt-anything"


class Desk:
    """A simulator at noon of 2026-11-23."""

    def __init__(self) -> None:
        self._app = create_app(Options(clock=lambda: NOON))

    async def ask(self, method: str, path: str, key: str, **more: object) -> httpx.Response:
        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://simulator") as client:
            return await client.request(method, path, headers={"Authorization": f"Bearer {key}"}, **more)

    async def chat(self, text: str, model: str = "simulator/plain", key: str = CHAT_KEY) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return (await self.ask("POST", "/api/v1/chat/completions", key, json=body)).status_code

    async def rows(self, query: str = "") -> list[dict[str, object]]:
        answer = await self.ask("GET", f"/api/v1/activity{query}", MANAGEMENT_KEY)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.content, parse_float=Decimal)["data"]

    async def bills(self) -> list[dict[str, object]]:
        return (await self.ask("GET", "/_simulator/bills", CHAT_KEY)).json()


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_bills_of_a_day_are_added_up_by_model_and_provider(desk: Desk):
    await desk.chat("Hello [[days-ago=1]]")
    await desk.chat("Hello again [[tokens=7]] [[days-ago=1]]")
    await desk.chat("Hello [[days-ago=1]] [[provider=Groq]]")
    await desk.chat("Hello [[days-ago=1]]", "openai/gpt-4o-mini")
    await desk.chat("Hello [[days-ago=2]]")
    one, two, groq, mini, _ = await desk.bills()
    rows = await desk.rows("?date=2026-11-22")
    assert [(row["model"], row["provider_name"], row["requests"]) for row in rows] == [
        ("openai/gpt-4o-mini", "OpenAI", 1),
        ("simulator/plain", "Groq", 1),
        ("simulator/plain", "OpenAI", 2),
    ]
    assert {row["date"] for row in rows} == {"2026-11-22"}
    assert [Decimal(row["usage"]) for row in rows] == [
        Decimal(mini["total"]),
        Decimal(groq["total"]),
        Decimal(one["total"]) + Decimal(two["total"]),
    ]
    assert rows[2]["completion_tokens"] == one["completion_tokens"] + two["completion_tokens"]
    assert rows[2]["model_permaslug"] == "simulator/plain-20260101"


async def test_what_the_provider_bills_directly_is_told_apart(desk: Desk):
    await desk.chat("Hello [[byok]] [[days-ago=1]]")
    (row,), (bill,) = await desk.rows(), await desk.bills()
    assert (row["usage"], Decimal(row["byok_usage_inference"])) == (0, Decimal(bill["upstream_cost"]))


async def test_today_is_not_told_and_neither_is_what_failed(desk: Desk):
    assert await desk.chat("Hello") == 200
    assert await desk.chat("Hello [[error=502]] [[days-ago=1]]") == 502
    assert len(await desk.bills()) == 2
    assert await desk.rows() == []


async def test_without_a_date_the_last_thirty_days_are_told(desk: Desk):
    for days in (31, 30, 1):
        await desk.chat(f"Hello [[days-ago={days}]]")
    assert [row["date"] for row in await desk.rows()] == ["2026-10-24", "2026-11-22"]


async def test_a_bill_that_is_dated_back_says_so_everywhere(desk: Desk):
    await desk.chat("Hello [[days-ago=2]]")
    (bill,) = await desk.bills()
    assert bill["created"] == NOON - 2 * 86_400


@pytest.mark.parametrize("day", ["2026-11-23", "2026-10-23", "yesterday"])
async def test_a_day_that_is_not_told_is_refused(desk: Desk, day: str):
    assert (await desk.ask("GET", f"/api/v1/activity?date={day}", MANAGEMENT_KEY)).status_code == 400


@pytest.mark.parametrize(("key", "status"), [(CHAT_KEY, 403), ("", 401), ("sk-or-v1-bad", 401)])
async def test_any_other_key_is_refused(desk: Desk, key: str, status: int):
    answer = await desk.ask("GET", "/v1/activity", key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)


async def test_a_management_key_cannot_chat(desk: Desk):
    assert await desk.chat("Hello", key=MANAGEMENT_KEY) == 403
    assert await desk.bills() == []


@pytest.mark.parametrize("days", ["0", "-1", "soon", "10001"])
async def test_a_bill_is_dated_back_by_whole_days(desk: Desk, days: str):
    assert await desk.chat(f"Hello [[days-ago={days}]]") == 400
