"""Whether a request has its final record in the database: many who ask at once share one question."""

import asyncio

import pytest
from accounting_world import FarStore, others_run, record_of

from faregate.accounting.finals import ASKED_AT_ONCE, Finals
from faregate.store.errors import StoreUnavailable


class Asked:
    """A database that answers when the test lets it, and notes what it was asked."""

    def __init__(self, *settled):
        self.final = set(settled)
        self.questions = []
        self.answering = asyncio.Event()

    async def settled(self, ids):
        self.questions.append(ids)
        known = self.final.intersection(ids)
        await self.answering.wait()
        return known


async def test_each_is_answered_about_its_own_request():
    far = FarStore()
    await far.write([], [record_of("a"), record_of("c")])
    finals = Finals(far)

    assert await asyncio.gather(*(finals.has(name) for name in "abcd")) == [True, False, True, False]


async def test_those_who_ask_together_share_one_question():
    rows = Asked("r1")
    finals = Finals(rows)
    rows.answering.set()
    answers = await asyncio.gather(*(finals.has(f"r{number % 100}") for number in range(200)))

    assert answers.count(True) == 2
    assert [len(ids) for ids in rows.questions] == [100]


async def test_a_question_is_about_so_many_at_most():
    rows = Asked()
    rows.answering.set()
    finals = Finals(rows)
    await asyncio.gather(*(finals.has(f"r{number}") for number in range(2 * ASKED_AT_ONCE + 1)))

    assert [len(ids) for ids in rows.questions] == [ASKED_AT_ONCE, ASKED_AT_ONCE, 1]


async def test_an_answer_is_never_older_than_its_question():
    rows = Asked()
    finals = Finals(rows)
    early = asyncio.ensure_future(finals.has("a"))
    await others_run()
    rows.final.add("a")
    late = asyncio.ensure_future(finals.has("a"))
    await others_run()
    rows.answering.set()

    assert (await early, await late) == (False, True)


async def test_a_database_that_is_away_is_told_to_all_who_asked_and_asked_again_by_the_next():
    far = FarStore()
    finals = Finals(far)
    far.away = True
    told = await asyncio.gather(finals.has("a"), finals.has("b"), return_exceptions=True)
    assert [type(error) for error in told] == [StoreUnavailable] * 2

    far.away = False
    assert not await finals.has("a")


async def test_one_who_no_longer_waits_does_not_keep_the_others_from_their_answer():
    rows = Asked("a")
    finals = Finals(rows)
    gone, stays = asyncio.ensure_future(finals.has("a")), asyncio.ensure_future(finals.has("a"))
    await others_run()
    gone.cancel()
    rows.answering.set()

    assert await stays
    with pytest.raises(asyncio.CancelledError):
        await gone
