"""Our records of a closed UTC day beside what OpenRouter says that it charged: for the command and the daily job."""

import logging
from collections.abc import Awaitable, Callable
from datetime import date
from decimal import Decimal

from faregate.accounting.activity import MOST_BYTES, Activity, activity_path, parse_activity
from faregate.accounting.generation import AskFailed
from faregate.accounting.reconcile_day import agree, bounds, compare, day_before, total
from faregate.gateway.http1 import UpstreamFailure
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.store.reconciliations import DayRow
from faregate.store.store import Store

TOLERANCE = Decimal("0.01")
"""The largest difference, in dollars, that is none."""

COMPLETE_SECONDS = 7200.0
"""How long after midnight a day may still be incomplete at OpenRouter."""

log = logging.getLogger(__name__)


async def reconcile_day(store: Store, openrouter: UpstreamSettings, day: date, now: float) -> tuple[list[DayRow], int]:
    """Compare `day`, which is closed at `now` (epoch seconds), and keep the result: its rows, and what is pending.

    `openrouter` has the management key as its key. Raises `AskFailed` and `StoreUnavailable`.
    """
    theirs = await _ask(openrouter, day)
    ours, pending = await store.charged(*bounds(day))
    rows = compare(ours, theirs)
    await store.save_reconciliation(day, rows, now)
    return rows, pending


def daily(store: Store, openrouter: UpstreamSettings) -> Callable[[float], Awaitable[str]]:
    """A job that compares the last day that is complete at a moment (epoch seconds), and says what came of it.

    A difference above `TOLERANCE` is an error in the log.
    """

    async def compare_latest(now: float) -> str:
        day = day_before(now - COMPLETE_SECONDS)
        try:
            rows, pending = await reconcile_day(store, openrouter, day, now)
        except AskFailed as error:
            return f"{day} could not be compared: {error}"
        sums = total(rows)
        said = f"{day}: we charged ${sums.our_cost:f}, OpenRouter ${sums.their_cost:f}"
        if pending:
            said += f"; {pending} requests are pending"
        if not agree(rows, TOLERANCE):
            said += "; models or providers differ: see faregate reconcile"
            log.error("records and OpenRouter differ. %s", said)
        return said

    return compare_latest


async def _ask(openrouter: UpstreamSettings, day: date) -> list[Activity]:
    upstream = Upstream(openrouter)
    try:
        status, body = await upstream.get_json(activity_path(day), MOST_BYTES)
    except UpstreamFailure as failure:
        raise AskFailed(f"OpenRouter could not be asked ({failure}): try again later") from failure
    finally:
        upstream.close()
    if status in (401, 403):
        raise AskFailed(
            f"OPENROUTER_MANAGEMENT_KEY should be a management key, and {openrouter.base_url} refuses it "
            f"(HTTP {status}): create one"
        )
    if status != 200:
        raise AskFailed(
            f"{openrouter.base_url} answers HTTP {status} when asked for its activity of {day}: try again later"
        )
    return parse_activity(body, day)
