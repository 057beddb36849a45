"""The figures of a record: exact, rounded up, never under the truth."""

from decimal import Decimal

import pytest
from accounting_world import facts_of, record_of, unknown_of
from hypothesis import given
from hypothesis import strategies as st

from faregate.accounting.figures import (
    NODE_STOPPED,
    ended,
    estimated,
    from_generation,
    orphan,
    pending_row,
    unsettled_row,
    with_cost,
    with_known_tokens,
)
from faregate.accounting.generation import Generation
from faregate.ledger.port import Hold
from faregate.records import Source, Status, altered

OUTCOMES = (Status.COMPLETED, Status.FAILED, Status.ABORTED)


def test_a_cost_is_kept_to_the_last_of_twelve_decimals_and_charged_rounded_up():
    record = with_cost(unknown_of(), Decimal("0.0000057915"), Source.USAGE)

    assert record.cost == Decimal("0.000005791500")
    assert record.cost_nano == 5792
    assert record.source is Source.USAGE


def test_what_is_smaller_than_a_record_keeps_is_rounded_up_not_away():
    record = with_cost(unknown_of(), Decimal("1e-15"), Source.GENERATION)

    assert (record.cost, record.cost_nano) == (Decimal("0.000000000001"), 1)


@pytest.mark.parametrize("nonsense", ["-0.01", "NaN", "Infinity"])
def test_nothing_that_is_not_a_cost_becomes_one(nonsense):
    with pytest.raises(ValueError, match="zero or more"):
        with_cost(unknown_of(), Decimal(nonsense), Source.USAGE)


@given(pico=st.integers(0, 10**16))
def test_the_charge_is_never_under_the_cost_and_never_a_whole_nano_dollar_above(pico):
    record = with_cost(unknown_of(), Decimal(pico).scaleb(-12), Source.USAGE)

    assert 0 <= record.cost_nano * 1000 - pico < 1000


@pytest.mark.parametrize("status", OUTCOMES)
@pytest.mark.parametrize("reason", [None, "the person closed the tab"])
def test_a_pending_row_remembers_how_the_request_ended(status, reason):
    record = unknown_of(status=status, reason=reason)
    row = pending_row(record)

    assert (row.status, row.outcome, row.cost, row.cost_nano) == (Status.PENDING, status, None, 0)
    assert ended(row) == record


@given(pico=st.integers(0, 10**16), source=st.sampled_from([None, *Source]), status=st.sampled_from(OUTCOMES))
def test_a_row_that_waits_for_the_ledger_alone_keeps_what_it_cost(pico, source, status):
    record = altered(with_cost(unknown_of(status=status), Decimal(pico).scaleb(-12), Source.USAGE), source=source)
    row = unsettled_row(record)

    assert (row.status, row.outcome, row.cost, row.source) == (Status.PENDING, status, record.cost, source)
    assert row.cost_nano == 0
    assert ended(row) == record


def test_a_pending_row_of_somebody_else_counts_as_failed():
    row = unknown_of(status=Status.PENDING, reason="written by hand")

    assert ended(row).status is Status.FAILED
    assert ended(row).reason == "written by hand"


def test_an_estimate_without_tokens_is_the_bound_of_the_hold_in_dollars_and_in_tokens():
    record = estimated(unknown_of())

    assert record.cost_nano == record.facts.bound_nano() == 7_000
    assert record.cost == Decimal("0.000007")
    assert (record.prompt_tokens, record.completion_tokens, record.total_tokens) == (50, 100, 150)
    assert (record.source, record.status) == (Source.ESTIMATE, Status.ABORTED)


def test_an_estimate_with_tokens_is_these_at_the_prices_of_the_hold():
    record = estimated(record_of(tokens=30))

    assert record.cost_nano == 5_000 + 20 * 20
    assert record.total_tokens == 30


def test_what_openrouter_tells_afterwards_replaces_what_was_not_known():
    told = Generation(
        cost=Decimal("0.04"),
        model="openai/gpt-4o-2024-11-20",
        provider="OpenAI",
        prompt_tokens=49,
        completion_tokens=71,
        cached_tokens=7,
        reasoning_tokens=3,
    )
    record = from_generation(unknown_of(), told)

    assert (record.cost, record.cost_nano, record.source) == (Decimal("0.04"), 40_000_000, Source.GENERATION)
    assert (record.prompt_tokens, record.completion_tokens, record.total_tokens) == (49, 71, 120)
    assert (record.cached_tokens, record.reasoning_tokens) == (7, 3)
    assert (record.served_model, record.provider) == ("openai/gpt-4o-2024-11-20", "OpenAI")
    assert record.status is Status.ABORTED


def test_the_model_named_in_the_answer_stays_because_patterns_know_that_name():
    record = record_of(served="openai/gpt-4o")
    told = Generation(cost=Decimal(0), model="openai/gpt-4o-2024-11-20")

    assert from_generation(record, told).served_model == "openai/gpt-4o"


def test_tokens_that_were_known_stay_where_openrouter_tells_none_afterwards():
    record = altered(record_of(), prompt_tokens=0, completion_tokens=0, total_tokens=30)

    assert from_generation(record, Generation(cost=Decimal(0))).total_tokens == 30


def test_a_generation_without_a_cost_settles_nothing():
    assert from_generation(unknown_of(), Generation(prompt_tokens=1, completion_tokens=2)) is None


def test_half_of_the_tokens_is_not_enough_to_estimate_on():
    half = with_known_tokens(unknown_of(), Generation(prompt_tokens=10))
    both = with_known_tokens(unknown_of(), Generation(prompt_tokens=10, completion_tokens=4))

    assert estimated(half).cost_nano == 7_000
    assert estimated(both).cost_nano == 5_000 + 4 * 20


def test_a_hold_whose_node_stopped_becomes_a_failed_request_that_can_be_asked_about():
    hold = Hold(facts_of(), "node-1", expires_at=0.0, cap=100, generation_id="gen-9")
    record = orphan(hold)

    assert (record.status, record.generation_id, record.cost) == (Status.FAILED, "gen-9", None)
    assert record.reason == NODE_STOPPED
