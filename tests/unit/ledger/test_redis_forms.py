"""Forms as the scripts read them: packed once, and anew when what they depend on has changed."""

from typing import Any

import msgspec
from ledger_world import NOON, counter

from faregate.ledger.forms import ChargeLine, ClaimLine, Form
from faregate.ledger.redis.forms import packed_charges, packed_claims
from faregate.ledger.redis.names import KEPT_AFTER_END, MOST, known_as, shape_of
from faregate.ledger.redis.standing import Learned
from faregate.policy.model import Meter, Window

HOUR = counter(window=Window.HOUR)
TOTAL = counter(window=Window.TOTAL)
TOKENS = counter(Meter.TOKENS, Window.TOTAL)
SLOTS = counter(Meter.CONCURRENT, None)
LEARNED = {shape_of(on): Learned(era, ready=True) for era, on in enumerate((HOUR, SLOTS, TOKENS, TOTAL), 1)}


def charge_form() -> Form[ChargeLine]:
    return Form([ChargeLine(HOUR, 2), ChargeLine(SLOTS, 0), ChargeLine(TOKENS, 1), ChargeLine(TOTAL, 2)])


def read(lines: bytes, width: int) -> list[list[Any]]:
    """The parts of each line."""
    parts = msgspec.msgpack.decode(lines)
    return [parts[first : first + width] for first in range(0, len(parts), width)]


def test_claims_are_packed_as_the_script_reads_them() -> None:
    form = Form([ClaimLine(TOTAL, 5, 10**18, True), ClaimLine(SLOTS, 3, None, True), ClaimLine(HOUR, 5, 7, False)])
    packed = packed_claims(form)
    assert packed.counters == [TOTAL, SLOTS, HOUR]
    assert packed.names == [known_as(on).name for on in packed.counters]
    assert read(packed.lines, 5) == [
        [*known_as(TOTAL), 1, MOST, True],
        [*known_as(SLOTS), 2, False, True],
        [*known_as(HOUR), 1, 7, False],
    ]


def test_charges_are_packed_without_what_nobody_can_spend() -> None:
    lines = packed_charges(charge_form(), LEARNED, NOON)
    assert read(lines, 4) == [[*known_as(HOUR), 1, 1], [*known_as(TOKENS), 3, 3], [*known_as(TOTAL), 1, 4]]


def test_what_is_packed_is_remembered() -> None:
    charges, claims = charge_form(), Form([ClaimLine(TOTAL, 0, 1, True)])
    assert packed_charges(charges, LEARNED, NOON) is packed_charges(charges, LEARNED, NOON + 1)
    assert packed_claims(claims) is packed_claims(claims)


def test_shapes_that_are_learned_later_are_charged_then() -> None:
    charges = charge_form()
    before = {shape_of(HOUR): Learned(1, ready=True)}
    assert read(packed_charges(charges, before, NOON), 4) == [[*known_as(HOUR), 1, 1]]
    assert len(read(packed_charges(charges, LEARNED, NOON), 4)) == 3


def test_a_window_that_is_long_over_is_left_out_until_the_clock_is_set_back() -> None:
    charges, over = charge_form(), HOUR.ends + KEPT_AFTER_END
    whole = packed_charges(charges, LEARNED, over - 0.25)
    assert len(read(whole, 4)) == 3
    assert read(packed_charges(charges, LEARNED, over), 4) == read(whole, 4)[1:]
    assert packed_charges(charges, LEARNED, over - 0.25) is whole
