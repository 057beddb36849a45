"""The feed of changes: every change of rules and people is in it, in order, and no reader misses one."""

import asyncio
from dataclasses import replace
from random import Random

import pytest
from databases import DEADLINE, postgres_database, until_waiting
from rows import BY, NOON, person, record

from faregate.directory import user_id_of
from faregate.policy.model import GroupPolicy, Policy
from faregate.store import changes, engine, sightings, users
from faregate.store.errors import PolicyInUse
from faregate.store.store import Store

CALM = Policy(id="calm", name="Calm")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def store(database):
    store = await Store.open(database.url)
    yield store
    await store.close()


async def since(store, number=0):
    return [(change.kind, change.key) for change in await store.changes(number)]


async def test_a_new_feed_is_empty(store):
    assert (await store.changes(0), await store.newest_change(), await store.oldest_change()) == ([], 0, 0)


async def test_every_change_of_a_rule_is_told_in_its_order(store):
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("physics, applied", "calm"), **BY)
    await store.save_policy(replace(CALM, name="Calmer"), **BY)
    await store.delete_group_policy("physics, applied", **BY)
    await store.delete_policy("calm", **BY)
    assert await since(store) == [
        ("policy", "calm"),
        ("group", "physics, applied"),
        ("policy", "calm"),
        ("group", "physics, applied"),
        ("policy", "calm"),
    ]
    numbers = [change.number for change in await store.changes(0)]
    assert numbers == sorted(set(numbers))
    assert (await store.oldest_change(), await store.newest_change()) == (numbers[0], numbers[-1])
    assert [change.number for change in await store.changes(numbers[1], limit=2)] == numbers[2:4]


async def test_a_change_that_was_refused_is_not_told(store):
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    seen = await store.newest_change()
    with pytest.raises(PolicyInUse):
        await store.delete_policy("calm", **BY)
    assert await since(store, seen) == []


async def test_a_person_is_told_of_when_new_and_when_different_and_not_when_only_seen(store):
    await store.write([person("u-1"), person("u-2")], [])
    assert sorted(await since(store)) == sorted([("user", person("u-1").id), ("user", person("u-2").id)])
    for turn, told in enumerate([{"email": None}, {"name": "Zoë"}, {"role": "admin"}, {"groups": ()}]):
        seen = await store.newest_change()
        changed = person(seen=NOON + 60 * turn, **told)
        await store.write([changed, person("u-2", seen=NOON + 60 * turn)], [])
        assert await since(store, seen) == [("user", changed.id)]
        seen = await store.newest_change()
        await store.write([replace(changed, last_seen_at=NOON + 60 * turn + 1)], [record()])
        assert await since(store, seen) == []
        await store.write([person(seen=NOON + 60 * turn + 2)], [])


async def test_who_is_new_or_different_is_told_of_among_those_who_were_only_seen(store):
    await store.write([person(name) for name in ("u-1", "u-2", "u-3")], [])
    number = await store.newest_change()
    crowd = [
        person("u-1", seen=NOON + 60),
        person("u-2", seen=NOON + 60, name="Zoë"),
        person("u-3", seen=NOON - 60),
        person("u-4", seen=NOON + 60),
    ]
    assert await store.write(crowd, [record()]) == []
    assert sorted(await since(store, number)) == sorted([("user", crowd[1].id), ("user", crowd[3].id)])
    seen = {user.subject: (user.last_seen_at, user.name) for user in (await store.load()).users}
    name = person().name
    assert seen == {
        "u-1": (NOON + 60, name),
        "u-2": (NOON + 60, "Zoë"),
        "u-3": (NOON, name),
        "u-4": (NOON + 60, name),
    }
    assert await store.settled([record().facts.request_id]) == {record().facts.request_id}


async def test_only_the_latest_of_several_states_of_a_person_counts(store):
    await store.write([person()], [])
    number = await store.newest_change()
    await store.write([person(seen=NOON + 1), person(seen=NOON + 2, name="Zoë")], [])
    [user] = (await store.load()).users
    assert (user.name, user.last_seen_at) == ("Zoë", NOON + 2)
    assert await since(store, number) == [("user", user.id)]


async def test_a_name_that_no_database_can_keep_is_told_of_once(store):
    odd = person("Z\0oë", name="\ud800", email="z\0@example.com", role="\0", groups=("\0",))
    await store.write([odd], [])
    seen = await store.newest_change()
    await store.write([replace(odd, last_seen_at=NOON + 60)], [])
    assert await since(store, seen) == []


async def test_a_person_is_told_of_by_the_id_of_the_first_sight(store):
    await store.write([person(id="first")], [])
    await store.write([person(id="second", name="New")], [])
    await store.assign(person(id="third"), is_active=False, **BY)
    assert await since(store) == [("user", "first")] * 3


async def test_a_decision_about_somebody_is_told_once(store):
    await store.save_policy(CALM, **BY)
    seen = await store.newest_change()
    await store.assign(person("u-1"), is_active=False, **BY)
    for _ in range(2):
        await store.assign(person("u-1"), policy_id="calm", **BY)
        await store.assign(person("u-1"), **BY)
    await store.assign(person("u-2"), **BY)
    assert await since(store, seen) == [("user", person(name).id) for name in ("u-1", "u-1", "u-2")]


async def test_a_node_that_follows_asks_for_those_who_changed_and_for_the_rules(store):
    crowd = [person(f"u-{n}") for n in range(900)]
    await store.write(crowd, [])
    await store.save_policy(CALM, **BY)
    await store.save_group_policy(GroupPolicy("staff", "calm"), **BY)
    wanted = [user.id for user in crowd[:850]]
    assert sorted(user.id for user in await store.people([*wanted, "nobody"])) == sorted(wanted)
    assert await store.people([crowd[3].id]) == [crowd[3]]
    assert await store.people([]) == []
    assert await store.rules() == ((CALM,), (GroupPolicy("staff", "calm"),))


async def test_old_changes_are_dropped_and_their_numbers_never_come_back(store, database, monkeypatch):
    monkeypatch.setattr(changes, "KEPT", 5)
    monkeypatch.setattr(changes, "PRUNED_EVERY", 10)
    for turn in range(19):
        await store.save_policy(replace(CALM, name=f"{turn}"), **BY)
    assert (await store.oldest_change(), await store.newest_change()) == (6, 19)
    await store.write([person(f"u-{n}") for n in range(4)], [])
    assert (await store.oldest_change(), await store.newest_change()) == (19, 23)
    database.sql("DELETE FROM changes")
    await store.save_policy(CALM, **BY)
    assert (await store.oldest_change(), await store.newest_change()) == (24, 24)


async def test_a_reader_that_follows_misses_nothing_while_many_write(database):
    writers = [await Store.open(database.url) for _ in range(3)]
    reader = await Store.open(database.url)
    followed = []
    done = asyncio.Event()

    async def follow():
        while True:
            last = done.is_set()
            followed.extend(await reader.changes(followed[-1].number if followed else 0, limit=7))
            if last and len(followed) >= 3 * 2 * 12 and not await reader.changes(followed[-1].number):
                return

    async def write(store, name):
        for turn in range(12):
            await store.save_policy(replace(CALM, id=f"{name}-{turn}"), **BY)

    async with asyncio.timeout(DEADLINE):
        following = asyncio.create_task(follow())
        await asyncio.gather(*(write(store, f"{n}{m}") for n, store in enumerate(writers) for m in range(2)))
        done.set()
        await following
    assert followed == await reader.changes(0)
    assert len({change.key for change in followed}) == 3 * 2 * 12
    for store in (*writers, reader):
        await store.close()


@pytest.fixture
def on_postgresql(postgres):
    return postgres_database(postgres)


async def test_a_number_is_not_seen_before_the_smaller_ones_of_transactions_under_way(on_postgresql):
    slow, quick = await Store.open(on_postgresql.url), await Store.open(on_postgresql.url)
    async with slow._write() as connection:
        await changes.append(connection, "policy", ["slow"])
        saving = asyncio.create_task(quick.save_policy(replace(CALM, id="quick"), **BY))
        await until_waiting(on_postgresql, 1)
        assert not saving.done()
        assert await quick.changes(0) == []
    await saving
    assert await since(quick) == [("policy", "slow"), ("policy", "quick")]
    for store in (slow, quick):
        await store.close()


async def test_a_person_that_another_node_changes_meanwhile_is_told_of_too(on_postgresql):
    slow, quick = await Store.open(on_postgresql.url), await Store.open(on_postgresql.url)
    await slow.write([person(name="Old")], [])
    seen = await slow.newest_change()
    async with slow._write() as connection:
        await connection.exec_driver_sql("UPDATE users SET name = 'New'")
        writing = asyncio.create_task(quick.write([person(name="Old", seen=NOON + 1)], []))
        await until_waiting(on_postgresql, 1)
    await writing
    assert (await slow.load()).users[0].name == "Old"
    assert await since(slow, seen) == [("user", person().id)]
    for store in (slow, quick):
        await store.close()


async def test_groups_that_another_node_changes_meanwhile_are_not_taken_for_those_that_were_seen(on_postgresql):
    slow, quick = await Store.open(on_postgresql.url), await Store.open(on_postgresql.url)
    await slow.write([person(groups=("old",))], [])
    number = await slow.newest_change()
    async with slow._write() as connection:
        # To the very same microsecond, so that the time alone does not tell.
        await users.write(connection, [person(groups=("new",))])
        writing = asyncio.create_task(quick.write([person(groups=("old",), seen=NOON + 1)], []))
        await until_waiting(on_postgresql, 1)
    await writing
    [user] = (await slow.load()).users
    assert (user.groups, user.last_seen_at) == (("old",), NOON + 1)
    assert await since(slow, number) == [("user", person().id)]
    for store in (slow, quick):
        await store.close()


async def test_those_who_were_only_seen_are_looked_up_by_their_id_however_many_there_are(on_postgresql):
    store = await Store.open(on_postgresql.url)
    crowd = [person(f"u-{n}", id=f"{n:032}") for n in range(3000)]
    await store.write(crowd, [])
    async with store._reader.connect() as connection:
        await connection.exec_driver_sql("ANALYZE users, memberships")
        plan = await connection.exec_driver_sql(f"EXPLAIN {sightings.NOTE}", (sightings.document(crowd[:1]),))
        assert "Seq Scan" not in "".join(row[0] for row in plan)
    await store.close()


async def test_nodes_that_write_the_same_people_at_once_do_not_lock_each_other_out(database):
    nodes = [await Store.open(database.url) for _ in range(3)]

    def seen(number, turn, name):
        # New people, new connections and new groups all the time, each named by several nodes at once.
        connection = f"c-{(number + turn) // 9}"
        groups = tuple(f"g-{turn + n * number % 5}" for n in range(3))
        subject = f"u-{number}"
        values = {"id": user_id_of(connection, subject), "connection": connection, "name": name, "groups": groups}
        return person(subject, seen=NOON + turn, **values)

    async def write(node, name):
        random = Random(name)
        for turn in range(8):
            crowd = [seen(number, turn, name) for number in random.sample(range(20), 9)]
            await node.write(crowd, [])
            await node.assign(crowd[0], is_active=True, **BY)

    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(*(write(node, f"{n}{m}") for n, node in enumerate(nodes) for m in range(2)))
    everybody = (await nodes[0].load()).users
    assert len({user.subject for user in everybody}) == 20
    for user in everybody:
        last = seen(int(user.subject.removeprefix("u-")), int(user.last_seen_at - NOON), user.name)
        assert (user.connection, user.groups) == (last.connection, tuple(sorted(set(last.groups))))
    for node in nodes:
        await node.close()


async def test_nodes_that_meet_the_same_new_groups_in_different_order_do_not_lock_each_other_out(on_postgresql):
    nodes = [await Store.open(on_postgresql.url) for _ in range(3)]
    groups = tuple(f"g-{n}" for n in range(5))
    await nodes[0].write([person("u-0", groups=())], [])
    async with asyncio.timeout(DEADLINE):
        # Both of the others come as far as the group in the middle, and meet there.
        async with nodes[0]._write() as connection:
            await users.write(connection, [person("u-0", groups=groups[2:3], seen=NOON + 1)])
            writing = [
                asyncio.create_task(node.write([person(f"u-{n}", groups=groups[::order])], []))
                for n, (node, order) in enumerate(zip(nodes[1:], (1, -1), strict=True), 1)
            ]
            await until_waiting(on_postgresql, 2)
        await asyncio.gather(*writing)
    assert sorted(user.groups for user in (await nodes[0].load()).users) == [groups, groups, groups[2:3]]
    for node in nodes:
        await node.close()
