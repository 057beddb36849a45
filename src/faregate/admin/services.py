"""What the admin API works with."""

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


async def _no_other_node() -> None:
    """There is nobody else to follow or to tell."""


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The parts that the composition root hands over.

    `flush` writes what this node has accepted and not stored yet, `follow` takes over what other nodes have stored;
    both may raise `StoreUnavailable`. `changed` is awaited after each change of rules or people that the store and
    the directory have: the ledger learns the limits, and the other nodes are told. It must not raise `LedgerAway`:
    the change is made, and both happen later without it. `clock` gives seconds since the epoch.

    Who changes something holds `directory.changing` from the check to the end: on this node, what a change was
    checked against stays true. What other nodes do at the same time, the store checks.
    """

    store: Store
    directory: Directory
    ledger: Ledger
    calendar: Calendar
    admin_key: str = field(repr=False)
    flush: Callable[[], Awaitable[None]]
    clock: Callable[[], float]
    follow: Callable[[], Awaitable[None]] = _no_other_node
    changed: Callable[[], Awaitable[None]] = _no_other_node


def _services(request: Request) -> AdminServices:
    services: AdminServices = request.app.state.services
    return services


async def _fresh(services: Annotated[AdminServices, Depends(_services)]) -> AdminServices:
    for bring_up_to_date in (services.flush, services.follow):
        try:
            await bring_up_to_date()
        except StoreUnavailable as error:
            # A disk that is full can still be read. Where the database is away, the reading says so.
            log.warning("what is shown to the administrator lacks the latest: %s", error)
    return services


Fresh = Annotated[AdminServices, Depends(_fresh)]
"""The services, after everything that this node has accepted can be read from the store, and everything that the
store has is known to this node: if the store takes part now. What another node accepted a moment ago may be missing.
"""
