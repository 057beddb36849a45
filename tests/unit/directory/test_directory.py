"""The directory: whoever shows up is known, what they say of themselves is followed, rules change in one step."""

import asyncio
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.directory import SEEN_EVERY, Directory, Person, user_id_of
from faregate.policy.model import GroupPolicy, Limit, Meter, Policy, Window

NOON = 1_800_014_400.0
ZOE = Person("owui", "u-1", "zoe@example.com", "Zoë 山田", "user", ("staff",))
CALM = Policy("calm", "Calm", (Limit(Meter.REQUESTS, Window.DAY, 10),))
STRICT = Policy("strict", "Strict", (Limit(Meter.REQUESTS, Window.DAY, 1),))


class Writer:
    """Keeps what it was told to write, as it was then."""

    def __init__(self):
        self.rows = []

    def __call__(self, user):
        self.rows.append(dataclasses.replace(user))


@pytest.fixture
def writer():
    return Writer()


@pytest.fixture
def directory(writer):
    return Directory((), (CALM, STRICT), (), changed=writer)


def test_the_first_request_registers_the_person(directory, writer):
    user = directory.recognise(ZOE, NOON)
    assert (user.email, user.name, user.role, user.groups) == ("zoe@example.com", "Zoë 山田", "user", ("staff",))
    assert (user.is_active, user.policy_id, user.created_at, user.last_seen_at) == (True, None, NOON, NOON)
    assert writer.rows == [user]


async def test_60_first_requests_at_once_make_one_user(directory, writer):
    async def request():
        await asyncio.sleep(0)
        return directory.recognise(ZOE, NOON)

    users = await asyncio.gather(*(request() for _ in range(60)))
    assert len({id(user) for user in users}) == 1
    assert directory.users() == [users[0]]
    assert len(writer.rows) == 1


def test_two_nodes_that_meet_the_same_person_at_once_give_the_same_id(directory):
    other = Directory((), (), (), changed=lambda user: None)
    assert directory.recognise(ZOE, NOON).id == other.recognise(ZOE, NOON + 5).id


@given(st.text(), st.text(), st.text(), st.text())
def test_different_people_have_different_ids(connection, subject, other_connection, other_subject):
    same = (connection, subject) == (other_connection, other_subject)
    assert (user_id_of(connection, subject) == user_id_of(other_connection, other_subject)) is same


def test_the_border_between_connection_and_subject_matters():
    assert user_id_of("a", "bc") != user_id_of("ab", "c")


def test_the_same_subject_on_another_connection_is_somebody_else(directory):
    one = directory.recognise(ZOE, NOON)
    two = directory.recognise(dataclasses.replace(ZOE, connection="script"), NOON)
    assert one.id != two.id
    assert directory.find("zoe@example.com") == sorted([one, two], key=lambda user: user.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [("email", "z@example.org"), ("name", "Zoe"), ("role", "admin"), ("groups", ("physics",)), ("groups", ())],
)
def test_later_changes_are_followed_and_written(directory, writer, field, value):
    directory.recognise(ZOE, NOON)
    user = directory.recognise(dataclasses.replace(ZOE, **{field: value}), NOON + 1)
    assert getattr(user, field) == value
    assert [getattr(row, field) for row in writer.rows] == [getattr(ZOE, field), value]


@pytest.mark.parametrize("field", ["email", "name", "role", "groups"])
def test_what_a_request_does_not_say_stays(directory, writer, field):
    directory.recognise(ZOE, NOON)
    user = directory.recognise(dataclasses.replace(ZOE, **{field: None}), NOON + 1)
    assert getattr(user, field) == getattr(ZOE, field)
    assert len(writer.rows) == 1


def test_groups_in_another_order_are_no_change(directory, writer):
    directory.recognise(dataclasses.replace(ZOE, groups=("b", "a", "b")), NOON)
    user = directory.recognise(dataclasses.replace(ZOE, groups=("a", "b")), NOON + 1)
    assert user.groups == ("a", "b")
    assert len(writer.rows) == 1


def test_that_somebody_was_seen_is_written_once_a_minute(directory, writer):
    for second in range(int(2 * SEEN_EVERY) + 1):
        directory.recognise(ZOE, NOON + second)
    assert [row.last_seen_at - NOON for row in writer.rows] == [0, SEEN_EVERY, 2 * SEEN_EVERY]
    assert directory.users()[0].last_seen_at == NOON + 2 * SEEN_EVERY


def test_a_clock_that_goes_back_does_not_make_anybody_seen_earlier(directory):
    directory.recognise(ZOE, NOON)
    assert directory.recognise(ZOE, NOON - 3600).last_seen_at == NOON


def test_people_from_the_store_are_known(directory, writer):
    stored = dataclasses.replace(directory.recognise(ZOE, NOON), id="from-an-older-store", policy_id="calm")
    later = Directory([stored], (CALM,), (), changed=writer)
    writer.rows.clear()
    assert later.recognise(ZOE, NOON + 1) is stored
    assert later.user("from-an-older-store") is stored
    assert writer.rows == []


def test_people_are_found_by_id_and_by_e_mail_in_any_case(directory):
    user = directory.recognise(ZOE, NOON)
    assert directory.find(user.id) == [user]
    assert directory.find(" Zoe@Example.COM ") == [user]
    assert directory.find("nobody@example.com") == []
    assert directory.user("nobody") is None


def test_somebody_without_an_e_mail_is_not_found_by_an_empty_one(directory):
    directory.recognise(Person("owui", "u-2"), NOON)
    assert directory.find("") == []


def test_without_rules_everybody_has_the_default(directory):
    resolution = directory.resolve(directory.recognise(ZOE, NOON))
    assert (resolution.policy.id, resolution.via) == ("default", "default")


def test_the_policy_of_a_person_wins_over_that_of_a_group(directory):
    user = directory.recognise(ZOE, NOON)
    directory.put_group_policy(GroupPolicy("staff", "calm"))
    assert directory.resolve(user).policy is CALM
    directory.assign(user.id, policy_id="strict")
    assert directory.resolve(user).policy is STRICT
    directory.assign(user.id, policy_id=None)
    assert directory.resolve(user).policy is CALM
    directory.drop_group_policy("staff")
    assert directory.resolve(user).policy.id == "default"


def test_leaving_a_group_leaves_its_policy(directory):
    directory.put_group_policy(GroupPolicy("staff", "strict"))
    assert directory.resolve(directory.recognise(ZOE, NOON)).policy is STRICT
    left = directory.recognise(dataclasses.replace(ZOE, groups=()), NOON + 1)
    assert directory.resolve(left).policy.id == "default"


def test_an_assignment_changes_only_what_it_names(directory):
    user = directory.recognise(ZOE, NOON)
    directory.assign(user.id, policy_id="calm")
    directory.assign(user.id, is_active=False)
    assert (user.is_active, user.policy_id) == (False, "calm")
    assert directory.assign(user.id) is user
    assert (user.is_active, user.policy_id) == (False, "calm")


def test_nobody_unknown_can_be_assigned_anything(directory):
    with pytest.raises(KeyError):
        directory.assign("nobody", is_active=False)


def test_a_request_keeps_the_rules_it_began_with(directory):
    before = directory.rulebook
    directory.put_policy(dataclasses.replace(CALM, name="Calmer"))
    directory.drop_policy("strict")
    assert before.policies["calm"] is CALM
    assert "strict" in before.policies
    assert directory.rulebook.policies["calm"].name == "Calmer"
    assert "strict" not in directory.rulebook.policies


def stored(user, **other):
    """`user` as the store has them."""
    return dataclasses.replace(user, **other)


def test_somebody_whom_another_node_met_is_known_here_and_not_written_again(directory, writer):
    zoe = Directory((), (), (), changed=lambda user: None).recognise(ZOE, NOON)
    directory.follow([zoe])
    assert directory.user(zoe.id) == zoe
    assert directory.recognise(ZOE, NOON + 1) is directory.user(zoe.id)
    assert writer.rows == []
    assert directory.recognise(ZOE, NOON + SEEN_EVERY).last_seen_at == writer.rows[0].last_seen_at


def test_a_person_who_is_followed_stays_the_same_object(directory):
    user = directory.recognise(ZOE, NOON)
    directory.follow([stored(user, name="Zoe", is_active=False, last_seen_at=NOON + 1)])
    assert directory.user(user.id) is user
    assert (user.name, user.is_active, user.last_seen_at) == ("Zoe", False, NOON + 1)


def test_what_a_person_says_again_counts_again_once_another_node_heard_something_else(directory):
    user = directory.recognise(ZOE, NOON)
    directory.recognise(ZOE, NOON + 1)
    directory.follow([stored(user, name="Zoe", groups=("physics",), last_seen_at=NOON + 2)])
    assert user.name == "Zoe"
    directory.recognise(ZOE, NOON + 3)
    assert (user.name, user.groups) == (ZOE.name, ZOE.groups)


def test_of_two_who_speak_for_one_person_in_turns_the_last_counts(directory):
    other = dataclasses.replace(ZOE, groups=("physics",))
    for said in (ZOE, ZOE, other, other, ZOE):
        assert directory.recognise(said, NOON).groups == said.groups


def test_what_administrators_decided_counts_however_old_the_rest_of_the_row_is(directory):
    user = directory.recognise(ZOE, NOON)
    row = stored(user, is_active=False, policy_id="calm")
    directory.recognise(dataclasses.replace(ZOE, groups=("arts",)), NOON + 5)
    directory.follow([row])
    assert (user.is_active, user.policy_id, user.groups) == (False, "calm", ("arts",))
    directory.follow([stored(user, is_active=True, policy_id=None)])
    assert (user.is_active, user.policy_id) == (True, None)


def test_what_is_on_its_way_to_the_store_is_not_undone_by_what_is_there(directory, writer):
    user = directory.recognise(ZOE, NOON)
    older = stored(user, name="Zoe of another node", last_seen_at=NOON + 3)
    directory.recognise(dataclasses.replace(ZOE, name="Newer"), NOON + 5)
    directory.follow([older])
    assert (user.name, user.last_seen_at) == ("Newer", NOON + 5)
    assert [row.name for row in writer.rows] == [ZOE.name, "Newer"]


def test_of_two_nodes_that_heard_different_things_at_the_same_instant_both_take_what_the_store_kept(directory):
    user = directory.recognise(ZOE, NOON)
    directory.follow([stored(user, name="Zoe of another node")])
    assert user.name == "Zoe of another node"


@pytest.mark.parametrize("passed", [0, -3600])
def test_what_is_on_its_way_wins_over_its_own_past_though_the_clock_stood_still_or_went_back(directory, passed):
    user = directory.recognise(ZOE, NOON)
    past = stored(user)
    directory.recognise(dataclasses.replace(ZOE, groups=()), NOON + passed)
    directory.follow([past])
    assert user.groups == ()
    assert user.last_seen_at == pytest.approx(NOON, abs=0.001)


def test_the_store_is_told_again_if_it_has_something_older_that_nothing_on_its_way_replaces(directory, writer):
    user = directory.recognise(ZOE, NOON)
    row = stored(user, groups=("physics",), last_seen_at=NOON + 3)
    directory.recognise(ZOE, NOON + 5)
    directory.follow([row])
    assert user.groups == ("staff",)
    assert [(row.groups, row.last_seen_at) for row in writer.rows[1:]] == [(("staff",), NOON + 5)]
    directory.follow([row])
    assert len(writer.rows) == 2


def test_the_store_is_told_what_it_never_heard_and_does_not_make_it_forgotten(directory, writer):
    user = directory.recognise(ZOE, NOON)
    directory.follow([stored(user, email=None, role="admin", last_seen_at=NOON + 3)])
    assert (user.email, user.role, user.last_seen_at) == ("zoe@example.com", "admin", NOON + 3)
    assert [(row.email, row.role) for row in writer.rows[1:]] == [("zoe@example.com", "admin")]


def test_all_nodes_say_the_same_about_since_when_somebody_is_registered(directory):
    user = directory.recognise(ZOE, NOON)
    directory.follow([stored(user, created_at=NOON + 1)])
    assert user.created_at == NOON + 1


def test_the_rules_of_the_store_replace_all_others(directory):
    before = directory.rulebook
    directory.put_group_policy(GroupPolicy("staff", "calm"))
    directory.replace_rules([STRICT], [GroupPolicy("arts", "strict")])
    assert dict(directory.rulebook.policies).keys() == {"default", "strict"}
    assert directory.rulebook.group_policies == (GroupPolicy("arts", "strict"),)
    assert "calm" in before.policies


def test_rules_that_are_known_are_not_compiled_again(directory):
    before = directory.rulebook
    directory.replace_rules([dataclasses.replace(STRICT), dataclasses.replace(CALM)], [])
    assert directory.rulebook is before


def test_a_policy_that_another_node_deleted_does_not_hide_the_next_rule(directory):
    user = directory.recognise(ZOE, NOON)
    directory.follow([stored(user, policy_id="gone")])
    directory.replace_rules([CALM], [GroupPolicy("staff", "gone", 9)])
    assert directory.resolve(user).policy.id == "default"
    directory.recognise(dataclasses.replace(ZOE, groups=("arts", "staff")), NOON + 1)
    directory.put_group_policy(GroupPolicy("arts", "calm"))
    assert directory.resolve(user).policy is CALM
