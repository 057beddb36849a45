"""What time it is for the shared ledger: what Redis says, or the caller, who turns the hands."""

import time

from faregate.ledger.redis.names import micros


class LedgerClock:
    """The clock of one node's engine. `now` is what the last caller said, in epoch seconds."""

    def __init__(self, *, by_hand: bool) -> None:
        self.by_hand = by_hand
        self.now = 0.0 if by_hand else time.time()

    def time(self) -> float:
        """Epoch seconds, for what this node decides on its own."""
        return self.now if self.by_hand else time.time()

    def moment(self, at: float) -> bytes:
        """What a script is told as the moment `at`: nothing where it is Redis's own."""
        return micros(at) if self.by_hand else b""

    def here(self) -> bytes:
        """What a script is told is the time."""
        return self.moment(self.now)
