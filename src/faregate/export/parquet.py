"""Usage records as Parquet: columns with types, for whoever adds up millions of them."""

from collections.abc import Sequence
from typing import Any, BinaryIO

# It has no types, and takes as long to import as all else: only who wants Parquet imports this module.
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from faregate.export.columns import COLUMNS, values_of
from faregate.store.types import microseconds_of
from faregate.store.usage import UsageRow

GROUP_ROWS = 50_000
"""Records of a row group, which are in memory together: some ten megabytes."""

_INTEGERS = (
    *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
    *("ttft_ms", "duration_ms"),
)
_TYPES = {
    "ts": pa.timestamp("us", tz="UTC"),
    "cost": pa.decimal128(24, 12),
    "stream": pa.bool_(),
    "groups": pa.list_(pa.string()),
    "rules": pa.list_(pa.string()),
} | dict.fromkeys(_INTEGERS, pa.int64())
_NULL = frozenset(
    {"email", "served_model", "provider", "cost", "source", "task", "chat_id", "ttft_ms", "duration_ms"}
    | {"generation_id", "reason"}
)

SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, pa.string()), nullable=name in _NULL) for name in COLUMNS])
_TS = COLUMNS.index("ts")


class Parquet:
    """Row groups of at most `GROUP_ROWS` records, compressed with zstd."""

    def __init__(self, file: BinaryIO) -> None:
        self._writer = pq.ParquetWriter(file, SCHEMA, compression="zstd")
        self._batches: list[Any] = []
        self._waiting = 0

    def write(self, rows: Sequence[UsageRow]) -> None:
        """Append `rows`, at most `GROUP_ROWS`."""
        if self._waiting + len(rows) > GROUP_ROWS:
            self._write_group()
        columns = list(zip(*map(values_of, rows), strict=True))
        columns[_TS] = tuple(map(microseconds_of, columns[_TS]))
        arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._waiting += len(rows)

    def finish(self) -> None:
        """Write what waits, and the index at the end, without which the file cannot be read."""
        if self._batches:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(pa.Table.from_batches(self._batches, SCHEMA), row_group_size=GROUP_ROWS)
        self._batches, self._waiting = [], 0
