"""`faregate usage export` as a process: whole files, streams that may be left, and memory that does not grow."""

import asyncio
import csv
import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from books import until
from commands import DEADLINE, FAREGATE
from databases import sqlite_database
from rows import NOON, record

from faregate.records import Source
from faregate.store.store import Store

FEW, MANY = 30_000, 300_000
SPAN = ("--since", "2027-01-15", "--until", "2027-02-01")
KIBIBYTE = 1024 if sys.platform != "darwin" else 1
"""`ru_maxrss` is in kibibytes on Linux, in bytes on macOS."""

GENERATED = """
    WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
    INSERT INTO usage_records (request_id, ts, user_id, email, connection, groups, policy_id, rules, model, models,
        prompt_tokens, completion_tokens, total_tokens, cached_tokens, reasoning_tokens, cost, cost_nano, requests,
        status, source, stream, chat_id)
    SELECT printf('r-%08d', n), {begin} + n * 1000000, 'u-' || (n % 50), 'u-' || (n % 50) || '@example.com', 'owui',
        '["staff"]', 'default', '["the default policy"]', 'openai/gpt-4o', '["openai/gpt-4o"]',
        10, 20, 30, 0, 0, n, n, 1, 'completed', 'usage', 1, 'chat-' || n
    FROM numbers
"""


def generated(path: Path, count: int) -> Path:
    """A database of so many records, one a second from noon; the n-th cost n pico-dollars."""

    async def create() -> None:
        await (await Store.open(sqlite_database(path).url)).close()

    asyncio.run(create())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(GENERATED.format(count=count, begin=int(NOON) * 1_000_000))
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("few") / "faregate.db", FEW)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("many") / "faregate.db", MANY)


@pytest.fixture
async def recorded(tmp_path: Path) -> Path:
    """A database of three records in `SPAN`, of which the middle one is Zoë's and would be a formula."""
    path = tmp_path / "faregate.db"
    store = await Store.open(sqlite_database(path).url)
    odd = record("r-2", at=NOON + 60, email="=1+1@example.com", chat_id='山, "1"', cost=Decimal("0.0000057915"))
    await store.write(
        [], [record("r-3", at=NOON + 120), odd, record("r-1", source=Source.USAGE, cost=Decimal("1e-12"))]
    )
    await store.close()
    return path


def environment(database: Path) -> dict[str, str]:
    return {"HOME": str(database.parent), "DATABASE_URL": sqlite_database(database).url, "LANG": "C.UTF-8"}


def export(database: Path, *arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [FAREGATE, "usage", "export", *arguments],
        cwd=folder or database.parent,
        env=environment(database),
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )


def test_csv_goes_to_stdout_oldest_first_and_nothing_to_stderr(recorded: Path):
    ended = export(recorded, "--format", "csv", *SPAN)
    assert (ended.returncode, ended.stderr) == (0, b"")
    rows = list(csv.DictReader(ended.stdout.decode().splitlines()))
    assert [(row["request_id"], row["cost"]) for row in rows] == [
        ("r-1", "0.000000000001"),
        ("r-2", "0.0000057915"),
        ("r-3", "0"),
    ]
    assert (rows[1]["email"], rows[1]["chat_id"], rows[1]["groups"]) == ("'=1+1@example.com", '山, "1"', '["staff"]')


def test_json_lines_are_those_of_one_span(recorded: Path):
    ended = export(
        recorded, "--format", "jsonl", "--since", "2027-01-15T12:01:00Z", "--until", "2027-01-15T13:02+01:00"
    )
    (row,) = map(json.loads, ended.stdout.splitlines())
    assert (row["request_id"], row["ts"], row["email"]) == ("r-2", "2027-01-15T12:01:00Z", "=1+1@example.com")
    assert (row["groups"], row["source"]) == (["staff"], None)


def test_parquet_has_exact_costs(recorded: Path, tmp_path: Path):
    ended = export(recorded, "--format", "parquet", *SPAN, "--output", tmp_path / "usage.parquet")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")
    assert pq.read_table(tmp_path / "usage.parquet").column("cost").to_pylist() == [
        Decimal("1E-12"),
        Decimal("0.0000057915"),
        Decimal(0),
    ]


def test_an_export_to_a_file_replaces_that_of_yesterday_and_leaves_nothing_else(recorded: Path, tmp_path: Path):
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "usage.csv").write_text("of yesterday")
    assert export(recorded, "--format", "csv", *SPAN, "--output", "usage.csv", folder=folder).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["usage.csv"]
    assert (folder / "usage.csv").read_bytes() == export(recorded, "--format", "csv", *SPAN).stdout


@pytest.mark.parametrize("wanted", ["csv", "jsonl"])
def test_who_reads_the_first_lines_only_ends_it_quietly(many: Path, wanted: str):
    process = subprocess.Popen(
        [FAREGATE, "usage", "export", "--format", wanted, *SPAN],
        cwd=many.parent,
        env=environment(many),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        lines = list(islice(process.stdout, 3))
        process.stdout.close()
        assert process.stderr.read() == b""
    assert (len(lines), process.returncode) == (3, 0)


def test_an_export_that_is_stopped_leaves_what_was_there(many: Path, tmp_path: Path):
    path = tmp_path / "usage.csv"
    path.write_text("of yesterday")
    process = subprocess.Popen(
        [FAREGATE, "usage", "export", "--format", "csv", *SPAN, "--output", path],
        cwd=many.parent,
        env=environment(many),
    )
    until(lambda: [other for other in tmp_path.iterdir() if other != path and other.stat().st_size])
    process.send_signal(2)
    assert process.wait(DEADLINE) != 0
    assert path.read_text() == "of yesterday"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--format", "parquet"), "Parquet is not written to stdout: name a file with --output"),
        (("--format", "csv", "--since", "2026-12-01", "--until", "2026-12-01"), "--since is not before --until"),
        (("--format", "csv", "--output", "nowhere/usage.csv"), "nowhere/usage.csv could not be written (No such file"),
        (("--format", "csv", "--output", "."), "is not a file that another one can take the place of"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_sentence(recorded: Path, arguments: tuple[str, ...], sentence: str):
    ended = export(recorded, *arguments)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"faregate: ")
    assert sentence in ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.parametrize("arguments", [("--format", "xlsx"), ("--format", "csv", "--since", "yesterday")])
def test_a_wrong_option_is_named(recorded: Path, arguments: tuple[str, ...]):
    ended = export(recorded, *arguments)
    assert ended.returncode == 2
    assert f"'{arguments[-2]}'" in ended.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_said_in_one_sentence(few: Path):
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [FAREGATE, "usage", "export", "--format", "csv", *SPAN],
            cwd=few.parent,
            env=environment(few),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=DEADLINE,
        )
    assert ended.returncode == 2
    assert re.fullmatch(rb"faregate: stdout could not be written \(No space left on device\).*\n", ended.stderr)


def test_a_terminal_shows_how_far_it_is_and_a_file_does_not(few: Path, tmp_path: Path):
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [FAREGATE, "usage", "export", "--format", "csv", *SPAN, "--output", tmp_path / "usage.csv"],
        cwd=few.parent,
        env=environment(few) | {"TERM": "xterm", "COLUMNS": "120"},
        stdout=side,
        stderr=side,
    )
    os.close(side)
    shown = b"".join(read_all(terminal)).decode()
    assert process.wait(DEADLINE) == 0
    assert f"{FEW:,} records" in shown
    assert "100%" in shown
    assert (tmp_path / "usage.csv").read_bytes().count(b"\n") == FEW + 1


def read_all(terminal: int) -> Iterator[bytes]:
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        try:
            while piece := shown.read(4096):
                yield piece
        except OSError:  # Linux: nobody has the other side any more.
            return


@pytest.mark.parametrize(("wanted", "more"), [("csv", 16), ("parquet", 64)])
def test_ten_times_the_records_need_no_more_memory(few: Path, many: Path, tmp_path: Path, wanted: str, more: int):
    """`more`, in MiB, is for what varies from run to run, and for a whole row group of Parquet."""
    small, large = (peak(database, wanted, tmp_path / f"{database.parent.name}.{wanted}") for database in (few, many))
    assert large - small < more * 2**20


def peak(database: Path, wanted: str, output: Path) -> int:
    """The most memory that an export had at once, in bytes. It is whole."""
    process = subprocess.Popen(
        [FAREGATE, "usage", "export", "--format", wanted, *SPAN, "--output", output],
        cwd=database.parent,
        env=environment(database),
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    count = FEW if database.parent.name.startswith("few") else MANY
    if wanted == "parquet":
        table = pq.ParquetFile(output)
        assert table.metadata.num_rows == count
        assert max(table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)) <= 50_000
    else:
        with output.open("rb") as lines:
            assert sum(1 for _ in lines) == count + (wanted == "csv")
    return used.ru_maxrss * KIBIBYTE
