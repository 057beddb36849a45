"""Keys of the simulator that something is wrong with."""

import msgspec
import pytest

from faregate.simulator.errors import Refused
from faregate.simulator.keys import KeyRing


def ring(**state: object) -> KeyRing:
    keys = KeyRing()
    keys.put(msgspec.json.encode({"key": "sk-or-a", **state}))
    return keys


def status(keys: KeyRing, key: str = "sk-or-a") -> int:
    """What a chat request with this key gets before any model sees it; 200 for none of it."""
    try:
        with keys.use(key):
            return 200
    except Refused as refused:
        return refused.problem.status


def test_a_key_fails_as_it_was_told_and_others_do_not() -> None:
    keys = ring(error="403-key")
    assert (status(keys), status(keys, "sk-or-b")) == (403, 200)


def test_a_key_without_a_fault_and_every_key_after_a_reset_is_well() -> None:
    keys = ring(error="401")
    assert keys.is_refused("sk-or-a")
    keys.put(b'{"key": "sk-or-a"}')
    assert (status(keys), keys.is_refused("sk-or-a")) == (200, False)
    keys = ring(error="401")
    keys.reset()
    assert status(keys) == 200


def test_more_at_once_than_a_key_may_have_is_refused_until_one_ends() -> None:
    keys = ring(in_flight=1, retry_after=7)
    with keys.use("sk-or-a"):
        with pytest.raises(Refused) as refused, keys.use("sk-or-a"):
            pass
        assert (b"retry-after", b"7") in refused.value.problem.headers
        assert b"in_flight_budget_exhausted" in refused.value.problem.body
    assert status(keys) == 200


@pytest.mark.parametrize("body", [b"", b"{}", b'{"key": "a", "error": "418"}', b'{"key": "a", "eror": "401"}'])
def test_a_mistake_in_a_test_is_not_taken_for_a_state(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        KeyRing().put(body)
    assert refused.value.problem.status == 400
