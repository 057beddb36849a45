"""Several nodes on one real database: what one of them changes is what all of them have."""

import asyncio
import contextlib
from dataclasses import replace
from random import Random

import pytest
from rows import BY, NOON

from faregate.directory import Directory, Person
from faregate.following import Following
from faregate.policy.model import GroupPolicy, Limit, Meter, Policy, Window
from faregate.store import engine
from faregate.store.errors import PolicyInUse, UnknownPolicy
from faregate.store.store import Store

CALM = Policy("calm", "Calm", (Limit(Meter.REQUESTS, Window.DAY, 10),))
ZOE = Person("owui", "zoe", "zoe@example.com", "Zoë 山田", "user", ("staff",))


class Node:
    """The parts of a gateway process that meet people, change rules and follow others. Nothing here waits a second."""

    def __init__(self, store, snapshot):
        self.store = store
        self.waiting = []
        self.directory = Directory(
            snapshot.users, snapshot.policies, snapshot.group_policies, changed=lambda user: self._wait(user)
        )
        self.learned = asyncio.Event()
        self.following = Following(store, self.directory, self._learn, every=3600)

    @classmethod
    async def start(cls, url, name):
        store = await Store.open(url, name)
        newest = await store.newest_change()
        node = cls(store, await store.load())
        node.following.start(newest)
        return node

    async def stop(self):
        await self.following.stop()
        await self.store.close()

    def _wait(self, user):
        self.waiting.append(replace(user))

    async def _learn(self, shapes):
        self.learned.set()

    def meet(self, person, at=NOON):
        return self.directory.recognise(person, at)

    async def flush(self):
        waiting, self.waiting = self.waiting, []
        await self.store.write(waiting, [])

    async def put_policy(self, policy):
        async with self.directory.changing:
            await self.store.save_policy(policy, **BY)
            self.directory.put_policy(policy)

    async def drop_policy(self, policy_id):
        async with self.directory.changing:
            await self.store.delete_policy(policy_id, **BY)
            self.directory.drop_policy(policy_id)

    async def put_group_policy(self, rule):
        async with self.directory.changing:
            await self.store.save_group_policy(rule, **BY)
            self.directory.put_group_policy(rule)

    async def drop_group_policy(self, group):
        async with self.directory.changing:
            await self.store.delete_group_policy(group, **BY)
            self.directory.drop_group_policy(group)

    async def assign(self, user, **changes):
        async with self.directory.changing:
            await self.store.assign(user, **changes, **BY)
            self.directory.assign(user.id, **changes)

    def state(self):
        rulebook = self.directory.rulebook
        return state(
            self.directory.users(),
            [policy for name, policy in rulebook.policies.items() if name != "default"],
            rulebook.group_policies,
        )


def state(users, policies, group_policies):
    """What all nodes must agree on: all but when they last saw somebody."""
    return (
        {user.id: replace(user, last_seen_at=0) for user in users},
        {policy.id: policy for policy in policies},
        {rule.group: rule for rule in group_policies},
    )


async def stored(store):
    snapshot = await store.load()
    return state(snapshot.users, snapshot.policies, snapshot.group_policies)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """On SQLite the lock is not given in turn: with many writers on a busy machine one may wait for long."""
    monkeypatch.setattr(engine, "POOL_TIMEOUT", 60.0)


@pytest.fixture
async def start(database):
    nodes = []

    async def start():
        nodes.append(await Node.start(database.url, f"node-{len(nodes)}"))
        return nodes[-1]

    yield start
    for node in nodes:
        await node.stop()


@pytest.fixture
async def two(start):
    return await start(), await start()


async def test_what_one_node_changes_another_has_after_one_round(two):
    one, two = two
    zoe = one.meet(ZOE)
    await one.flush()
    await one.put_policy(CALM)
    await one.put_group_policy(GroupPolicy("staff", "calm", 7))
    await one.assign(zoe, is_active=False, policy_id="calm")
    await two.following.round()
    assert two.state() == one.state() == await stored(one.store)
    assert two.directory.resolve(two.directory.user(zoe.id)).policy == CALM

    await one.assign(zoe, policy_id=None)
    await one.drop_group_policy("staff")
    await one.drop_policy("calm")
    await two.following.round()
    assert two.state() == one.state() == await stored(one.store)
    assert not two.directory.user(zoe.id).is_active


async def test_a_person_who_changed_on_one_node_has_changed_on_the_other(two):
    one, two = two
    one.meet(ZOE)
    await one.flush()
    await two.following.round()
    followed = two.directory.users()[0]
    one.meet(replace(ZOE, groups=("physics, applied",)), NOON + 1)
    await one.flush()
    await two.following.round()
    assert followed.groups == ("physics, applied",)
    assert two.waiting == []


async def test_news_bring_it_without_waiting_for_the_next_look(two):
    one, two = two
    await two.following.round()
    two.learned.clear()
    await one.put_policy(CALM)
    two.following.wake()
    async with asyncio.timeout(30):
        await two.learned.wait()
    assert two.state() == one.state()


async def test_500_changes_arrive(two):
    one, two = two
    for n in range(200):
        one.meet(replace(ZOE, subject=f"u-{n}"), NOON + n)
    await one.flush()
    for n, user in enumerate(one.directory.users()[:150]):
        await one.assign(user, is_active=n % 2 == 0)
    for n in range(150):
        await one.put_policy(replace(CALM, id=f"p-{n % 50}", name=f"{n}"))
    await two.following.round()
    assert two.state() == one.state() == await stored(one.store)


async def test_who_was_away_for_longer_than_changes_are_kept_has_everything(two, database):
    one, two = two
    for n in range(20):
        one.meet(replace(ZOE, subject=f"u-{n}"))
        await one.flush()
        await one.put_policy(replace(CALM, name=f"{n}"))
    newest = await one.store.newest_change()
    database.sql(f"DELETE FROM changes WHERE number < {newest}")
    await two.following.round()
    assert two.state() == one.state() == await stored(one.store)


async def test_a_node_that_starts_in_the_middle_of_changes_misses_none(start, database):
    one = await start()
    changing = asyncio.create_task(_many_changes(one))
    late = [await start() for _ in range(3)]
    await changing
    for node in late:
        await node.following.round()
        assert node.state() == one.state()


async def _many_changes(node):
    for n in range(60):
        await node.put_policy(replace(CALM, id=f"p-{n}"))
        node.meet(replace(ZOE, subject=f"u-{n}"))
        await node.flush()


async def test_of_many_writers_at_once_no_change_is_missed(start):
    nodes = [await start() for _ in range(3)]
    watcher = await start()
    done = asyncio.Event()

    async def write(node, name):
        for n in range(40):
            await node.put_policy(replace(CALM, id=f"{name}-{n}"))
            node.meet(replace(ZOE, subject=f"{name}-{n}"))
            await node.flush()

    async def watch():
        while not done.is_set():
            await watcher.following.round()

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(write(node, f"n{n}") for n, node in enumerate(nodes)))
    done.set()
    await watching
    await watcher.following.round()
    assert watcher.state() == await stored(watcher.store)
    assert len(watcher.directory.users()) == 120
    assert len(watcher.directory.rulebook.policies) == 121


@pytest.mark.parametrize("seed", range(4))
async def test_after_anything_at_all_every_node_has_what_the_store_has(start, seed):
    random = Random(seed)
    nodes = [await start() for _ in range(3)]
    said = {}
    now = NOON

    def request(node):
        nonlocal now
        now += random.choice([0.001, 1, 45])
        person = replace(
            ZOE,
            subject=f"u-{random.randrange(5)}",
            name=random.choice(["Zoe", "Zoë 山田", "Z."]),
            groups=random.choice([(), ("arts",), ("arts", "staff")]),
        )
        user = node.meet(person, now)
        said[user.id] = (person.name, person.groups)
        assert (user.name, user.groups) == said[user.id]

    async def step(node):
        known = node.directory.users()
        policy_id = random.choice("abc")
        group = random.choice(["arts", "staff"])
        what = random.choices(
            ["request", "flush", "round", "assign", "put", "drop", "group", "no group"], [6, 3, 3, 2, 2, 1, 1, 1]
        )[0]
        match what:
            case "request":
                request(node)
            case "flush":
                await node.flush()
            case "round":
                await node.following.round()
            case "assign" if known:
                decision = random.choice([{"is_active": False}, {"is_active": True}, {"policy_id": policy_id}])
                with contextlib.suppress(UnknownPolicy):
                    await node.assign(random.choice(known), **decision)
            case "put":
                amount = random.randrange(100)
                await node.put_policy(Policy(policy_id, "P", (Limit(Meter.REQUESTS, Window.DAY, amount),)))
            case "drop":
                with contextlib.suppress(PolicyInUse):
                    await node.drop_policy(policy_id)
            case "group":
                with contextlib.suppress(UnknownPolicy):
                    await node.put_group_policy(GroupPolicy(group, policy_id, random.randrange(3)))
            case "no group":
                await node.drop_group_policy(group)

    for _ in range(60):
        await asyncio.gather(*(step(random.choice(nodes)) for _ in range(random.choice([1, 2, 5]))))
    # What the nodes know and have not written yet, then what they tell each other because of that.
    for _ in range(3):
        for node in nodes:
            await node.flush()
        for node in nodes:
            await node.following.round()

    everything = await stored(nodes[0].store)
    assert [node.state() for node in nodes] == [everything] * 3, f"seed {seed}"
    assert {user.id: (user.name, user.groups) for user in everything[0].values()} == said
    assert [node.waiting for node in nodes] == [[], [], []]
