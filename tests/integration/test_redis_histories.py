"""The same random histories on the engine in Redis, and what only Redis can do: lose everything, or forget scripts."""

from collections.abc import Iterator
from itertools import count

import pytest
from histories import LEASE, Histories
from hypothesis import Phase, settings
from hypothesis.stateful import rule
from ledger_world import NODE, RecordsOf
from redis_server import RedisServer

from faregate.ledger.port import Counter
from faregate.ledger.redis import standing
from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.engine import SCRIPTS, RedisLedger
from faregate.ledger.redis.link import Link
from faregate.ledger.redis.names import forgotten_at

_numbers = count()
NO_SHRINK = (Phase.explicit, Phase.generate)
"""A history that fails is told as it was: to look for a shorter one takes minutes with a real server."""


class RedisHistories(Histories):
    server: RedisServer

    def open(self) -> RedisLedger:
        self.prefix = f"h{next(_numbers)}"
        dialer = dialer_for(self.server.url, slot_key=b"{h}", connect_timeout=5, name="test")
        self.link = Link(dialer, call_timeout=5, connect_timeout=5, load=SCRIPTS)
        ledger = RedisLedger(self.link, RecordsOf(self.model), NODE, prefix=self.prefix, clock_by_hand=True)
        self.run(self.start())
        return ledger

    async def start(self) -> None:
        self.link.start()

    def close(self) -> None:
        self.run(self.ledger.stop())
        self.run(self.link.close())

    def is_readable(self, counter: Counter) -> bool:
        return self.now < forgotten_at(counter)

    @rule()
    def redis_forgets_its_scripts(self) -> None:
        with self.server.client() as client:
            client.script_flush()

    @rule()
    def redis_loses_everything(self) -> None:
        with self.server.client() as client:
            client.delete(*client.scan_iter(f"{{{self.prefix}}}:*", count=1000), "nothing")
        # The first call that finds nothing, which the invariants make, has the counters built from the records, and
        # the holds brought back.
        for request in self.model.requests.values():
            request.expires_at = self.now + LEASE
            if not request.live:
                # What is over is known from the records alone now: see `Accountant.charge_late`.
                request.ended_at = float("-inf")


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    # One engine plays all nodes here: none of the others will ever say that its holds are back.
    standing.JOIN_PATIENCE, patience = 0.05, standing.JOIN_PATIENCE
    RedisHistories.server = RedisServer()
    RedisHistories.server.start()
    yield
    RedisHistories.server.remove()
    standing.JOIN_PATIENCE = patience


class TestRedisHistories(RedisHistories.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None, phases=NO_SHRINK)
