"""`faregate migrate`: says from where to where, loses nothing unasked, and leaves a newer database alone."""

import pytest
from old_databases import contents, dialect_of, make_old
from typer.testing import CliRunner

from faregate.cli import app
from faregate.settings import Settings


@pytest.fixture
def faregate(database, monkeypatch, tmp_path):
    """Runs `faregate migrate` on the database: its exit code, what it said, what it complained about."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DATABASE_URL", database.url)

    def run(*arguments):
        result = CliRunner().invoke(app, ["migrate", *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_an_old_database_goes_to_the_newest_revision_once(faregate, database):
    make_old(database, 1)
    assert faregate() == (0, "the database went from 0001 to 0003\n", "")
    assert faregate() == (0, "nothing to do: the database is at 0003\n", "")


def test_an_empty_database_is_made(faregate):
    assert faregate("--to", "2") == (0, "the database went from nothing to 0002\n", "")
    assert faregate("--to", "0002") == (0, "nothing to do: the database is at 0002\n", "")


def test_it_goes_back_to_an_older_revision_with_all_that_has_a_place_there(faregate, database):
    make_old(database, 2)
    before = contents(database)
    faregate()
    assert faregate("--to", "0002") == (0, "the database went from 0003 to 0002\n", "")
    after = contents(database)
    assert {name: rows for name, rows in after.items() if name != "policies"} == {
        name: rows for name, rows in before.items() if name != "policies"
    }


def test_what_would_be_lost_is_lost_only_if_that_is_said(faregate, database):
    faregate()
    moment = {"sqlite": "0", "postgresql": "now()"}[dialect_of(database)]
    database.sql(
        f"INSERT INTO audit_log (at, actor, action, kind, key) VALUES ({moment}, 'a key', 'delete', 'group', 'staff')"
    )
    code, said, complaint = faregate("--to", "2")
    assert (code, said) == (2, "")
    assert complaint == (
        "faregate: version 2 of the schema has no place for the audit log (rows: 1), which would be lost:"
        " back it up, then say --yes; nothing was changed\n"
    )
    assert faregate() == (0, "nothing to do: the database is at 0003\n", "")
    assert faregate("--to", "2", "--yes") == (0, "the database went from 0003 to 0002\n", "")


def test_it_shows_the_revisions_and_changes_nothing(faregate, database):
    code, empty, _ = faregate("--show")
    assert code == 0
    assert empty.startswith("the database has no schema yet\n")
    assert "->" not in empty
    make_old(database, 2)
    for _ in range(2):
        code, shown, _ = faregate("--show")
        assert [line[:7] for line in shown.splitlines()] == ["   0001", "-> 0002", "   0003"]


def test_a_revision_that_is_not_known_is_refused(faregate):
    for wrong in ("0", "4", "head"):
        code, said, complaint = faregate("--to", wrong)
        assert (code, said) == (2, "")
        assert "--to" in complaint


def test_a_newer_database_is_left_alone_in_one_sentence(faregate, database):
    faregate()
    database.sql("UPDATE meta SET value = '4' WHERE key = 'schema_version'")
    for arguments in ((), ("--to", "1", "--yes"), ("--show",)):
        code, said, complaint = faregate(*arguments)
        assert (code, said, complaint.count("\n")) == (2, "", 1)
        assert "schema version 4, but this Faregate knows versions up to 3" in complaint
