"""The audit log: every change by an administrator is in it, exactly once, with what it was and what it is."""

import asyncio
from dataclasses import replace

import pytest
from databases import DEADLINE
from rows import BY, NOON, person, record
from sqlalchemy.exc import StatementError

from faregate.policy.document import document_of
from faregate.policy.model import DEFAULT_POLICY_ID, GroupPolicy, Limit, Meter, Policy, Window
from faregate.store import engine
from faregate.store.errors import PolicyInUse, UnknownPolicy
from faregate.store.store import AuditRow, Store

CALM = Policy("calm", "Calm ✓", (Limit(Meter.USD, Window.DAY, 9_007_199_254_740_991),))
CALMER = replace(CALM, limits=())


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url)
    yield store
    await store.close()


async def said(store, **about):
    """The log, oldest first, without what is the same in all of it."""
    return [
        (row.action, row.kind, row.key, row.before, row.after)
        for row in reversed(await store.audit(limit=1000, **about))
    ]


async def test_a_change_is_logged_with_who_when_and_what_it_was(store):
    assert await store.audit() == []
    await store.save_policy(CALM, actor="admin key from 10.1.2.3", at=NOON + 0.25)
    await store.save_policy(CALMER, actor="admin key from ::1", at=NOON + 60)
    assert await store.audit() == [
        AuditRow(
            2, NOON + 60, "admin key from ::1", "replace", "policy", "calm", document_of(CALM), document_of(CALMER)
        ),
        AuditRow(1, NOON + 0.25, "admin key from 10.1.2.3", "create", "policy", "calm", None, document_of(CALM)),
    ]
    assert document_of(CALM)["limits"][0]["amount"] == "9007199.254740991"


async def test_everything_that_an_administrator_can_change_is_logged(store):
    zoe = person().id
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("physics, applied", "calm", 7), **BY)
    await store.save_group_policy(GroupPolicy("physics, applied", DEFAULT_POLICY_ID), **BY)
    await store.assign(person(), policy_id="calm", **BY)
    await store.assign(person(), is_active=False, policy_id=None, **BY)
    await store.delete_group_policy("physics, applied", **BY)
    await store.delete_policy("calm", **BY)
    assert await said(store) == [
        ("create", "policy", "calm", None, document_of(CALM)),
        ("assign", "group", "physics, applied", None, {"policy_id": "calm", "priority": 7}),
        (
            *("assign", "group", "physics, applied"),
            *({"policy_id": "calm", "priority": 7}, {"policy_id": DEFAULT_POLICY_ID, "priority": 0}),
        ),
        (
            *("assign", "user", zoe),
            *({"is_active": True, "policy_id": None}, {"is_active": True, "policy_id": "calm"}),
        ),
        (
            *("assign", "user", zoe),
            *({"is_active": True, "policy_id": "calm"}, {"is_active": False, "policy_id": None}),
        ),
        ("delete", "group", "physics, applied", {"policy_id": DEFAULT_POLICY_ID, "priority": 0}, None),
        ("delete", "policy", "calm", document_of(CALM), None),
    ]


async def test_what_changes_nothing_is_neither_logged_nor_told(store):
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    await store.assign(person(), is_active=False, policy_id="calm", **BY)
    before, seen = await store.audit(), await store.newest_change()
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    await store.assign(person(), is_active=False, policy_id="calm", **BY)
    await store.assign(person(), **BY)
    await store.delete_policy("nothing", **BY)
    await store.delete_group_policy("nobody", **BY)
    assert (await store.audit(), await store.newest_change()) == (before, seen)


async def test_what_people_do_is_not_logged(store):
    await store.write([person()], [record()])
    await store.write([person(seen=NOON + 60, role="admin", groups=())], [])
    assert await store.audit() == []


async def test_what_was_refused_is_not_logged(store):
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    before = await store.audit()
    with pytest.raises(PolicyInUse):
        await store.delete_policy("calm", **BY)
    with pytest.raises(UnknownPolicy):
        await store.assign(person(), is_active=False, policy_id="wild", **BY)
    with pytest.raises(UnknownPolicy):
        await store.save_group_policy(GroupPolicy("staff", "wild"), **BY)
    assert await store.audit() == before


async def test_a_change_that_cannot_be_logged_is_not_made(store):
    with pytest.raises(StatementError, match="NaN"):
        await store.save_policy(CALM, actor="admin key", at=float("nan"))
    assert (await store.load()).policies == ()


async def test_the_log_of_one_thing_and_pages_of_it(store):
    for turn in range(5):
        await store.save_policy(replace(CALM, name=f"{turn}"), **BY)
        # What has the same key is another thing, if it is of another kind.
        await store.save_group_policy(GroupPolicy("calm", "calm", turn), **BY)
        await store.save_group_policy(GroupPolicy("staff", "calm", turn), **BY)

    async def numbers(**about):
        return [row.number for row in await store.audit(**about)]

    assert await numbers(kind="policy") == [13, 10, 7, 4, 1]
    assert await numbers(kind="group", key="calm") == [14, 11, 8, 5, 2]
    assert await numbers(key="calm", limit=4) == [14, 13, 11, 10]
    assert await numbers(key="calm", limit=4, before=10) == [8, 7, 5, 4]
    assert await numbers(before=1) == []
    assert await numbers(kind="user") == []


async def test_a_policy_that_somebody_made_unreadable_by_hand_is_mended_and_logged_as_it_was(store, database):
    await store.save_policy(CALM, **BY)
    for document, logged in (("{", {"document": "{"}), ('{"amount": 0.10}', {"amount": "0.10"})):
        database.sql(f"UPDATE policies SET document = '{document}'")
        await store.save_policy(CALM, **BY)
        assert (await store.load()).policies == (CALM,)
        assert (await said(store))[-1] == ("replace", "policy", "calm", logged, document_of(CALM))


async def test_what_many_administrators_change_at_once_is_one_history_without_a_gap(database):
    nodes = [await Store.open(database.url) for _ in range(3)]

    async def change(node, name):
        for turn in range(5):
            await node.save_policy(replace(CALM, name=f"{name} {turn}"), **BY)
            await node.save_group_policy(GroupPolicy("staff", "calm", int(name) * 10 + turn), **BY)
            await node.assign(person(), is_active=turn % 2 == 0, **BY)
            await node.write([person(seen=NOON + turn, name=name), person(f"u-{name}")], [])
            await node.delete_group_policy("staff", **BY)

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(change(node, f"{n}{m}") for n, node in enumerate(nodes) for m in range(2)))
    log = await nodes[0].audit(limit=1000)
    assert [row.number for row in log] == sorted((row.number for row in log), reverse=True)
    for kind in ("policy", "group", "user"):
        history = [(before, after) for _, of, _, before, after in await said(nodes[0]) if of == kind]
        assert len(history) > 1
        assert [before for before, _ in history[1:]] == [after for _, after in history[:-1]]
    for node in nodes:
        await node.close()
