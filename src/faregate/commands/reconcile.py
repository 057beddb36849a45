"""`faregate reconcile`: one closed UTC day by our records and by OpenRouter's own, and the difference in dollars."""

import time
from collections.abc import Sequence
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from faregate.accounting.generation import AskFailed
from faregate.accounting.reconcile_day import NotClosed, agree, check_closed, day_before, total
from faregate.admin.formats import dollars
from faregate.app import management, open_store
from faregate.commands import console
from faregate.reconciling import TOLERANCE, reconcile_day
from faregate.settings import Settings, SettingsError
from faregate.store.errors import StoreError
from faregate.store.reconciliations import DayRow

_HEAD = ("model", "provider", "our requests", "theirs", "our cost", "theirs", "difference")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("it should be a day such as 2026-11-30") from None


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise typer.BadParameter("it should be dollars such as 0.01, or 0")
    return amount


def reconcile(
    day: Annotated[
        date | None,
        typer.Option(parser=_day, metavar="YYYY-MM-DD", help="A completed UTC day.", show_default="yesterday"),
    ] = None,
    tolerance: Annotated[
        Decimal, typer.Option(parser=_amount, metavar="DOLLARS", help="The largest difference that is none.")
    ] = TOLERANCE,
) -> None:
    """Compare a completed UTC day with OpenRouter's figures (needs OPENROUTER_MANAGEMENT_KEY).

    Exit code 0: no row and no total differs by more than the tolerance; 1: one does; 2: it could not be compared.
    """
    settings = console.settings()
    now = time.time()
    wanted = day_before(now) if day is None else day
    try:
        check_closed(wanted, now)
        rows, pending = console.run(_reconcile(settings, wanted, now))
    except (NotClosed, SettingsError, AskFailed, StoreError) as error:
        console.stop(error)
    good = agree(rows, tolerance)
    typer.echo(_report(wanted, rows, pending))
    typer.echo(f"{'No' if good else 'A'} difference is above the tolerance of ${dollars(tolerance)}.")
    if not good:
        raise typer.Exit(1)


async def _reconcile(settings: Settings, day: date, now: float) -> tuple[list[DayRow], int]:
    openrouter = management(settings)
    if openrouter is None:
        raise SettingsError(
            "OPENROUTER_MANAGEMENT_KEY should hold a management key of the OpenRouter account: "
            "only with one does OpenRouter tell what was spent"
        )
    store = await open_store(settings)
    try:
        return await reconcile_day(store, openrouter, day, now)
    finally:
        await store.close()


def _report(day: date, rows: Sequence[DayRow], pending: int) -> str:
    lines = [_HEAD, *(_line(row) for row in rows), _line(total(rows), "total")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"{day} (UTC), in dollars; a difference is what we charged more than OpenRouter.", ""]
    for line in lines:
        names = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        figures = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join((*names, *figures)))
    text.append("")
    if pending:
        text.append(f"{pending} of its requests are pending, and not in these sums: what they cost is not known yet.")
    return "\n".join(text)


def _line(row: DayRow, name: str | None = None) -> tuple[str, ...]:
    return (
        row.model if name is None else name,
        row.provider or ("?" if name is None else ""),
        str(row.our_requests),
        str(row.their_requests),
        dollars(row.our_cost),
        dollars(row.their_cost),
        f"{'+' if row.difference > 0 else ''}{dollars(row.difference)}",
    )
