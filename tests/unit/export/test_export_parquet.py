"""Exports as Parquet: exact types, and row groups of bounded size."""

from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from export_rows import NOTHING_KNOWN, row

from faregate.export import parquet
from faregate.export.columns import COLUMNS
from faregate.export.parquet import Parquet


def written(*pages):
    file = BytesIO()
    writer = Parquet(file)
    for rows in pages:
        writer.write(rows)
    writer.finish()
    return pq.ParquetFile(file)


def test_every_column_has_its_type():
    schema = written([row()]).schema_arrow
    assert tuple(schema.names) == COLUMNS
    assert schema.field("cost").type == pa.decimal128(24, 12)
    assert schema.field("ts").type == pa.timestamp("us", tz="UTC")
    assert schema.field("groups").type.value_type == pa.string()
    assert schema.field("total_tokens").type == pa.int64()
    assert schema.field("stream").type == pa.bool_()


def test_amounts_times_and_lists_come_back_as_they_were():
    (read,) = written([row(ts=1_800_014_400.000001, cost=Decimal("123456789012.000000000001"))]).read().to_pylist()
    assert read["cost"] == Decimal("123456789012.000000000001")
    assert read["ts"] == datetime(2027, 1, 15, 12, 0, 0, 1, tzinfo=UTC)
    assert (read["groups"], read["status"], read["stream"]) == (["physics, applied", "staff"], "completed", True)


def test_what_is_not_known_is_null():
    (read,) = written([row(**NOTHING_KNOWN)]).read().to_pylist()
    assert {name for name, value in read.items() if value is None} == {
        name for name, value in NOTHING_KNOWN.items() if value is None
    }
    assert read["groups"] == []


def test_an_export_of_nothing_is_a_table_without_rows():
    file = written()
    assert (file.metadata.num_rows, tuple(file.schema_arrow.names)) == (0, COLUMNS)


def test_row_groups_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    file = written(*([row(f"r-{page}-{n}") for n in range(4)] for page in range(6)))
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert (sum(sizes), max(sizes)) == (24, 8)
    assert file.read().column("request_id").to_pylist() == [f"r-{page}-{n}" for page in range(6) for n in range(4)]
