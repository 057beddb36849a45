"""Which key is chosen, and when one is left out. Times are those of the test."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from faregate.gateway.upstream_keys import FIRST_REST, LONGEST_REST, PROBE_SECONDS, Key, UpstreamKeys
from faregate.settings import UpstreamKey


def keys(**weights: int) -> UpstreamKeys:
    return UpstreamKeys([UpstreamKey(name, SecretStr(f"sk-or-{name}"), weight) for name, weight in weights.items()])


def chosen(ring: UpstreamKeys, now: float = 0.0, tried: tuple[Key, ...] = ()) -> Key:
    key = ring.choose(now, tried)
    assert key is not None
    return key


def names(ring: UpstreamKeys, times: int, now: float = 0.0) -> str:
    return "".join(chosen(ring, now).name for _ in range(times))


def taken_out(ring: UpstreamKeys, name: str, now: float) -> Key:
    key = next(key for key in ring.by_standing() if key.name == name)
    assert ring.refused(key, now, now, "HTTP 401")
    return key


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_within_every_round_each_key_gets_exactly_its_weight(weights: list[int]) -> None:
    ring = keys(**{f"k{number}": weight for number, weight in enumerate(weights)})
    for _ in range(3):
        assert sorted(Counter(chosen(ring).name for _ in range(sum(weights))).items()) == [
            (f"k{number}", weight) for number, weight in enumerate(weights)
        ]


def test_shares_are_mixed_and_not_in_blocks() -> None:
    assert names(keys(a=5, b=1, c=1), 7) == "aabacaa"


def test_a_key_that_is_not_taken_is_left_out_and_its_share_goes_to_the_others() -> None:
    ring = keys(a=1, b=1)
    taken_out(ring, "a", 10.0)
    assert names(ring, 4, 10.0 + FIRST_REST / 2) == "bbbb"
    assert (ring.up(11.0), ring.out()) == ({"a": False, "b": True}, {"a": "HTTP 401"})


def test_after_its_time_one_request_at_a_time_tries_it_and_it_is_back_when_that_is_answered() -> None:
    ring = keys(a=1, b=1)
    key = taken_out(ring, "a", 0.0)
    later = FIRST_REST
    assert Counter(names(ring, 10, later)) == {"a": 1, "b": 9}
    assert not ring.up(later)["a"]
    assert Counter(names(ring, 10, later + PROBE_SECONDS)) == {"a": 1, "b": 9}
    assert ring.worked(key, later)
    assert ring.up(later + 1)["a"]
    assert Counter(names(ring, 10, later + 1)) == {"a": 5, "b": 5}


def test_each_refusal_doubles_the_time_up_to_ten_minutes() -> None:
    ring, now = keys(a=1, b=1), 0.0
    key, rests = chosen(ring), []
    for _ in range(9):
        ring.refused(key, now, now, "HTTP 402")
        rests.append(key.due - now)
        now = key.due
    assert rests == [5, 10, 20, 40, 80, 160, 320, LONGEST_REST, LONGEST_REST]


def test_what_was_under_way_when_a_key_went_out_counts_once_and_does_not_bring_it_back() -> None:
    ring = keys(a=1, b=1)
    key = chosen(ring)
    assert ring.refused(key, asked_at=0.0, now=1.0, why="HTTP 401")
    assert not ring.refused(key, asked_at=0.5, now=1.1, why="HTTP 401")
    assert key.due == 1.0 + FIRST_REST
    assert not ring.worked(key, asked_at=0.9)
    assert not ring.up(1.2)["a"]


def test_an_alarm_is_raised_once_however_often_it_fails() -> None:
    ring = keys(a=1)
    key = chosen(ring)
    assert [ring.refused(key, now, now, "HTTP 401") for now in (0.0, 1.0, 100.0)] == [True, False, False]
    # It comes back, and goes again at once: that is the same story.
    assert ring.worked(key, 101.0)
    assert not ring.refused(key, 102.0, 102.0, "HTTP 401")
    assert ring.worked(key, 800.0)
    assert ring.refused(key, 801.0, 801.0, "HTTP 401")


def test_a_request_is_tried_on_every_key_that_is_up_once() -> None:
    ring = keys(a=3, b=2, c=1)
    taken_out(ring, "b", 0.0)
    first = chosen(ring)
    second = chosen(ring, tried=(first,))
    assert {first.name, second.name} == {"a", "c"}
    assert ring.choose(0.0, (first, second)) is None


def test_where_all_are_out_the_one_that_is_due_first_is_asked_all_the_same() -> None:
    ring = keys(a=1, b=1)
    taken_out(ring, "b", 0.0)
    taken_out(ring, "a", 1.0)
    assert names(ring, 3, 2.0) == "bbb"


def test_a_single_key_is_always_asked() -> None:
    ring = keys(only=1)
    taken_out(ring, "only", 0.0)
    assert names(ring, 3, 1.0) == "only" * 3
    assert ring.choose(1.0, (chosen(ring),)) is None


def test_a_rest_ends_by_itself_and_is_not_longer_than_ten_minutes() -> None:
    ring = keys(a=1, b=1)
    key = chosen(ring)
    ring.rest(key, 0.0, 3)
    assert (names(ring, 4, 2.9), ring.up(2.9)["a"], ring.out()) == ("bbbb", False, {})
    assert ring.up(3.0)["a"]
    ring.rest(key, 3.0, 999_999)
    assert key.due == 3.0 + LONGEST_REST


def test_what_costs_nothing_is_asked_with_a_key_that_is_taken() -> None:
    ring = keys(a=1, b=1)
    taken_out(ring, "a", 0.0)
    assert [key.name for key in ring.by_standing()] == ["b", "a"]
