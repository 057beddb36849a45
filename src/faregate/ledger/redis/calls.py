"""Calls to the scripts of the ledger, each made in the epoch and era that this node knows."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from faregate.ledger.port import Counter, LedgerAway
from faregate.ledger.redis.again import AGAIN_AFTER, TRIES
from faregate.ledger.redis.link import Link, NotSent, Opening
from faregate.ledger.redis.names import Keys
from faregate.ledger.redis.scripts import Script
from faregate.ledger.redis.standing import Standing


class Calls:
    """What a script is told before anything else is where the ledger stands; it changes nothing if that is stale."""

    def __init__(self, link: Link, standing: Standing, keys: Keys) -> None:
        self._link = link
        self._standing = standing
        self._state = keys.state

    def once(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Any]) -> asyncio.Future[Any]:
        """Make one call. The reply is `stale` if the ledger stands otherwise. Raises `LedgerAway`."""
        standing = self._standing
        return self._link.call(script, [self._state, *keys], [standing.state, standing.namespace, *arguments])

    def opened(self, script: Script, keys: Sequence[bytes]) -> "OpenedCalls":
        """Many calls of `script` with three arguments each, on the same keys."""
        return OpenedCalls(self._link, self._standing, script, [self._state, *keys])

    def repeat(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[Any],
        counters: Sequence[Counter] = (),
        names: Sequence[str] = (),
    ) -> Coroutine[Any, Any, Any]:
        """Make a call that may be repeated: see `insist`."""
        return self.insist(lambda: self.once(script, keys, arguments), counters, names)

    async def insist(
        self, call: Callable[[], asyncio.Future[Any]], counters: Sequence[Counter], names: Sequence[str]
    ) -> Any:
        """Make `call`, which may be repeated, until the ledger stands as was thought, and has `counters`.

        `names` are those of the counters. Raises `LedgerAway`.
        """
        standing, lost = self._standing, None
        for attempt in range(TRIES):
            # Each time, and in one step with the call: in a new epoch they may be there and not built yet.
            if not standing.has(names):
                try:
                    await standing.ready(counters)
                except LedgerAway as error:
                    raise lost or NotSent(str(error)) from error
            epoch = standing.epoch
            try:
                reply = await call()
            except AGAIN_AFTER as error:
                if not isinstance(error, NotSent):
                    lost = error
                if attempt == TRIES - 1 or self._link.failure is not None:
                    raise lost or error from None
                continue
            if reply[0] == b"stale":
                standing.doubt()
            elif standing.epoch == epoch:
                return reply
            # Else a server that was left has answered late, and this node has been to the new epoch without it.
        raise lost or LedgerAway("the counters in Redis change too fast to be counted on")


class OpenedCalls:
    """Calls of one script on the same keys: what they begin with is packed once for as long as the ledger stands so."""

    def __init__(self, link: Link, standing: Standing, script: Script, keys: Sequence[bytes]) -> None:
        self._link = link
        self._standing = standing
        self._script = script
        self._keys = keys
        self._opening: Opening | None = None
        self._opened_for = b""

    def once(self, first: bytes, second: bytes, third: bytes) -> asyncio.Future[Any]:
        """Make one call: see `Calls.once`."""
        standing, opening = self._standing, self._opening
        if opening is None or self._opened_for != standing.state:
            opening = self._opening = Opening(self._script, self._keys, [standing.state, standing.namespace])
            self._opened_for = standing.state
        return self._link.send(opening, first, second, third)
