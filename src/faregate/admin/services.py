"""What the admin API works with."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from faregate.directory import Directory
from faregate.ledger.port import Ledger
from faregate.policy.windows import Calendar
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The parts that the composition root hands over.

    `flush` writes what this node has accepted and not stored yet; `clock` gives seconds since the epoch.
    `changes` lets one administrator at a time change rules: what a change was checked against stays true.
    """

    store: Store
    directory: Directory
    ledger: Ledger
    calendar: Calendar
    admin_key: str = field(repr=False)
    flush: Callable[[], Awaitable[None]]
    clock: Callable[[], float]
    changes: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)


def _services(request: Request) -> AdminServices:
    services: AdminServices = request.app.state.services
    return services


async def _fresh(services: Annotated[AdminServices, Depends(_services)]) -> AdminServices:
    try:
        await services.flush()
    except StoreUnavailable as error:
        # A disk that is full can still be read. Where the database is away, the reading says so.
        log.warning("what is shown to the administrator lacks the latest: %s", error)
    return services


Services = Annotated[AdminServices, Depends(_services)]
Fresh = Annotated[AdminServices, Depends(_fresh)]
"""The services, after everything that this node has accepted can be read from the store, if it takes that now."""
