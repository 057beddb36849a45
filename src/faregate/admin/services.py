"""What the admin API works with."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from faregate.directory import Directory
from faregate.ledger.port import Ledger
from faregate.policy.rulebook import Shape
from faregate.policy.windows import Calendar
from faregate.store.errors import StoreUnavailable
from faregate.store.store import Store

PATIENCE = 3.0
"""Seconds to wait for a sign of life from the database before anything is read or changed."""

log = logging.getLogger(__name__)


async def _no_other_node() -> None:
    """There is nobody else to follow or to tell."""


async def _nothing_to_prepare(_shapes: Iterable[Shape]) -> None:
    """The ledger counts whatever it is asked for."""


@dataclass(frozen=True, slots=True)
class AdminServices:
    """The parts that the composition root hands over.

    `flush` writes what this node has accepted and not stored yet, `follow` takes over what other nodes have stored;
    both may raise `StoreUnavailable`. `changed` is awaited after each change of rules or people that the store and
    the directory have: the ledger learns the limits, and the other nodes are told. It must not raise `LedgerAway`:
    the change is made, and both happen later without it. `clock` gives seconds since the epoch.
    `prepare` has the ledger learn limits before any rule has them; like `changed` it must not raise `LedgerAway`.
    `jobs` are those that this node plans, with the seconds between two runs.

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
    prepare: Callable[[Iterable[Shape]], Awaitable[None]] = _nothing_to_prepare
    jobs: Mapping[str, float] = field(default_factory=dict)


def _services(request: Request) -> AdminServices:
    services: AdminServices = request.app.state.services
    return services


async def _fresh(services: Annotated[AdminServices, Depends(_services)]) -> AdminServices:
    # What is shown from memory may have changed elsewhere: without the database nobody knows.
    await services.store.ping(PATIENCE)
    try:
        await services.flush()
    except StoreUnavailable as error:
        # A disk that is full can still be read.
        log.warning("what is shown to the administrator lacks the latest: %s", error)
    await services.follow()
    return services


Fresh = Annotated[AdminServices, Depends(_fresh)]
"""The services, after everything that the store has is known to this node, and everything that this node has accepted
can be read from the store, if that can be written. What another node accepted a moment ago may be missing.

Raises `StoreUnavailable`, which is a 503, while the store cannot be read.
"""
