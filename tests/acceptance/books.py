"""What is waited for, and looked at, when requests have ended: records that are settled, counters without holds."""

import time
from collections.abc import Callable
from decimal import Decimal

from commands import DEADLINE, Gateway
from open_webui import Person

DAY = {"meter": "usd", "window": "day", "amount": "100"}
AT_ONCE = {"meter": "concurrent", "amount": 5}


def until(condition: Callable[[], object]) -> None:
    """Ask again until it is so: what is waited for happens in another process, which tells nobody."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def settled(gateway: Gateway, person: Person, count: int = 1) -> list[dict[str, object]]:
    """All records of a person, so many, once what they cost is known."""

    def done() -> bool:
        records = gateway.usage(user=person.email)
        return len(records) == count and all(record["status"] != "pending" for record in records)

    until(done)
    return gateway.usage(user=person.email)


def assert_nothing_is_held(gateway: Gateway, person: Person, spent: Decimal) -> None:
    quota = {entry["meter"]: entry for entry in gateway.quota(person.email)}
    assert Decimal(quota["usd"]["used"]) == spent
    assert Decimal(quota["usd"]["held"]) == 0
    assert (quota["concurrent"]["used"], quota["concurrent"]["held"]) == (0, 0)
