"""Which policy applies to a person, and which limits to which counters."""

from faregate.policy.model import GroupPolicy, Limit, Meter, Policy, Scope, Window
from faregate.policy.rulebook import Rulebook, Shape

DAILY_USD = Shape(Scope.USER, Meter.USD, Window.DAY)
POOL = Shape(Scope.GROUP, Meter.USD, Window.MONTH)
EVERYONE = Shape(Scope.EVERYONE, Meter.REQUESTS, Window.MINUTE)

STAFF = Policy(
    "staff",
    "Staff",
    limits=(
        Limit(Meter.USD, Window.DAY, 5),
        Limit(Meter.USD, Window.MONTH, 900, Scope.GROUP),
        Limit(Meter.REQUESTS, Window.MINUTE, 100, Scope.EVERYONE),
    ),
)
STUDENT = Policy("student", "Student", limits=(Limit(Meter.USD, Window.DAY, 2),))


def rulebook(*rules: GroupPolicy) -> Rulebook:
    return Rulebook([STAFF, STUDENT], rules)


def test_there_is_always_a_default_that_limits_nothing():
    resolution = Rulebook([], []).resolve(None, ["physics"])
    assert (resolution.policy.id, resolution.via, resolution.group) == ("default", "default", None)
    assert resolution.policy.limits == ()
    assert resolution.limit_for(DAILY_USD, "ada") is None


def test_the_default_can_be_replaced():
    strict = Policy("default", "Default", limits=STUDENT.limits)
    assert Rulebook([strict], []).resolve(None, []).limit_for(DAILY_USD, "ada") == 2


def test_a_persons_own_policy_comes_first():
    resolution = rulebook(GroupPolicy("physics", "staff", 9)).resolve("student", ["physics"])
    assert (resolution.policy.id, resolution.via, resolution.group) == ("student", "user", None)


def test_then_the_group_with_the_highest_priority():
    rules = rulebook(GroupPolicy("a", "student", 1), GroupPolicy("b", "staff", 2), GroupPolicy("c", "student", 3))
    resolution = rules.resolve(None, ["a", "b"])
    assert (resolution.policy.id, resolution.via, resolution.group) == ("staff", "group", "b")


def test_groups_of_one_priority_go_by_name_in_whatever_order_they_come():
    rules = rulebook(GroupPolicy("b", "staff"), GroupPolicy("a", "student"))
    assert rules.resolve(None, ["b", "a"]).group == "a"
    assert rules.resolve(None, ["a", "b"]).group == "a"


def test_a_policy_that_is_gone_does_not_hide_the_next_rule():
    rules = rulebook(GroupPolicy("a", "gone", 9), GroupPolicy("b", "staff"))
    assert rules.resolve("gone too", ["a", "b"]).policy is STAFF
    assert rules.resolve("gone too", ["a"]).via == "default"


def test_a_pool_that_came_through_a_group_is_that_groups_alone():
    resolution = rulebook(GroupPolicy("physics", "staff")).resolve(None, ["chess", "physics"])
    assert resolution.limit_for(POOL, "physics") == 900
    assert resolution.limit_for(POOL, "chess") is None
    assert resolution.limit_for(DAILY_USD, "ada") == 5
    assert resolution.limit_for(EVERYONE, "") == 100


def test_a_pool_of_ones_own_policy_is_about_each_of_ones_groups():
    resolution = rulebook().resolve("staff", ["chess", "physics"])
    assert resolution.limit_for(POOL, "physics") == 900
    assert resolution.limit_for(POOL, "chess") == 900


def test_a_shape_that_the_policy_does_not_limit_is_counted_without_a_limit():
    resolution = rulebook().resolve("student", [])
    assert resolution.limit_for(EVERYONE, "") is None
    assert resolution.limit_for(Shape(Scope.USER, Meter.USD, Window.DAY, ("openai/*",)), "ada") is None


def test_counters_exist_for_the_limits_of_all_policies_once():
    assert rulebook().shapes == (DAILY_USD, POOL, EVERYONE)


def test_of_two_limits_on_one_counter_the_smaller_counts():
    twice = Policy("twice", "", limits=(Limit(Meter.USD, Window.DAY, 7), Limit(Meter.USD, Window.DAY, 3)))
    assert Rulebook([twice], []).resolve("twice", []).limit_for(DAILY_USD, "ada") == 3


def test_group_policies_are_listed_in_the_order_they_are_tried():
    rules = rulebook(GroupPolicy("c", "staff", 1), GroupPolicy("b", "staff", 5), GroupPolicy("a", "student", 1))
    assert [rule.group for rule in rules.group_policies] == ["b", "a", "c"]
