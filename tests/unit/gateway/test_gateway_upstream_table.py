"""The table of upstream failures in the documentation, in the code, and in the simulator: one and the same."""

import re
from pathlib import Path

import msgspec
import pytest

from faregate.gateway.refusals import TABLE, Refusal, refusal_of
from faregate.gateway.sse import decode_object
from faregate.simulator.errors import ERROR_NAMES, Subject, before

PAGE = (Path(__file__).parents[3] / "docs/upstream.md").read_text(encoding="utf-8")
HEAD = (
    "| OpenRouter answers | the caller gets | `error.code` | `Retry-After` | what the gateway does | in the simulator |"
)


def rows() -> list[list[str]]:
    """The cells of the first table of the page."""
    lines = PAGE[PAGE.index(HEAD) :].splitlines()[2:]
    end = lines.index("")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def simulated(name: str) -> tuple[int, Refusal]:
    """The status that the simulator answers with, and what becomes of it."""
    problem = before(name, Subject("acme/model", "Acme", "Hello"))
    fields: dict[str, msgspec.Raw] = decode_object(problem.body) or {}
    delay = dict(problem.headers).get(b"retry-after")
    text = None if delay is None else delay.decode()
    return problem.status, refusal_of(problem.status, fields.get("error"), problem.body, text, "the help desk")


def test_the_documentation_has_the_rows_of_the_code_in_their_order() -> None:
    code = [
        [rule.name, str(rule.status or "the same"), f"`{rule.code}`" if rule.code else "its own", rule.then.value]
        for rule in TABLE
    ]
    assert [[name, status, slug, then] for name, status, slug, _, then, _ in rows()] == code


def test_every_error_of_the_simulator_is_in_one_row() -> None:
    named = [name for row in rows() for name in re.findall(r"`([^`]+)`", row[5])]
    assert sorted(named) == sorted(ERROR_NAMES)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_error_of_the_simulator_becomes_what_its_row_says(row: list[str]) -> None:
    _, status, code, retry, then, names = row
    for name in re.findall(r"`([^`]+)`", names):
        answered, refusal = simulated(name)
        assert refusal.status == (answered if status == "the same" else int(status)), name
        assert refusal.then.value == then, name
        if code != "its own":
            assert f"`{refusal.code}`" == code, name
        else:
            assert not refusal.code.startswith("upstream_a"), name
        if retry != "if told":
            assert ("retry-after" in refusal.headers) == (retry == "yes"), name


def test_a_key_that_openrouter_quotes_reaches_no_log() -> None:
    raw = b'{"code": 401, "message": "The key sk-or-v1-0123456789abcdef is not known"}'
    refusal = refusal_of(401, msgspec.Raw(raw), raw, None, "the help desk")
    assert "0123456789" not in f"{refusal.reason}{refusal.message}"
