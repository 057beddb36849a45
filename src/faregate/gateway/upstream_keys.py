"""Which key a request goes upstream with: by weight, past those that OpenRouter does not take at the moment.

Pure: times are given by the caller, in seconds of one monotonic clock. A key that is out is passed over while another
is up. Where all are out, the one that is due first is asked all the same: only OpenRouter knows whether a key is back,
and a guess of ours must not close the service. So a single key is always asked.
"""

from collections.abc import Collection, Mapping, Sequence

from faregate.settings import UpstreamKey

FIRST_REST = 5.0
"""Seconds for which a key is left out after the first refusal; each further one doubles them."""
LONGEST_REST = 600.0
PROBE_SECONDS = 5.0
"""A key whose time is over is tried by one request at a time, and by the next after so many seconds."""
ALARM_SECONDS = 600.0
"""A key that goes in and out raises no more than one alarm in this time."""


class Key:
    """One key and how it fares. `authorization` is its header line."""

    __slots__ = ("_alarmed_at", "authorization", "credit", "due", "name", "out_since", "refusals", "weight", "why")

    def __init__(self, key: UpstreamKey) -> None:
        self.name = key.name
        self.weight = key.weight
        self.authorization = b"authorization: Bearer %b\r\n" % key.key.get_secret_value().encode()
        self.credit = 0
        self.due = float("-inf")
        self.out_since = float("-inf")
        self.refusals = 0
        self.why: str | None = None
        self._alarmed_at = float("-inf")

    def is_alarming(self, now: float) -> bool:
        """Whether somebody should hear of it; asking means that they do."""
        alarming = now - self._alarmed_at >= ALARM_SECONDS
        if alarming:
            self._alarmed_at = now
        return alarming


class UpstreamKeys:
    """The keys of one account, and the choice between them: smooth weighted round robin."""

    def __init__(self, keys: Sequence[UpstreamKey]) -> None:
        self._keys = [Key(key) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def choose(self, now: float, tried: Collection[Key] = ()) -> Key | None:
        """The key for the next request; None if it has been `tried` on every one that is up, and on one at least."""
        if not tried and len(self._keys) == 1:
            return self._keys[0]
        up = [key for key in self._keys if key.due <= now and key not in tried]
        if not up:
            return None if tried else min(self._keys, key=lambda key: key.due)
        for key in up:
            key.credit += key.weight
        chosen = max(up, key=lambda key: key.credit)
        chosen.credit -= sum(key.weight for key in up)
        if chosen.refusals:
            chosen.due = now + PROBE_SECONDS
        return chosen

    def by_standing(self) -> list[Key]:
        """All keys, for what costs nothing: those that OpenRouter takes first, then those that are due first."""
        return sorted(self._keys, key=lambda key: (key.refusals > 0, key.due if key.refusals else 0.0))

    def worked(self, key: Key, asked_at: float) -> bool:
        """A request that was sent at `asked_at` was answered. Whether `key` was out until now."""
        if not key.refusals or asked_at < key.out_since:
            return False
        key.refusals, key.why, key.due = 0, None, asked_at
        return True

    def refused(self, key: Key, asked_at: float, now: float, why: str) -> bool:
        """OpenRouter does not take `key`: leave it out, longer each time. Whether an alarm is due.

        `asked_at` is when the request was sent: what was under way when the key went out tells nothing new.
        """
        if key.refusals and asked_at < key.out_since:
            return False
        alarming = key.refusals == 0 and key.is_alarming(now)
        key.due = now + min(LONGEST_REST, FIRST_REST * 2.0 ** min(key.refusals, 16))
        key.out_since = now
        key.refusals += 1
        key.why = why
        return alarming

    def rest(self, key: Key, now: float, seconds: float) -> None:
        """OpenRouter asked not to be asked with `key` for so many seconds."""
        key.due = max(key.due, now + min(LONGEST_REST, seconds))

    def up(self, now: float) -> Mapping[str, bool]:
        """By name: whether it takes its share of requests."""
        return {key.name: not key.refusals and key.due <= now for key in self._keys}

    def out(self) -> Mapping[str, str]:
        """By name: why OpenRouter does not take it, for those that it does not."""
        return {key.name: key.why or "" for key in self._keys if key.refusals}
