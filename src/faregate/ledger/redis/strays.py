"""What Redis has under this node's name and this node does not know: the reply that told of it was lost."""

from collections.abc import Iterable


class Strays:
    """What is unknown now and was unknown one patience ago: nothing that is merely under way."""

    def __init__(self) -> None:
        self._since: dict[bytes, float] = {}

    def among(self, unknown: Iterable[bytes], now: float, patience: float) -> list[bytes]:
        """Those of `unknown` that have been so for `patience` seconds."""
        self._since = {key: self._since.get(key, now) for key in unknown}
        return [key for key, since in self._since.items() if now - since >= patience]
