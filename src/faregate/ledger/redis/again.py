"""Calls that are made again: most scripts may run twice, and one silence of Redis is no outage.

A server that shares its processors does not always answer in so little time. Whether it is away the link says, after a
few silences in a row (`Link.failure`); until then who may make a call twice makes it again, on a new connection.
"""

from collections.abc import Sequence
from typing import Any

from faregate.ledger.redis.link import CallTimeout, ConnectionLost, Link, NotSent, Part
from faregate.ledger.redis.scripts import Script

TRIES = 4
"""How often a call is made when it was not answered, or the ledger stands otherwise than was thought."""

AGAIN_AFTER = (CallTimeout, ConnectionLost, NotSent)
"""What is no reason to give up a call that may be made twice."""


async def insist(link: Link, script: Script, keys: Sequence[bytes], arguments: Sequence[Part]) -> Any:
    """Make a call that may be made twice, until it is answered. Raises `LedgerAway`."""
    for _ in range(TRIES - 1):
        try:
            return await link.call(script, keys, arguments)
        except AGAIN_AFTER:
            if link.failure is not None:
                raise
    return await link.call(script, keys, arguments)
