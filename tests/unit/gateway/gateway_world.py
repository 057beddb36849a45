"""A node's admission over its real parts, and a ledger that is away when the test says so."""

import json
from collections.abc import Sequence
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from faregate.accounting.accountant import Accountant
from faregate.accounting.outbox import Outbox
from faregate.accounting.reconciler import Reconciler
from faregate.accounting.spend import Spend
from faregate.directory import Directory, Person
from faregate.gateway.admission import Admission, Admitter
from faregate.gateway.errors import ApiError
from faregate.gateway.identity import Caller
from faregate.gateway.request import parse_chat
from faregate.ledger.memory import MemoryLedger
from faregate.ledger.port import Held, LedgerAway, Refused
from faregate.policy.model import Limit, Meter, Policy, Window
from faregate.policy.windows import Calendar
from faregate.pricing.catalogue import Catalogue
from faregate.records import UsageRecord
from faregate.settings import OnOutage

NOON = 1_795_435_200.0
UTC = Calendar(ZoneInfo("UTC"))
ADA = Person("owui", "ada", email="ada@example.com")
WHY = "Redis at cache.internal:6379 does not answer"
DOLLAR = 10**9
CHEAP = "acme/cheap"
TEN_CENTS = (Limit(Meter.USD, Window.DAY, DOLLAR // 10), Limit(Meter.CONCURRENT, None, 1))

catalogue = Catalogue.parse(
    json.dumps(
        {
            "data": [
                {
                    "id": model_id,
                    "context_length": 200_000,
                    "pricing": {"prompt": "0.000001", "completion": price},
                    "top_provider": {"max_completion_tokens": 64_000},
                }
                for model_id, price in ((CHEAP, "0.000001"), ("acme/dear", "0.0001"))
            ]
        }
    ).encode()
)


class Ledger(MemoryLedger):
    """A ledger that cannot be reached when the test says so."""

    failure: LedgerAway | None = None

    async def reserve(self, *arguments: Any, **more: Any) -> Held | Refused:
        if self.failure is not None:
            raise self.failure
        return await super().reserve(*arguments, **more)


class Database:
    """A database that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    async def write(self, people: Sequence[object], records: Sequence[UsageRecord]) -> Sequence[UsageRecord]:
        self.records += records
        return ()


class World:
    """A node's admission, over its real parts."""

    def __init__(self, on_outage: OnOutage) -> None:
        spend = Spend(UTC, NOON)
        self.ledger = Ledger(spend)
        self.database = Database()
        self.outbox = Outbox(self.database)
        self.directory = Directory((), (), (), changed=lambda user: None)
        self.accountant = Accountant(
            self.ledger, spend, self.outbox, Reconciler(self._ask), UTC, lambda: self.directory.rulebook
        )
        self.prices: Catalogue | None = catalogue
        self.admitter = Admitter(
            directory=self.directory,
            catalogue=lambda: self.prices,
            ledger=self.ledger,
            accountant=self.accountant,
            calendar=UTC,
            clock=lambda: NOON,
            node="node-1",
            salt=b"salt",
            contact="the help desk",
            on_outage=on_outage,
        )
        self._asked = 0

    def limit(self, *limits: Limit, **more: Any) -> None:
        """Give everybody this policy."""
        self.directory.put_policy(Policy("default", "Default", limits, **more))

    async def ask(self, model: str = CHEAP, **fields: Any) -> Admission:
        """One chat request of Ada."""
        self._asked += 1
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **fields}
        return await self.admitter.admit(
            f"r{self._asked}", Caller(ADA, None, None), parse_chat(json.dumps(body).encode())
        )

    async def refused(self, model: str = CHEAP, **fields: Any) -> ApiError:
        """The refusal of one."""
        with pytest.raises(ApiError) as refusal:
            await self.ask(model, **fields)
        return refusal.value

    async def last_record(self) -> UsageRecord:
        """What is on record of the last request."""
        await self.outbox.flush()
        return self.database.records[-1]

    async def _ask(self, generation_id: str) -> None:
        raise AssertionError("nothing has been asked for")
