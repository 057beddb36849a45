"""Following the store: what other nodes changed is taken over, whatever was missed, whoever is away."""

import asyncio
import contextlib
import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.directory import Directory, Person
from faregate.following import BATCH, Following
from faregate.ledger.port import LedgerAway
from faregate.policy.model import GroupPolicy, Limit, Meter, Policy, Window
from faregate.policy.rulebook import Shape
from faregate.store.errors import StoreError, StoreUnavailable
from faregate.store.store import Change, Snapshot

NOON = 1_800_014_400.0
CALM = Policy("calm", "Calm", (Limit(Meter.REQUESTS, Window.DAY, 10),))
STRICT = Policy("strict", "Strict", (Limit(Meter.REQUESTS, Window.HOUR, 1),))


class FarStore:
    """A database that other nodes write to. `failure` is raised by every method, or by the one that `fails_at` names;
    `unreadable` by those that read rules, which wait for `pause` before they return."""

    def __init__(self):
        self.users, self.policies, self.groups = {}, {}, {}
        self.log = []
        self.asked = []
        self.failure = self.fails_at = None
        self.unreadable = None
        self.pause = None

    def put(self, policy):
        self.policies[policy.id] = policy
        self._changed("policy", policy.id)

    def drop(self, policy_id):
        del self.policies[policy_id]
        self._changed("policy", policy_id)

    def put_group(self, rule):
        self.groups[rule.group] = rule
        self._changed("group", rule.group)

    def keep(self, user):
        self.users[user.id] = replace(user)
        self._changed("user", user.id)

    def forget_changes(self, upto):
        self.log = [change for change in self.log if change.number > upto]

    def _changed(self, kind, key):
        self.log.append(Change(self.log[-1].number + 1 if self.log else 1, kind, key))

    async def _ask(self, what):
        self.asked.append(what)
        await asyncio.sleep(0)
        if self.failure is not None and self.fails_at in {None, what}:
            raise self.failure

    async def newest_change(self):
        await self._ask("newest")
        return self.log[-1].number if self.log else 0

    async def oldest_change(self):
        await self._ask("oldest")
        return self.log[0].number if self.log else 0

    async def changes(self, after, limit=1000):
        await self._ask("changes")
        return [change for change in self.log if change.number > after][:limit]

    async def people(self, ids):
        await self._ask("people")
        return [replace(self.users[user_id]) for user_id in ids if user_id in self.users]

    async def rules(self):
        await self._ask("rules")
        rules = tuple(self.policies.values()), tuple(self.groups.values())
        if self.pause is not None:
            await self.pause.wait()
        if self.unreadable is not None:
            raise self.unreadable
        return rules

    async def load(self):
        await self._ask("load")
        users = tuple(replace(user) for user in self.users.values())
        return Snapshot(users, *(await self.rules()))


class Ledger:
    """What the ledger was taught; `away` and it cannot learn."""

    def __init__(self):
        self.away = False
        self.lessons = []

    async def learn(self, shapes):
        if self.away:
            raise LedgerAway("Redis does not answer.")
        self.lessons.append(tuple(shapes))


class Hands:
    """A clock on which time passes when the test says so."""

    def __init__(self):
        self.waits = []
        self._passed = asyncio.Event()

    async def wait(self, event, seconds):
        self.waits.append(seconds)
        either = [asyncio.ensure_future(waited.wait()) for waited in (event, self._passed)]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in either:
                one.cancel()

    async def pass_time(self):
        self._passed.set()
        self._passed = asyncio.Event()
        await others_run()


async def others_run():
    for _ in range(50):
        await asyncio.sleep(0)


class Node:
    """The parts of a node that follow."""

    def __init__(self, store):
        self.store = store
        self.announced = []
        self.ledger = Ledger()
        self.clock = Hands()
        self.directory = Directory((), (), (), changed=self.announced.append)
        self.following = Following(store, self.directory, self.ledger.learn, clock=self.clock)

    def meet(self, subject="zoe", at=NOON, **said):
        said = {"email": "zoe@example.com", "name": "Zoë 山田", "role": "user", "groups": ("staff",)} | said
        return self.directory.recognise(Person("owui", subject, **said), at)

    def knows(self, *policies):
        return list(self.directory.rulebook.policies.values())[1:] == list(policies)


@pytest.fixture
def store():
    return FarStore()


@pytest.fixture
async def node(store):
    return Node(store)


@pytest.fixture
def other(store):
    """Another node, which has met Zoe; the store knows."""
    other = Node(store)
    store.keep(other.meet())
    return other


async def test_rules_and_people_are_there_after_one_round(node, store, other):
    store.put(CALM)
    store.put_group(GroupPolicy("staff", "calm"))
    await node.following.round()
    zoe = node.directory.users()[0]
    assert zoe == other.directory.users()[0]
    assert node.directory.resolve(zoe).policy is CALM
    assert node.announced == []


async def test_without_changes_a_round_is_one_question(node, store, other):
    await node.following.round()
    store.asked.clear()
    await node.following.round()
    assert store.asked == ["newest"]


async def test_a_policy_that_is_gone_is_forgotten(node, store):
    store.put(CALM)
    store.put(STRICT)
    await node.following.round()
    store.drop("calm")
    await node.following.round()
    assert node.knows(STRICT)


async def test_people_are_read_once_however_often_they_changed_and_no_more_than_a_batch_at_once(node, store):
    others = Node(store)
    for turn in range(2):
        for n in range(BATCH + 1):
            store.keep(others.meet(f"u-{n}", name=f"name {turn}"))
    store.asked.clear()
    await node.following.round()
    assert store.asked.count("people") == 2
    assert {user.name for user in node.directory.users()} == {"name 1"}
    assert len(node.directory.users()) == BATCH + 1


async def test_a_person_and_the_policy_they_were_given_arrive_in_one_step(node, store, other):
    await node.following.round()
    zoe = node.directory.users()[0]
    store.put(CALM)
    store.keep(replace(zoe, policy_id="calm"))
    store.pause = asyncio.Event()
    round_ = asyncio.create_task(node.following.round())
    await others_run()
    assert zoe.policy_id is None
    store.pause.set()
    await round_
    assert node.directory.resolve(zoe).policy is CALM


async def test_what_was_read_before_a_change_on_this_node_does_not_undo_it(node, store):
    store.put(CALM)
    store.pause = asyncio.Event()
    round_ = asyncio.create_task(node.following.round())
    await others_run()

    async def administrator():
        async with node.directory.changing:
            store.put(calmer)
            node.directory.put_policy(calmer)

    calmer = replace(CALM, name="Calmer")
    change = asyncio.create_task(administrator())
    await others_run()
    store.pause.set()
    await asyncio.gather(round_, change)
    assert node.knows(calmer)


async def test_who_fell_behind_takes_over_everything(node, store, other):
    await node.following.round()
    store.put(CALM)
    zoe = other.meet(at=NOON + 1, name="Zoe")
    store.keep(zoe)
    store.put(STRICT)
    store.forget_changes(upto=3)
    await node.following.round()
    assert node.knows(CALM, STRICT)
    assert node.directory.users()[0].name == "Zoe"
    store.asked.clear()
    await node.following.round()
    assert store.asked == ["newest"]


async def test_who_kept_up_does_not_mind_that_old_changes_are_forgotten(node, store, other):
    store.put(CALM)
    await node.following.round()
    store.put(STRICT)
    store.forget_changes(upto=2)
    store.asked.clear()
    await node.following.round()
    assert "load" not in store.asked
    assert node.knows(CALM, STRICT)


async def test_a_store_that_was_restored_from_a_backup_is_taken_over(node, store, other):
    store.put(CALM)
    await node.following.round()
    del store.policies["calm"]
    store.log = store.log[:1]
    await node.following.round()
    assert node.knows()
    store.put(STRICT)
    await node.following.round()
    assert node.knows(STRICT)


async def test_what_could_not_be_read_is_there_in_a_later_round(node, store, other):
    store.put(CALM)
    store.failure = StoreUnavailable("the database is away")
    for store.fails_at in ("newest", "changes", "oldest", "people", "rules"):
        with pytest.raises(StoreUnavailable):
            await node.following.round()
        assert node.knows()
        assert node.directory.users() == []
    store.failure = None
    await node.following.round()
    assert node.knows(CALM)
    assert len(node.directory.users()) == 1


async def test_rules_that_cannot_be_read_keep_nobody_from_being_deactivated(node, store, other, caplog):
    store.put(CALM)
    await node.following.round()
    store.put(STRICT)
    store.keep(replace(other.directory.users()[0], is_active=False))
    store.unreadable = StoreError("the policy strict in the database cannot be read")
    for _ in range(3):
        await node.following.round()
    assert not node.directory.users()[0].is_active
    assert node.knows(CALM)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the policy strict in the database cannot be read" in node.following.failure
    store.unreadable = None
    await node.following.round()
    assert node.knows(CALM, STRICT)
    assert node.following.failure is None


async def test_rules_that_cannot_be_read_after_falling_behind_are_tried_again(node, store):
    store.put(CALM)
    store.put(STRICT)
    store.forget_changes(upto=1)
    store.unreadable = StoreError("the policy strict in the database cannot be read")
    await node.following.round()
    assert "cannot be read" in node.following.failure
    store.unreadable = None
    await node.following.round()
    assert node.knows(CALM, STRICT)


async def test_the_ledger_learns_new_shapes_and_no_others(node, store):
    store.put(CALM)
    await node.following.round()
    store.put(replace(CALM, limits=(Limit(Meter.REQUESTS, Window.DAY, 99),)))
    await node.following.round()
    assert [len(lesson) for lesson in node.ledger.lessons] == [1]
    store.put(STRICT)
    await node.following.round()
    assert [len(lesson) for lesson in node.ledger.lessons] == [1, 2]


async def test_rules_apply_while_the_ledger_is_away_and_it_learns_them_later(node, store, caplog):
    node.ledger.away = True
    store.put(CALM)
    for _ in range(3):
        await node.following.round()
    assert node.knows(CALM)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert node.following.failure == "The ledger has not learned the limits of the rules: Redis does not answer."
    node.ledger.away = False
    await node.following.round()
    [lesson] = node.ledger.lessons
    assert [(shape.meter, shape.window) for shape in lesson] == [(Meter.REQUESTS, Window.DAY)]
    assert node.following.failure is None


async def test_what_an_administrator_did_here_while_the_ledger_was_away_is_learned_too(node):
    node.directory.put_policy(CALM)
    await node.following.round()
    assert node.ledger.lessons == [node.directory.rulebook.shapes]
    assert all(isinstance(shape, Shape) for shape in node.directory.rulebook.shapes)


async def test_news_are_looked_at_at_once_and_lost_news_a_second_later(node, store):
    node.following.start(0)
    await others_run()
    assert node.clock.waits == [1.0]
    store.put(CALM)
    node.following.wake()
    await others_run()
    assert node.clock.waits == [1.0, 0.05]
    await node.clock.pass_time()
    assert node.knows(CALM)
    store.put(STRICT)
    await node.clock.pass_time()
    await node.clock.pass_time()
    assert node.knows(CALM, STRICT)
    assert node.clock.waits == [1.0, 0.05] * 2 + [1.0]
    await node.following.stop()


async def test_a_hundred_news_are_one_look(node, store):
    node.following.start(0)
    await others_run()
    store.asked.clear()
    for _ in range(100):
        node.following.wake()
        await others_run()
    await node.clock.pass_time()
    assert store.asked == ["newest"]
    await node.following.stop()


async def test_a_database_that_is_away_is_said_once_and_asked_again_each_second(node, store, caplog):
    caplog.set_level(logging.INFO)
    store.failure = StoreUnavailable("the database is away")
    node.following.start(0)
    await others_run()
    for _ in range(4):
        node.following.wake()
        await node.clock.pass_time()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert node.following.failure == "Changes by other nodes cannot be read: the database is away."
    assert store.asked == ["newest"] * 5
    assert set(node.clock.waits) == {1.0}
    store.failure = None
    store.put(CALM)
    await node.clock.pass_time()
    assert node.knows(CALM)
    assert node.following.failure is None
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    await node.following.stop()


async def test_an_error_that_nobody_foresaw_does_not_end_the_following(node, store, caplog):
    store.failure = ZeroDivisionError()
    node.following.start(0)
    await others_run()
    store.failure = None
    store.put(CALM)
    await node.clock.pass_time()
    assert node.knows(CALM)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await node.following.stop()


async def test_stopping_ends_it_wherever_it_is(node, store):
    node.following.start(0)
    await node.following.stop()
    node.following.start(0)
    await others_run()
    await node.following.stop()
    await node.following.stop()
    asked = len(store.asked)
    store.put(CALM)
    node.following.wake()
    await node.clock.pass_time()
    assert len(store.asked) == asked


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(["a", "b", "c"]), st.integers(1, 3)),
        st.tuples(st.just("drop"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("group"), st.sampled_from(["staff", "arts"]), st.sampled_from(["a", "b", "gone"])),
        st.tuples(st.just("keep"), st.sampled_from(["u", "v"]), st.booleans(), st.sampled_from([None, "a", "gone"])),
        st.tuples(st.just("forget"), st.integers(1, 20)),
        st.tuples(st.just("away"), st.booleans()),
        st.tuples(st.just("round")),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happened_and_whatever_was_missed_a_round_brings_the_store(steps):
    async def history():
        store = FarStore()
        node, others = Node(store), Node(store)
        for step in steps:
            match step:
                case "put", policy_id, amount:
                    store.put(Policy(policy_id, "P", (Limit(Meter.REQUESTS, Window.DAY, amount),)))
                case "drop", policy_id if policy_id in store.policies:
                    store.drop(policy_id)
                case "group", group, policy_id:
                    store.put_group(GroupPolicy(group, policy_id))
                case "keep", subject, is_active, policy_id:
                    store.keep(replace(others.meet(subject), is_active=is_active, policy_id=policy_id))
                case "forget", upto if store.log and upto < store.log[-1].number:
                    store.forget_changes(upto)
                case "away", away:
                    store.failure = StoreUnavailable("the database is away") if away else None
                case ("round",):
                    with contextlib.suppress(StoreUnavailable):
                        await node.following.round()
        store.failure = None
        await node.following.round()
        rulebook = node.directory.rulebook
        assert {name: p for name, p in rulebook.policies.items() if name != "default"} == store.policies
        assert {rule.group: rule for rule in rulebook.group_policies} == store.groups
        assert {user.id: user for user in node.directory.users()} == store.users
        # Also those whose policy is gone have one.
        assert all(node.directory.resolve(user).policy for user in node.directory.users())

    asyncio.run(history())
