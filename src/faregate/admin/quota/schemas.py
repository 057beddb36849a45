"""The state of one counter, as the admin API says it."""

from typing import Self

from pydantic import BaseModel

from faregate.admin.formats import instant
from faregate.ledger.port import Balance, Counter
from faregate.policy.model import Meter, Scope, Window
from faregate.policy.money import usd_decimal


class QuotaOut(BaseModel):
    """A limit and how much of it is gone: dollars as decimal strings, tokens and requests as integers.

    `held` is reserved by requests under way. `group` is whose pool it is, for the scope `group`. `resets_at` is null
    where nothing resets: `total`, the sliding `minute`, and parallel requests.
    """

    meter: Meter
    window: Window | None
    scope: Scope
    group: str | None
    models: tuple[str, ...]
    limit: str | int
    used: str | int
    held: str | int
    remaining: str | int
    resets_at: str | None

    @classmethod
    def of(cls, counter: Counter, limit: int, balance: Balance) -> Self:
        """`counter` under `limit`, in the words of the API."""

        def amount(value: int) -> str | int:
            return usd_decimal(value) if counter.meter is Meter.USD else value

        return cls(
            meter=counter.meter,
            window=counter.window,
            scope=counter.scope,
            group=counter.scope_id if counter.scope is Scope.GROUP else None,
            models=counter.models,
            limit=amount(limit),
            used=amount(balance.used),
            held=amount(balance.held),
            remaining=amount(max(0, limit - balance.used - balance.held)),
            resets_at=instant(counter.ends) if counter.ends else None,
        )
