"""Usage records as text, UTF-8: CSV for spreadsheets, and one JSON object per line."""

import csv
from collections.abc import Sequence
from io import StringIO
from typing import Any, BinaryIO

import msgspec

from faregate.export.columns import COLUMNS, told
from faregate.store.usage import UsageRow

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a spreadsheet takes a cell for a formula by (OWASP, CSV injection); the last four are =+-@ in full width."""


class Csv:
    """A header, then a line per record. Lists are JSON; what is not known is empty."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write([COLUMNS])

    def write(self, rows: Sequence[UsageRow]) -> None:
        """Append `rows`."""
        self._write([[_cell(value) for value in told(row)] for row in rows])

    def finish(self) -> None:
        """Nothing follows the last line."""

    def _write(self, lines: Sequence[Sequence[Any]]) -> None:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        self._file.write(text.getvalue().encode())


class JsonLines:
    """An object per line, as `GET /admin/usage` writes it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[UsageRow]) -> None:
        """Append `rows`."""
        encode = msgspec.json.Encoder().encode_lines
        self._file.write(encode([dict(zip(COLUMNS, told(row), strict=True)) for row in rows]))

    def finish(self) -> None:
        """Nothing follows the last line."""


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        # Any text but our own numbers may be somebody's: a name, a chat, a model that does not exist.
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return msgspec.json.encode(value).decode()
    return value
