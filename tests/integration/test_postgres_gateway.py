"""The command, with its users, rules and usage in PostgreSQL."""

from decimal import Decimal

import httpx
import pytest
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, UPSTREAM_KEY, Gateway, Simulator
from open_webui import ZOE, plain_headers, user_turn

LIMITS = [{"meter": "usd", "window": "total", "amount": "100"}, {"meter": "requests", "window": "total", "amount": 9}]


@pytest.fixture
def simulator(tmp_path):
    running = Simulator(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def start(simulator, postgres, tmp_path):
    settings = {
        "OPENROUTER_API_KEY": UPSTREAM_KEY,
        "OPENROUTER_BASE_URL": f"{simulator.url}/api/v1",
        "ADMIN_API_KEY": ADMIN_KEY,
        "GATEWAY_API_KEYS": f"tests:{CONNECTION_KEY}",
        "DATABASE_URL": postgres.url(postgres.create_database()),
    }
    started = []

    def start():
        started.append(Gateway.start(tmp_path, settings))
        return started[-1]

    yield start
    for gateway in started:
        gateway.process.end()


def ask(gateway, text):
    headers = plain_headers(ZOE, CONNECTION_KEY, chat_id="c")
    url = f"{gateway.url}/v1/chat/completions"
    assert httpx.post(url, headers=headers, json=user_turn(text), timeout=DEADLINE).status_code == 200


def used(gateway):
    return {entry["meter"]: Decimal(entry["used"]) for entry in gateway.quota(ZOE.email)}


def test_what_was_used_is_what_the_records_say_before_and_after_a_restart(start, simulator):
    first = start()
    first.set_policy(limits=LIMITS)
    for text in ("One", "Two", "Three"):
        ask(first, text)
    counted = used(first)
    first.process.stop()

    second = start()

    records = second.usage(user=ZOE.email)
    bills = {bill["id"]: Decimal(str(bill["total"])) for bill in simulator.bills()}
    assert {record["generation_id"]: Decimal(record["cost"]) for record in records} == bills
    assert counted == used(second) == {"usd": sum(bills.values()), "requests": 3}
    ask(second, "Four")
    assert used(second)["requests"] == 4
    assert not [path for path in second.data_dir.iterdir() if path.suffix == ".db"]
