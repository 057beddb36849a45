"""Request ids that are over, remembered within bounds."""

from collections import OrderedDict


class Remembered:
    """The last `most` ids: memory stays flat however many requests pass.

    Bounded by number and not by age: a charge carries no clock, and an id that is forgotten too soon is charged twice.
    """

    __slots__ = ("_ids", "_most")

    def __init__(self, most: int) -> None:
        # Not a plain dict: finding its first key again and again steps over every key deleted before it.
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._most = most

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, request_id: str) -> None:
        """Remember `request_id` as the latest, and forget the earliest of too many."""
        self._ids[request_id] = None
        self._ids.move_to_end(request_id)
        if len(self._ids) > self._most:
            self._ids.popitem(last=False)
