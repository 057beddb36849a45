"""The admin API over its real parts: a store in a file, a directory, a ledger. Only the clock is ours."""

from zoneinfo import ZoneInfo

import httpx
import pytest

from faregate.admin.app import create_admin
from faregate.admin.services import AdminServices
from faregate.directory import Directory, Person
from faregate.ledger.memory import MemoryLedger
from faregate.policy.windows import Calendar
from faregate.records import Facts, Status, UsageRecord
from faregate.store.store import Store

KEY = "adminkey-ünïcode"
NOON = 1_800_014_400.0


class NothingSpent:
    """The baseline of a ledger without a past."""

    def used(self, counter):
        return 0

    def recent(self, counter, since):
        return []


class Gateway:
    """What the data plane does to the parts that the admin API shows."""

    def __init__(self, store):
        self.now = NOON
        self.store = store
        self.waiting = []
        self.directory = Directory((), (), (), changed=self.waiting.append)
        self.ledger = MemoryLedger(NothingSpent())
        self.calendar = Calendar(ZoneInfo("Europe/Amsterdam"))

    def services(self, **other):
        parts = {
            "store": self.store,
            "directory": self.directory,
            "ledger": self.ledger,
            "calendar": self.calendar,
            "admin_key": KEY,
            "flush": self.flush,
            "clock": lambda: self.now,
        }
        return AdminServices(**(parts | other))

    def meet(self, subject="u-1", **told):
        told = {"email": f"{subject}@example.com", "name": "Zoë 山田", "role": "user", "groups": ("staff",)} | told
        return self.directory.recognise(Person("owui", subject, **told), self.now)

    def accept(self, user, request_id, *, at=NOON, model="openai/gpt-4o", status=Status.COMPLETED, **more):
        facts = Facts(
            request_id,
            at,
            user.connection,
            user.id,
            user.email,
            user.groups,
            "default",
            model,
            rules=("the default policy",),
        )
        self.waiting.append(UsageRecord(facts, status, **more))

    async def flush(self):
        people = [row for row in self.waiting if not isinstance(row, UsageRecord)]
        records = [row for row in self.waiting if isinstance(row, UsageRecord)]
        self.waiting.clear()
        await self.store.write(people, records)


@pytest.fixture
async def gateway(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path / 'faregate.db'}")
    yield Gateway(store)
    await store.close()


def client(services, **options):
    """Somebody who speaks to the admin API over `services`."""
    transport = httpx.ASGITransport(create_admin(services), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://faregate", **options)


@pytest.fixture
async def stranger(gateway):
    """A client without the key."""
    async with client(gateway.services()) as stranger:
        yield stranger


@pytest.fixture
def as_admin():
    """A client with the key, for any services."""
    return lambda services: client(services, headers={"x-admin-key": KEY.encode()})


@pytest.fixture
async def admin(gateway, as_admin):
    """A client with the key."""
    async with as_admin(gateway.services()) as admin:
        yield admin


def refusal(response, status):
    """The error of `response`, which has the one shape that errors have."""
    assert response.status_code == status, response.text
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "code", "param"}
    assert body["error"]["message"].endswith(".")
    return body["error"]


@pytest.fixture(name="refusal")
def _refusal():
    return refusal
