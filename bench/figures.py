"""The figures: what was found in each run, what it is compared with, and the goal."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MOST_FAILED = 0.001
"""With more of them failed, a figure says nothing about a goal: a refusal is cheap."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a figure of Faregate, run by run, and of what it is compared with in the same runs."""

    name: str
    unit: str
    faregate: Sequence[float]
    beside: Sequence[float] = ()
    beside_name: str = "nginx"
    most: float | None = None
    """The goal: no more than this. Of the ratio where there is one, if not `of_figure`."""
    of_figure: bool = False
    divided: bool = True
    """Whether the ratio of the two says anything."""
    failed: float = 0.0
    """The share of Faregate's requests that were not answered as they should be."""
    notes: Sequence[str] = field(default=())

    @property
    def ratios(self) -> list[float]:
        """Run by run: both were measured one right after the other, with the same neighbours on the machine.

        None where it says nothing, or there is nothing to divide by.
        """
        if not self.divided or min(self.beside, default=0) <= 0:
            return []
        return [ours / theirs for ours, theirs in zip(self.faregate, self.beside, strict=True)]

    @property
    def goal(self) -> str:
        """The goal as people read it."""
        if self.most is None:
            return ""
        return f"<= {self.most:g} {self.unit}" if self.of_figure else f"<= {self.most:g}x"

    @property
    def reached(self) -> bool | None:
        """Whether the median reaches the goal, with hardly a request that failed; None if there is no goal."""
        if self.most is None:
            return None
        if self.failed > MOST_FAILED:
            return False
        return statistics.median(self.faregate if self.of_figure else self.ratios) <= self.most


class Figures:
    """All rows, shown as they come, as a table, and kept as JSON."""

    def __init__(self, machine: dict[str, Any]) -> None:
        self.machine = machine
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Keep a row, and show it at once: the next may be minutes away."""
        self.rows.append(row)
        notes = f"  ({'; '.join(row.notes)})" if row.notes else ""
        line = f"{row.name}: {spread(row.faregate)} {row.unit}{_beside(row)}{notes}"
        print(line, file=sys.stderr, flush=True)

    def show(self) -> None:
        """As a table, for people."""
        about = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        table = Table(title=f"{about}\nmedian (least - most) of the runs", title_justify="left")
        for column in ("what", "unit", "Faregate", "beside it", "ratio", "goal", ""):
            table.add_column(column, justify="left" if column in ("what", "unit", "") else "right")
        for row in self.rows:
            beside = f"{spread(row.beside)} {row.beside_name}" if row.beside else ""
            ratio = f"{spread(row.ratios)}x" if row.ratios else ""
            verdict = {None: "", True: "reached", False: "missed"}[row.reached]
            table.add_row(row.name, row.unit, spread(row.faregate), beside, ratio, row.goal, verdict)
        Console(width=170).print(table)
        for row in self.rows:
            for note in row.notes:
                print(f"{row.name}: {note}")

    def keep(self, file: Path) -> dict[str, Any]:
        """Put these rows in `file`, in the place of older ones with their names; all that is there now.

        Each row has its own comparison, from the same runs, and says when and on what it was measured.
        """
        kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        at = time.strftime("%Y-%m-%d", time.gmtime())
        for row in self.rows:
            about = {
                "ratio": _summary(row.ratios),
                "goal": row.goal,
                "reached": row.reached,
                "at": at,
                "machine": self.machine,
            }
            kept[row.name] = asdict(row) | about
            del kept[row.name]["name"]
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(kept, indent=1) + "\n")
        return kept


def spread(values: Sequence[float]) -> str:
    """Median, least and most."""
    if len(values) == 1:
        return short(values[0])
    return f"{short(statistics.median(values))} ({short(min(values))} - {short(max(values))})"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def _beside(row: Row) -> str:
    if not row.beside:
        return ""
    ratio = f": {spread(row.ratios)}x" if row.ratios else ""
    return f", {row.beside_name} {spread(row.beside)}{ratio}"


def _summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
