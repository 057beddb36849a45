"""Requests of all kinds, good and bad, for as long as it takes to see that nothing of them stays.

`FAREGATE_SOAK_REQUESTS=1000000` makes it a million; a run prints its seed, `FAREGATE_CHAOS_SEED=...` repeats it.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from soak_world import AT_ONCE, Kept, Rest, SoakWorld
from visits import KINDS, mixture

from faregate.store.engine import POOL_SIZE

SEED = int(os.environ["FAREGATE_CHAOS_SEED"])
REQUESTS = int(os.environ.get("FAREGATE_SOAK_REQUESTS", "3000"))
ROUND = max(250, REQUESTS // 40)
ROUNDS = REQUESTS // ROUND
FLAT = 1.05
OBJECTS, BLOCKS = 60, 150
"""So many more after a round are none of the requests': now and then a statement is prepared on one connection more."""


class Look(NamedTuple):
    """What there is after a round, when nobody is there."""

    rest: Rest
    kept: Kept

    def __str__(self) -> str:
        files = ", ".join(f"{number} {what}" for what, number in sorted(self.rest.files.items()))
        kept = f"{self.kept.blocks} blocks, {self.kept.kinds.total()} objects ({self.kept.garbage} garbage before)"
        return f"{self.rest.resident / 1e6:.1f} MB resident; {kept}; open: {files}"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[SoakWorld]:
    print(f"\nseed {SEED}, {ROUNDS} rounds of {ROUND} requests")
    with SoakWorld(tmp_path, random.Random(SEED)) as world:
        yield world


def test_whatever_comes_nothing_of_it_stays_but_its_record(world: SoakWorld):
    looks: list[Look] = []
    for number in range(1, ROUNDS + 1):
        world.visit(mixture(ROUND))
        looks.append(Look(world.rest(), world.kept()))
        print(f"{number * ROUND:>8} requests: {looks[-1]}", flush=True)
        assert world.recorded() == world.billed()
        assert not world.holds()

    # What is made once for all has been made in the first half of a short run, in the first quarter of a long one.
    warm = looks[ROUNDS // 2 :] if ROUNDS < 20 else looks[ROUNDS // 4 :]
    assert resident(warm[len(warm) * 2 // 3 :]) < FLAT * resident(warm[: len(warm) // 3 + 1])
    assert not what_grows([look.kept for look in warm])
    for look in warm:
        # Of connections to upstream and to the database as many are kept as were of use at once.
        assert look.rest.files["upstream"] <= world.most_at_once + AT_ONCE
        assert look.rest.files["database"] <= POOL_SIZE
        assert others(look.rest) == others(warm[0].rest)
    assert "Traceback" not in world.gateway.process.output


def resident(looks: Sequence[Look]) -> float:
    return median(look.rest.resident for look in looks)


def others(rest: Rest) -> Counter[str]:
    return Counter({what: number for what, number in rest.files.items() if what not in ("upstream", "database")})


def what_grows(kept: Sequence[Kept]) -> dict[str, int]:
    """What three rounds of four leave more of, by the visit of some kind at least: objects by type, and blocks."""
    growths = [Counter(blocks=after.blocks - before.blocks) for before, after in pairwise(kept)]
    for growth, (before, after) in zip(growths, pairwise(kept), strict=True):
        growth.update(after.kinds)
        growth.subtract(before.kinds)
    usual = {what: sorted(growth[what] for growth in growths)[len(growths) // 4] for what in set().union(*growths)}
    rarest = ROUND * min(kind.share for kind in KINDS) // 100
    return {what: more for what, more in usual.items() if more >= max(rarest, BLOCKS if what == "blocks" else OBJECTS)}
