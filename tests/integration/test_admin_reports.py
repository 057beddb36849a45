"""What an administrator reads of the sums, and of the jobs that make them: the admin API over a real database."""

import asyncio
from decimal import Decimal
from zoneinfo import ZoneInfo

import httpx
import pytest
from databases import DEADLINE
from rows import NOON, person
from rows import record as known_record

from faregate.accounting.upkeep import Upkeep
from faregate.admin.app import create_admin
from faregate.admin.services import AdminServices
from faregate.directory import Directory
from faregate.ledger.memory import MemoryLedger
from faregate.policy.windows import Calendar
from faregate.records import Status
from faregate.store.jobs import JobRun
from faregate.store.store import Store

KEY = "admin-of-the-tests"
HOUR, DAY = 3600, 86_400
ZOE = person("zoe")


class NothingSpent:
    """The baseline of a ledger without a past."""

    def used(self, counter):
        return 0

    def recent(self, counter, since):
        return []


class Node:
    """One gateway process as far as an administrator is concerned."""

    def __init__(self, store, **more):
        self.now = NOON
        self.store = store
        self.waiting = []
        self.directory = Directory((ZOE,), (), (), changed=lambda user: None)
        services = AdminServices(
            store=store,
            directory=self.directory,
            ledger=MemoryLedger(NothingSpent()),
            calendar=Calendar(ZoneInfo("Europe/Amsterdam")),
            admin_key=KEY,
            flush=self.flush,
            clock=lambda: self.now,
            **more,
        )
        transport = httpx.ASGITransport(create_admin(services), raise_app_exceptions=False)
        self.admin = httpx.AsyncClient(transport=transport, base_url="http://faregate", headers={"x-admin-key": KEY})

    async def flush(self):
        rows, self.waiting = self.waiting, []
        await self.store.write([], rows)

    async def read(self, path, **params):
        answer = await self.admin.get(f"/admin/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def refused(self, **params):
        answer = await self.admin.get("/admin/reports", params=params)
        assert answer.status_code == 422
        return answer.json()["error"]["param"], answer.json()["error"]["message"]


@pytest.fixture
async def store(database):
    store = await Store.open(database.url, "node-1")
    yield store
    await store.close()


@pytest.fixture
async def node(store):
    node = Node(store)
    async with node.admin:
        yield node


def record(request_id, *, cost="0", **more):
    return known_record(request_id, cost=Decimal(cost), **more)


async def added_up(node, *rows):
    await node.store.write([], rows)
    while await node.store.refresh_rollups(10):
        pass


async def test_a_report_says_who_spent_what_the_dearest_first(node):
    await added_up(
        node,
        record("r-1", user_id=ZOE.id, cost="0.000000000001", total_tokens=10, prompt_tokens=7, completion_tokens=3),
        record("r-2", user_id=ZOE.id, status=Status.REFUSED, requests=0),
        record("r-3", user_id="gone", status=Status.FAILED, cost="2.50"),
    )
    report = await node.read("reports", by="user")
    rows = report.pop("rows")
    assert report == {
        "by": "user",
        "every": None,
        "since": "2026-12-16T00:00:00Z",
        "until": "2027-01-15T12:00:00Z",
        "stale_hours": 0,
    }
    assert rows == []

    report = await node.read("reports", by="user", until="2027-01-15T12:00:01Z")
    assert report["until"] == "2027-01-15T13:00:00Z"
    gone, zoe = report["rows"]
    assert gone["user"] == {"id": "gone", "email": None, "name": None}
    assert (gone["requests"], gone["failed"], gone["cost"]) == (1, 1, "2.5")
    assert zoe == {
        "start": None,
        "key": ZOE.id,
        "user": {"id": ZOE.id, "email": "zoe@example.com", "name": "Zoë 山田"},
        "requests": 1,
        "refused": 1,
        "failed": 0,
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "cost": "0.000000000001",
    }
    assert (await node.read("reports", by="user", until=NOON + 1, limit=1))["rows"] == [gone]


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("all", {""}),
        ("model", {"openai/gpt-4o", "openai/gpt-5"}),
        ("group", {"staff", "night"}),
        ("task", {"", "title_generation"}),
        ("connection", {"owui"}),
    ],
)
async def test_a_report_is_by_what_was_asked_for(node, by, keys):
    await added_up(
        node,
        record("r-1", cost="1", groups=("night", "staff")),
        record("r-2", cost="2", model="openai/gpt-5", task="title_generation"),
    )
    rows = (await node.read("reports", by=by, since=NOON, until=NOON + 1))["rows"]
    assert {row["key"] for row in rows} == keys
    assert {str(row["user"]) for row in rows} == {"None"}
    assert sum(float(row["cost"]) for row in rows) == (4 if by == "group" else 3)


async def test_a_series_has_a_start_in_each_row(node):
    await added_up(node, record("r-1", cost="1"), record("r-2", at=NOON + HOUR, cost="2"), record("r-3", at=NOON + DAY))
    asked = {"since": NOON, "until": NOON + 2 * DAY}
    hours = await node.read("reports", every="hour", **asked)
    assert [(row["start"], row["cost"]) for row in hours["rows"]] == [
        ("2027-01-15T12:00:00Z", "1"),
        ("2027-01-15T13:00:00Z", "2"),
        ("2027-01-16T12:00:00Z", "0"),
    ]
    days = await node.read("reports", every="day", **asked)
    assert [(row["start"], row["requests"]) for row in days["rows"]] == [
        ("2027-01-15T00:00:00Z", 2),
        ("2027-01-16T00:00:00Z", 1),
    ]


async def test_a_report_says_that_the_newest_may_be_missing(node):
    node.waiting.append(record("r-1", cost="1"))
    report = await node.read("reports", since=NOON, until=NOON + HOUR)
    assert (report["stale_hours"], report["rows"]) == (1, [])
    await added_up(node)
    report = await node.read("reports", since=NOON, until=NOON + HOUR)
    assert (report["stale_hours"], [row["cost"] for row in report["rows"]]) == (0, ["1"])


async def test_what_makes_no_report_is_refused_with_a_sentence(node):
    assert await node.refused(since=NOON, until=NOON) == (
        "until",
        "until should be later than since: a report is about the time between them.",
    )
    param, sentence = await node.refused(by="user", every="hour", since=0, until=NOON)
    assert (param, sentence[:50]) == ("every", "This series could have more than 50,000 rows: ask ")
    assert (await node.refused(by="user", every="day", limit=501))[0] == "limit"
    assert (await node.refused(by="colour"))[0] == "by"
    assert (await node.refused(every="week"))[0] == "every"
    assert (await node.refused(limit=0))[0] == "limit"
    assert (await node.refused(sort="cost"))[0] == "sort"


async def test_jobs_say_when_they_last_ran_and_where(store):
    node = Node(store, jobs={"partitions": 3600.0, "rollups": 10.0})
    await store.note_job(JobRun("rollups", NOON - 30.0, 12, "node-7", "2 hours added up"))
    await store.note_job(JobRun("retention", NOON - DAY, 12, "node-7", "dropped: usage_records_2026_01"))
    async with node.admin:
        assert await node.read("jobs") == [
            {
                "name": "partitions",
                "every_seconds": 3600,
                "ran_at": None,
                "duration_ms": None,
                "node": None,
                "said": None,
                "is_overdue": True,
            },
            {
                # Not planned any more.
                "name": "retention",
                "every_seconds": None,
                "ran_at": "2027-01-14T12:00:00Z",
                "duration_ms": 12,
                "node": "node-7",
                "said": "dropped: usage_records_2026_01",
                "is_overdue": False,
            },
            {
                "name": "rollups",
                "every_seconds": 10,
                "ran_at": "2027-01-15T11:59:30Z",
                "duration_ms": 12,
                "node": "node-7",
                "said": "2 hours added up",
                "is_overdue": False,
            },
        ]
        node.now = NOON + 51.0
        overdue = {job["name"]: job["is_overdue"] for job in await node.read("jobs")}
        assert overdue == {"partitions": True, "retention": False, "rollups": True}


async def test_the_jobs_of_a_running_node_are_done_and_shown(store):
    upkeep = Upkeep(store, "node-1", kept_since=lambda now: now - 400 * DAY)
    node = Node(store, jobs=upkeep.plan)
    await store.write([], [record("r-1", cost="1")])
    upkeep.start()
    async with node.admin:
        # The database does not tell that a job was noted there.
        async with asyncio.timeout(DEADLINE):
            while len(await store.jobs()) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await upkeep.stop()
        assert {job["name"]: job["said"] for job in await node.read("jobs")} == {
            "partitions": "the months to come are there",
            "retention": "no month was old enough to be dropped",
            "rollups": "1 hour added up",
        }
        report = await node.read("reports", since=NOON, until=NOON + HOUR)
        assert (report["stale_hours"], report["rows"][0]["cost"]) == (0, "1")
    assert upkeep.last_runs.keys() == {"partitions", "rollups", "retention"}
