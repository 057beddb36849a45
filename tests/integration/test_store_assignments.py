"""Several nodes assign policies and delete them at once: nobody is ever left with a policy that is gone."""

import asyncio
import contextlib
from zoneinfo import ZoneInfo

import httpx
import pytest
from databases import DEADLINE, until_waiting
from rows import BY, NOON, person

from faregate.admin.app import create_admin
from faregate.admin.services import AdminServices
from faregate.directory import Directory
from faregate.ledger.memory import MemoryLedger
from faregate.policy.model import DEFAULT_POLICY_ID, GroupPolicy, Policy
from faregate.policy.windows import Calendar
from faregate.store import engine, policies, users
from faregate.store.errors import PolicyInUse, UnknownPolicy
from faregate.store.store import Store

CALM = Policy(id="calm", name="Calm")
STAFF = GroupPolicy("staff", "calm", 7)
KEY = "admin-of-the-tests"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def two(database):
    """Two nodes on one database, which knows one policy and one person."""
    stores = [await Store.open(database.url, name) for name in ("one", "two")]
    await stores[0].save_policy(CALM, **BY)
    await stores[0].write([person()], [])
    yield stores
    for store in stores:
        await store.close()


def to_person(store):
    return store.assign(person(), is_active=False, policy_id="calm", **BY)


def to_group(store):
    return store.save_group_policy(STAFF, **BY)


def to_person_in(connection):
    return users.assign(connection, person(), {"policy_id": "calm"})


def to_group_in(connection):
    return policies.save_group(connection, STAFF)


async def under_way(database, task):
    """Return once `task` waits for a lock, or has ended. Who waits on SQLite does so unseen."""
    if database.url.startswith("postgresql"):
        waiting = asyncio.create_task(until_waiting(database, 1))
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()


async def assigned(store):
    """Every policy id that somebody has."""
    snapshot = await store.load()
    of_people = {user.policy_id for user in snapshot.users} - {None}
    return of_people | {rule.policy_id for rule in snapshot.group_policies}


@pytest.mark.parametrize("assign", [to_person, to_group])
async def test_a_policy_that_is_not_there_is_not_assigned_and_nothing_changes(two, assign):
    one, other = two
    await other.delete_policy("calm", **BY)
    before, seen = await one.load(), await one.newest_change()
    with pytest.raises(UnknownPolicy, match="there is no policy calm") as refused:
        await assign(one)
    assert refused.value.policy_id == "calm"
    assert (await one.load(), await one.newest_change()) == (before, seen)


async def test_somebody_new_is_not_registered_by_an_assignment_that_is_refused(two):
    with pytest.raises(UnknownPolicy):
        await two[0].assign(person("u-2"), policy_id="wild", **BY)
    assert (await two[0].load()).users == (person(),)


async def test_the_default_policy_is_assigned_though_it_was_never_saved(two):
    one, other = two
    await one.assign(person(), policy_id=DEFAULT_POLICY_ID, **BY)
    await one.save_group_policy(GroupPolicy("staff", DEFAULT_POLICY_ID), **BY)
    assert await assigned(other) == {DEFAULT_POLICY_ID}


@pytest.mark.parametrize("assign", [to_person, to_group])
async def test_a_policy_that_another_node_is_deleting_is_not_assigned(two, database, assign):
    one, other = two
    async with asyncio.timeout(DEADLINE):
        async with one._write() as connection:
            await policies.delete(connection, "calm")
            assigning = asyncio.create_task(assign(other))
            await under_way(database, assigning)
        with pytest.raises(UnknownPolicy):
            await assigning
    assert await assigned(one) == set()


@pytest.mark.parametrize("assign_in", [to_person_in, to_group_in])
async def test_a_policy_that_another_node_is_assigning_is_not_deleted(two, database, assign_in):
    one, other = two
    async with asyncio.timeout(DEADLINE):
        async with one._write() as connection:
            await assign_in(connection)
            deleting = asyncio.create_task(other.delete_policy("calm", **BY))
            await under_way(database, deleting)
        with pytest.raises(PolicyInUse):
            await deleting
    assert (await one.load()).policies == (CALM,)


@pytest.mark.parametrize("assign", [to_person, to_group])
async def test_a_policy_is_assigned_when_another_node_gave_up_deleting_it(two, database, assign):
    one, other = two
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ZeroDivisionError):
            async with one._write() as connection:
                await policies.delete(connection, "calm")
                assigning = asyncio.create_task(assign(other))
                await under_way(database, assigning)
                raise ZeroDivisionError
        await assigning
    assert await assigned(one) == {"calm"}


@pytest.mark.parametrize("assign", [to_person, to_group])
async def test_a_policy_that_another_node_is_replacing_is_assigned(two, database, assign):
    one, other = two
    async with asyncio.timeout(DEADLINE):
        async with one._write() as connection:
            await policies.save(connection, Policy("calm", "Calmer"))
            assigning = asyncio.create_task(assign(other))
            await under_way(database, assigning)
        await assigning
    assert await assigned(one) == {"calm"}


@pytest.mark.parametrize("assign", [to_person, to_group])
async def test_of_an_assignment_and_a_deletion_at_once_one_is_refused(two, assign):
    one, other = two
    for turn in range(10):
        await one.save_policy(CALM, **BY)
        both = [assign(one), other.delete_policy("calm", **BY)]
        first, second = await asyncio.gather(*both[:: (-1) ** turn], return_exceptions=True)
        of_assigning, of_deleting = (first, second)[:: (-1) ** turn]
        assert (type(of_assigning), type(of_deleting)) in {
            (type(None), PolicyInUse),
            (UnknownPolicy, type(None)),
        }
        assert await assigned(one) == ({"calm"} if of_assigning is None else set())
        await one.assign(person(), policy_id=None, **BY)
        await one.delete_group_policy("staff", **BY)


async def test_whatever_nodes_do_at_once_nobody_has_a_policy_that_is_gone_and_none_locks_another_out(two):
    async def change(store, turn):
        mine, theirs = ("calm", "wild")[:: (-1) ** turn]
        somebody, group = person(f"u-{turn % 3}"), f"g-{turn % 2}"
        for action in (
            lambda: store.save_policy(Policy(mine, f"{turn}"), **BY),
            lambda: store.assign(somebody, policy_id=mine, **BY),
            lambda: store.save_group_policy(GroupPolicy(group, theirs), **BY),
            lambda: store.write([person(f"u-{n}", seen=NOON + turn, name=f"{turn}") for n in range(3)], []),
            lambda: store.delete_policy(mine, **BY),
            lambda: store.assign(somebody, policy_id=None, **BY),
            lambda: store.delete_group_policy(group, **BY),
            lambda: store.delete_policy(theirs, **BY),
        ):
            with contextlib.suppress(PolicyInUse, UnknownPolicy):
                await action()
            assert await gone(store) == 0

    async with asyncio.timeout(DEADLINE):
        for turn in range(0, 20, 4):
            await asyncio.gather(*(change(store, turn + n) for n, store in enumerate((*two, *two))))


async def gone(store):
    """How many have a policy that is not there. Asked at once: of two questions each would see another moment."""
    async with store._read() as connection:
        counted = await connection.exec_driver_sql(
            "SELECT count(*) FROM assignments WHERE policy_id NOT IN (SELECT id FROM policies)"
        )
        return counted.scalar()


class NothingSpent:
    """The baseline of a ledger without a past."""

    def used(self, counter):
        return 0

    def recent(self, counter, since):
        return []


@pytest.fixture
async def admin(two):
    """An administrator of the first node, which does not know yet what others did since it started."""
    one, _ = two
    snapshot = await one.load()
    told = []

    async def nothing_waits():
        pass

    async def changed():
        told.append(True)

    services = AdminServices(
        store=one,
        directory=Directory(snapshot.users, snapshot.policies, snapshot.group_policies, changed=lambda user: None),
        ledger=MemoryLedger(NothingSpent()),
        calendar=Calendar(ZoneInfo("UTC")),
        admin_key=KEY,
        flush=nothing_waits,
        clock=lambda: NOON,
        changed=changed,
    )
    transport = httpx.ASGITransport(create_admin(services), raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://faregate", headers={"x-admin-key": KEY}
    ) as admin:
        admin.told = told
        yield admin


async def test_who_assigns_a_policy_that_another_node_has_just_deleted_is_told_so_and_nothing_changes(two, admin):
    path = f"/admin/users/{person().id}"

    async def answers(policy_id):
        requests = (
            await admin.patch(path, json={"is_active": False, "policy_id": policy_id}),
            await admin.post("/admin/group-policies", json={"group_name": "staff", "policy_id": policy_id}),
        )
        return [(answer.status_code, answer.json()) for answer in requests]

    never_there = await answers("wild")
    await two[1].delete_policy("calm", **BY)
    assert await answers("calm") == [
        (status, {"error": body["error"] | {"message": body["error"]["message"].replace("wild", "calm")}})
        for status, body in never_there
    ]
    assert [status for status, _ in never_there] == [422, 422]
    assert never_there[0][1]["error"]["message"] == "There is no policy 'wild': create it first."

    [user] = (await admin.get("/admin/users")).json()
    assert (user["is_active"], user["policy_id"]) == (True, None)
    assert (await admin.get("/admin/group-policies")).json() == []
    assert admin.told == []
