"""DATABASE_URL: what works, and the sentence where it does not."""

import os
import stat

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from faregate.store.engine import open_engine, reported
from faregate.store.errors import StoreError, StoreUnavailable


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://h/db", "http://example.com", "sqlite+pysqlite:///x.db"])
def test_a_url_of_something_else_is_refused(url):
    with pytest.raises(StoreError, match="should begin with sqlite:/// or postgresql://"):
        open_engine(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_sqlite_needs_a_file(url):
    with pytest.raises(StoreError, match="names no file"):
        open_engine(url)


def test_a_refusal_does_not_repeat_the_password():
    with pytest.raises(StoreError) as refusal:
        open_engine("mysql://faregate:hunter2@db/faregate")
    assert "hunter2" not in str(refusal.value)


def test_the_file_is_its_owners_alone_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.db").touch(0o644)
    before = os.umask(0)
    try:
        open_engine("sqlite:///deep/er/new.db")
        open_engine(f"sqlite:///{tmp_path}/old.db")
    finally:
        os.umask(before)
    for path in (tmp_path / "deep/er/new.db", tmp_path / "old.db"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_that_cannot_be_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "faregate.db"):
        with pytest.raises(StoreError, match=r"cannot be opened .* should name a file"):
            open_engine(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "error",
    [
        OperationalError("INSERT ...", None, Exception("database is locked")),
        PoolTimeout("QueuePool limit"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
def test_a_database_that_is_away_is_worth_another_try(error):
    with pytest.raises(StoreUnavailable, match="try again") as unavailable, reported():
        raise error
    assert "INSERT" not in str(unavailable.value)


def test_a_statement_that_is_wrong_is_not_worth_another_try():
    with pytest.raises(IntegrityError), reported():
        raise IntegrityError("INSERT ...", None, Exception("NOT NULL constraint failed"))
