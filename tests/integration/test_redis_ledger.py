"""The engine in Redis does what every engine does, on each server that is here."""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from conformance import LedgerConformance
from ledger_world import NODE, RecordsOf, SpentBefore
from redis_server import RedisServer, programs

from faregate.ledger.redis.dialer import dialer_for
from faregate.ledger.redis.engine import SCRIPTS, RedisLedger
from faregate.ledger.redis.link import Link

_numbers = count()


@pytest.fixture(scope="module", params=list(programs()))
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    running = RedisServer(programs()[request.param])
    running.start()
    yield running
    running.remove()


class TestRedisLedger(LedgerConformance):
    @pytest.fixture
    async def ledger(self, before: SpentBefore, server: RedisServer) -> AsyncIterator[RedisLedger]:
        link = Link(
            dialer_for(server.url, slot_key=b"{t}", connect_timeout=2, name="test"),
            call_timeout=2,
            connect_timeout=2,
            load=SCRIPTS,
        )
        ledger = RedisLedger(link, RecordsOf(before), NODE, prefix=f"t{next(_numbers)}", clock_by_hand=True)
        link.start()
        yield ledger
        await ledger.stop()
        await link.close()
