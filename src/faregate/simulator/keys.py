"""What is wrong with single keys of the simulator, as a test sets it: `POST /_simulator/keys`."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec

from faregate.simulator.errors import ERROR_NAMES, Refused, Subject, before, in_flight, refuse

_NOBODY = Subject(model="", provider="")


class KeyState(msgspec.Struct, forbid_unknown_fields=True):
    """How chat requests with `key` fare: each gets `error`, or all but `in_flight` at once are one too many.

    `retry_after` (seconds) is what those that are one too many are told. A key without either is well again.
    """

    key: str
    error: str | None = None
    in_flight: Annotated[int, msgspec.Meta(ge=0)] | None = None
    retry_after: Annotated[int, msgspec.Meta(ge=0)] = 1


class KeyRing:
    """The keys that something is wrong with, and how many requests each key has under way."""

    def __init__(self) -> None:
        self._states: dict[str, KeyState] = {}
        self._under_way: Counter[str] = Counter()

    def put(self, body: bytes) -> None:
        """Take the state of a key. Raises Refused (400) when it is none."""
        try:
            state = msgspec.json.decode(body, type=KeyState)
        except msgspec.DecodeError as error:
            raise refuse(400, f"Not the state of a key: {error}") from None
        if state.error is not None and state.error not in ERROR_NAMES:
            raise refuse(
                400, f"The simulator knows no error {state.error}: it should be one of {', '.join(ERROR_NAMES)}"
            )
        self._states[state.key] = state

    @contextmanager
    def use(self, key: str) -> Iterator[None]:
        """While a chat request with `key` is under way. Raises Refused when OpenRouter would not take it now."""
        state = self._states.get(key)
        if state is not None:
            if state.error is not None:
                raise Refused(before(state.error, _NOBODY))
            if state.in_flight is not None and self._under_way[key] >= state.in_flight:
                raise Refused(in_flight(state.retry_after))
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1

    def is_refused(self, key: str) -> bool:
        """Whether `key` gets 401, whatever is asked."""
        state = self._states.get(key)
        return state is not None and state.error == "401"

    def reset(self) -> None:
        """All keys are well again."""
        self._states.clear()
