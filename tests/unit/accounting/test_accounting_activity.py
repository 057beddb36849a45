"""OpenRouter's activity is read to the last digit, or not at all."""

import json
from datetime import date
from decimal import Decimal

import pytest

from faregate.accounting.activity import Activity, activity_path, parse_activity
from faregate.accounting.generation import AskFailed

DAY = date(2026, 11, 22)
# As in the API reference, with what a sum of binary fractions looks like.
ROW = (
    '{"date":"2026-11-22","model":"openai/gpt-4.1","model_permaslug":"openai/gpt-4.1-2025-04-14","endpoint_id":"e",'
    '"provider_name":"OpenAI","usage":0.30000000000000004,"byok_usage_inference":1e-7,"requests":5,"prompt_tokens":50,'
    '"completion_tokens":125,"reasoning_tokens":25}'
)


def answer(*rows: str) -> bytes:
    return f'{{"data":[{",".join(rows)}]}}'.encode()


def changed(**fields: object) -> str:
    return json.dumps({name: value for name, value in (json.loads(ROW) | fields).items() if value is not ...})


def test_one_day_is_asked_for():
    assert activity_path(DAY) == b"/activity?date=2026-11-22"


def test_a_row_costs_what_left_the_balance_and_what_the_provider_billed_directly():
    cost = Decimal("0.30000010000000004")
    assert parse_activity(answer(ROW), DAY) == [
        Activity("openai/gpt-4.1", "openai/gpt-4.1-2025-04-14", "OpenAI", 5, cost)
    ]


def test_a_day_without_activity_has_no_rows():
    assert parse_activity(answer(), DAY) == []


def test_rows_of_other_days_are_not_of_this_one():
    assert parse_activity(answer(changed(date="2026-11-21"), changed(date="2026-11-23")), DAY) == []


def test_a_date_may_have_a_time_behind_it():
    assert len(parse_activity(answer(changed(date="2026-11-22 00:00:00")), DAY)) == 1


def test_what_is_not_told_of_byok_and_of_the_dated_name_is_nothing_and_the_id():
    for absent in (..., None):
        (row,) = parse_activity(answer(changed(byok_usage_inference=absent, model_permaslug=absent, usage=1)), DAY)
        assert (row.permaslug, row.cost) == ("openai/gpt-4.1", Decimal(1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"data":{}}',
        b'{"data":[1]}',
        b"[" * 100_000,
        answer(changed(date=...)),
        answer(changed(model="")),
        answer(changed(provider_name=None)),
        answer(changed(usage=...)),
        answer(changed(usage="0.3")),
        answer(changed(usage=True)),
        answer(ROW.replace("0.30000000000000004", "1e99")),
        answer(changed(requests=None)),
        answer(changed(requests=2**60)),
        answer(ROW, changed(byok_usage_inference=[])),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_answer(body: bytes):
    with pytest.raises(AskFailed, match=r"^OpenRouter's answer about its activity"):
        parse_activity(body, DAY)
