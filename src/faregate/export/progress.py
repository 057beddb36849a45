"""How far an export is, on a terminal."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from faregate.store.usage import UsageRow

Advance = Callable[[Sequence[UsageRow]], None]
"""To be told of each page that was written."""


@contextmanager
def progress(until: float, *, to_stdout: bool) -> Iterator[Advance]:
    """A bar on stderr, if that is a terminal; not where the records themselves go to the same one.

    It moves with the time of the records, up to `until` (epoch seconds): counting them first would take as long again.
    """
    if not sys.stderr.isatty() or (to_stdout and sys.stdout.isatty()):
        yield lambda _: None
        return
    columns = (
        TextColumn("exporting"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[records]:,} records"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, records=0)
        first: float | None = None
        records = 0

        def advance(rows: Sequence[UsageRow]) -> None:
            nonlocal first, records
            first = rows[0].ts if first is None else first
            records += len(rows)
            bar.update(task, total=until - first, completed=rows[-1].ts - first, records=records)

        yield advance
        bar.update(task, total=1, completed=1)
