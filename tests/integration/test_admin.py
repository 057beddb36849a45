"""The admin API as an administrator meets it: a real server on a real socket, a real database file."""

import asyncio
import json
import socket
from decimal import Decimal
from zoneinfo import ZoneInfo

import httpx
import pytest
import uvicorn

from faregate.admin.app import create_admin
from faregate.admin.services import AdminServices
from faregate.directory import Directory, Person
from faregate.ledger.memory import MemoryLedger
from faregate.policy.windows import Calendar
from faregate.records import Facts, Status, UsageRecord
from faregate.store.store import Store

KEY = "adminkey"
NOON = 1_800_014_400.0
STUDENT = {
    "id": "student",
    "name": "Student",
    "limits": [{"meter": "usd", "window": "day", "amount": "2.50"}],
    "models": {"allow": ["openai/*"], "deny": []},
}


class NothingSpent:
    """The baseline of a ledger without a past."""

    def used(self, counter):
        return 0

    def recent(self, counter, since):
        return []


class Node:
    """One gateway process as far as an administrator is concerned."""

    def __init__(self, store, snapshot):
        self.store = store
        self.people = []
        self.records = []
        self.directory = Directory(
            snapshot.users, snapshot.policies, snapshot.group_policies, changed=self.people.append
        )
        services = AdminServices(
            store=store,
            directory=self.directory,
            ledger=MemoryLedger(NothingSpent()),
            calendar=Calendar(ZoneInfo("UTC")),
            admin_key=KEY,
            flush=self.flush,
            clock=lambda: NOON,
        )
        config = uvicorn.Config(create_admin(services), log_config=None, lifespan="off")
        self.server = uvicorn.Server(config)

    @classmethod
    async def start(cls, path):
        store = await Store.open(f"sqlite:///{path}")
        node = cls(store, await store.load())
        node.socket = socket.create_server(("127.0.0.1", 0))
        node.task = asyncio.create_task(node.server.serve(sockets=[node.socket]))
        url = f"http://127.0.0.1:{node.socket.getsockname()[1]}"
        node.admin = httpx.AsyncClient(base_url=url, headers={"x-admin-key": KEY})
        return node

    async def stop(self):
        await self.admin.aclose()
        self.server.should_exit = True
        await self.task
        self.socket.close()
        await self.store.close()

    async def flush(self):
        await self.store.write(self.people, self.records)
        self.people.clear()
        self.records.clear()

    def request(self, request_id, *, at=NOON, **more):
        user = self.directory.recognise(Person("owui", "zoe", "zoe@example.com", "Zoë 山田", "user", ("staff",)), at)
        policy = self.directory.resolve(user).policy
        facts = Facts(request_id, at, "owui", user.id, user.email, user.groups, policy.id, "openai/gpt-4o")
        self.records.append(UsageRecord(facts, more.pop("status", Status.COMPLETED), **more))
        return user


@pytest.fixture
async def start(tmp_path):
    nodes = []

    async def start():
        nodes.append(await Node.start(tmp_path / "faregate.db"))
        return nodes[-1]

    yield start
    for node in nodes:
        await node.stop()


async def test_what_an_administrator_decides_survives_a_restart(start):
    node = await start()
    user = node.request("r-1", cost=Decimal("0.000000000001"), cost_nano=1)
    decisions = [
        await node.admin.post("/admin/policies", json=STUDENT),
        await node.admin.post("/admin/group-policies", json={"group_name": "staff", "policy_id": "student"}),
        await node.admin.patch(f"/admin/users/{user.id}", json={"is_active": False}),
    ]
    assert [decision.status_code for decision in decisions] == [200, 200, 200]
    routes = ("users", "policies", "group-policies", "audit", "usage", f"users/{user.id}/quota")
    before = {route: (await node.admin.get(f"/admin/{route}")).json() for route in routes}

    later = await start()
    after = {route: (await later.admin.get(f"/admin/{route}")).json() for route in routes}
    assert after == before
    assert [row["cost"] for row in after["usage"]] == ["0.000000000001"]
    assert (after["users"][0]["is_active"], after["users"][0]["effective_policy_id"]) == (False, "student")
    assert after[f"users/{user.id}/quota"][0]["limit"] == "2.5"


async def test_a_request_shows_as_soon_as_it_was_accepted_and_changes_when_it_is_settled(start):
    node = await start()
    node.request("r-1", status=Status.PENDING, cost=None)
    [pending] = (await node.admin.get("/admin/usage")).json()
    assert (pending["status"], pending["cost"]) == ("pending", None)
    node.request("r-1", cost=Decimal("0.25"), cost_nano=250_000_000)
    [final] = (await node.admin.get("/admin/usage")).json()
    assert (final["status"], final["cost"]) == ("completed", "0.25")


async def test_pages_do_not_move_while_new_records_arrive(start):
    node = await start()
    for n in range(30):
        node.request(f"r-{n:02}", at=NOON + n // 3)
    seen, before = [], {}
    while page := (await node.admin.get("/admin/usage", params={"limit": 7} | before)).json():
        seen += [row["request_id"] for row in page]
        before = {"before": seen[-1]}
        node.request(f"new-{len(seen)}", at=NOON + 100)
    assert seen == [f"r-{n:02}" for n in reversed(range(30))]


async def test_a_body_that_never_ends_is_cut_off(start):
    node = await start()
    sent = 0

    async def endless():
        nonlocal sent
        yield b'{"id": "'
        while True:
            sent += 65_536
            yield b"x" * 65_536

    try:
        response = await node.admin.post("/admin/policies", content=endless())
        assert response.status_code == 413
    except httpx.TransportError:
        assert sent > 1_000_000


async def test_no_number_loses_a_digit_between_two_programs(start):
    node = await start()
    amount = "9007199.254740991"
    sent = json.dumps(STUDENT).replace('"2.50"', amount)
    await node.admin.post("/admin/policies", content=sent)
    response = await node.admin.get("/admin/policies")
    assert f'"amount":"{amount}"' in response.text


async def test_the_wrong_key_is_401_on_a_socket_too(start):
    node = await start()
    assert (await node.admin.get("/admin/users")).status_code == 200
    assert (await node.admin.get("/admin/users", headers={"x-admin-key": "wrong"})).status_code == 401
    port = node.socket.getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    twice = f"GET /admin/users HTTP/1.1\r\nHost: x\r\nx-admin-key: {KEY}\r\nX-Admin-Key: {KEY}\r\n"
    writer.write((twice + "Connection: close\r\n\r\n").encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 401 ")
