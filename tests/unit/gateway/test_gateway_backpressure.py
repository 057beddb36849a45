"""Who goes ahead when OpenRouter has room again."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.gateway import backpressure
from faregate.gateway.backpressure import Call, FairQueue, Line, Turn


def drained(queue: FairQueue[str]) -> list[str]:
    found = []
    while queue:
        found.append(queue.next())
    return found


def filled(items: Iterable[str]) -> FairQueue[str]:
    """Each item is of the person who is its first letter."""
    queue: FairQueue[str] = FairQueue()
    for item in items:
        queue.add(item[0], item)
    return queue


def test_people_take_turns_however_much_one_of_them_has() -> None:
    assert drained(filled(["a1", "a2", "a3", "a4", "b1", "c1", "c2"])) == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


def test_who_had_a_turn_in_vain_is_first_of_their_own_and_after_everybody_else() -> None:
    queue = filled(["a1", "a2", "b1", "c1"])
    queue.put_back("a", queue.next())
    assert drained(queue) == ["b1", "c1", "a1", "a2"]


def test_who_leaves_is_skipped() -> None:
    queue = filled(["a1", "a2", "b1"])
    queue.remove("a", "a1")
    queue.remove("b", "b1")
    queue.remove("b", "b1")
    assert drained(queue) == ["a2"]


@given(st.lists(st.integers(0, 4), max_size=40))
def test_nobody_is_overtaken_twice_by_one_person_and_nothing_is_lost(people: list[int]) -> None:
    items = [f"{'abcde'[person]}{number:02}" for number, person in enumerate(people)]
    order = drained(filled(items))
    assert sorted(order) == sorted(items)
    for person in "abcde":
        assert [item for item in order if item[0] == person] == [item for item in sorted(items) if item[0] == person]
    for position, item in enumerate(order):
        turns = sum(before[0] == item[0] for before in order[:position])
        assert all(sum(b[0] == other for b in order[:position]) <= turns + 1 for other in "abcde")


async def ready() -> None:
    """Let every task come as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


class Waiting:
    """People in a line that opens only when the test lets it."""

    def __init__(self, line: Line, *who: str) -> None:
        self.called: list[str] = []
        self.turns: dict[str, Turn] = {}
        self.tasks = []
        for name in who:
            self.turns[name] = line.join(name[0])
            self.tasks.append(asyncio.create_task(self._come(name)))

    async def _come(self, name: str) -> None:
        call = await self.turns[name].come()
        self.called.append(name if call is Call.GO else f"{name} {call.value}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is taken for let in just because time has passed."""
    monkeypatch.setattr(backpressure, "QUIET_SECONDS", 60.0)


async def test_one_goes_ahead_and_each_that_is_let_in_widens_the_way_by_one(quick: None) -> None:
    waiting = Waiting(Line(60), "a1", "a2", "b1", "b2", "c1", "c2")
    await ready()
    assert waiting.called == ["a1"]
    waiting.turns["a1"].let_in()
    await ready()
    assert waiting.called == ["a1", "b1", "c1"]
    waiting.turns["b1"].let_in()
    waiting.turns["b1"].over()
    await ready()
    assert waiting.called == ["a1", "b1", "c1", "a2", "b2"]


async def test_a_refusal_closes_the_line_for_as_long_as_it_says(quick: None) -> None:
    line = Line(60)
    waiting = Waiting(line, "a1", "b1")
    await ready()
    again = waiting.turns["a1"]
    again.refused(30)
    task = asyncio.create_task(again.come())
    await ready()
    assert (waiting.called, task.done(), line.retry_after) == (["a1"], False, 30)
    for turn in waiting.turns.values():
        turn.leave()
    assert await task is Call.LEFT
    await asyncio.gather(*waiting.tasks)
    assert not line.busy


async def test_who_leaves_is_out_at_once_and_holds_up_nobody(quick: None) -> None:
    line = Line(60)
    waiting = Waiting(line, "a1", "b1", "c1")
    await ready()
    waiting.turns["b1"].leave()
    waiting.turns["a1"].over()
    await ready()
    assert waiting.called == ["a1", "b1 left", "c1"]


async def test_who_left_before_their_turn_was_asked_for_does_not_wait() -> None:
    line = Line(60)
    turn = line.join("a")
    turn.leave()
    assert await turn.come() is Call.LEFT
    assert not line.busy


async def test_it_is_late_at_once_where_the_line_opens_only_afterwards(quick: None) -> None:
    line = Line(10)
    line.close(11)
    assert await line.join("a").come() is Call.LATE
    assert (line.busy, line.retry_after) == (False, 11)


async def test_time_is_up_for_who_is_not_called(quick: None) -> None:
    line = Line(0.01)
    waiting = Waiting(line, "a1", "b1")
    await asyncio.gather(*waiting.tasks)
    assert waiting.called == ["a1", "b1 late"]
    assert not line.busy


async def test_without_time_to_wait_nobody_does(quick: None) -> None:
    line = Line(0)
    line.close(None)
    assert await line.join("a").come() is Call.LATE


async def test_a_request_that_is_cancelled_while_it_waits_gives_its_place_up(quick: None) -> None:
    line = Line(60)
    waiting = Waiting(line, "a1", "b1", "c1")
    await ready()
    for task in waiting.tasks[1:2]:
        task.cancel()
    await asyncio.gather(waiting.tasks[1], return_exceptions=True)
    waiting.turns["a1"].over()
    await ready()
    assert waiting.called == ["a1", "c1"]


async def test_a_request_that_is_not_refused_soon_is_taken_for_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "QUIET_SECONDS", 0.0)
    waiting = Waiting(Line(60), "a1", "a2", "a3", "b1")
    await asyncio.gather(*waiting.tasks)
    assert waiting.called == ["a1", "b1", "a2", "a3"]


async def test_a_line_that_is_empty_again_begins_anew_with_one(quick: None) -> None:
    line = Line(60)
    first = Waiting(line, "a1", "b1")
    await ready()
    first.turns["a1"].let_in()
    await ready()
    first.turns["b1"].over()
    second = Waiting(line, "a2", "b2")
    await ready()
    assert second.called == ["a2"]
