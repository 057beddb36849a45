"""Forms of claims and charges as the scripts read them, packed once for as long as they stay the same.

The lists are MessagePack, of text, whole numbers and booleans: `cmsgpack` of Redis 7.0 knows no bytes. A line names the
place of its amounts by number, from 1.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from faregate.ledger.forms import ChargeLine, ClaimLine, Form
from faregate.ledger.port import Counter
from faregate.ledger.redis.names import MOST, forgotten_at, known_as, packed_list, shape_of
from faregate.ledger.redis.standing import Learned
from faregate.policy.rulebook import Shape


class PackedClaims(NamedTuple):
    """The lines of claims as `lua/reserve.lua` reads them, and the counters that they are about."""

    counters: list[Counter]
    names: list[str]
    lines: bytes


def packed_claims(form: Form[ClaimLine]) -> PackedClaims:
    """The lines of `form`."""
    packed: PackedClaims | None = form.packed
    if packed is None:
        packed = form.packed = _packed_claims(form)
    return packed


def _packed_claims(form: Form[ClaimLine]) -> PackedClaims:
    number = _numbers(form.places)
    counters = [line.counter for line in form.lines]
    names: list[str] = []
    parts: list[str | int | bool] = []
    for counter, place, limit, enforce in form.lines:
        name, gone = known_as(counter)
        names.append(name)
        most = False if limit is None else min(limit, MOST)
        parts += (name, gone, number[place], most, enforce)
    return PackedClaims(counters, names, packed_list(parts))


class _PackedCharges(NamedTuple):
    learned: Mapping[Shape, Learned]
    until: float
    lines: bytes


def packed_charges(form: Form[ChargeLine], learned: Mapping[Shape, Learned], now: float) -> bytes:
    """The lines of `form` at `now` (epoch seconds) as `lua/settle.lua` reads them.

    Left out are parallel slots, which nobody can spend, counters of shapes that are not among `learned` yet, and those
    that nothing reads any more. `learned` has to be another object whenever it changes.
    """
    packed: _PackedCharges | None = form.packed
    if packed is None or packed.learned is not learned:
        until = min((forgotten_at(line.counter) for line in form.lines), default=math.inf)
        packed = form.packed = _PackedCharges(learned, until, _packed_charges(form, learned, -math.inf))
    return packed.lines if now < packed.until else _packed_charges(form, learned, now)


def _packed_charges(form: Form[ChargeLine], learned: Mapping[Shape, Learned], now: float) -> bytes:
    number = _numbers(form.places)
    parts: list[str | int | bool] = []
    for counter, place in form.lines:
        shape = learned.get(shape_of(counter))
        if shape is not None and counter.window is not None and now < forgotten_at(counter):
            parts += (*known_as(counter), number[place], shape.era)
    return packed_list(parts)


def _numbers(places: Iterable[int]) -> dict[int, int]:
    return {place: number for number, place in enumerate(places, 1)}
