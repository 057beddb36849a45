"""Exports as text: the words of the admin API, exact amounts, and no formulas."""

import csv
import json
from dataclasses import fields
from io import BytesIO, StringIO

import pytest
from export_rows import NOTHING_KNOWN, row

from faregate.admin.usage.schemas import UsageOut
from faregate.export.columns import COLUMNS
from faregate.export.text import Csv, JsonLines
from faregate.store.usage import UsageRow

USERS_TEXT = ("email", "user_id", "connection", "model", "task", "chat_id", "reason", "generation_id", "provider")


def written(writer, *pages):
    file = BytesIO()
    it = writer(file)
    for rows in pages:
        it.write(rows)
    it.finish()
    return file.getvalue().decode()


def table(*rows):
    return list(csv.DictReader(StringIO(written(Csv, rows), newline="")))


def test_the_columns_are_those_of_the_admin_api():
    assert tuple(UsageOut.model_fields) == COLUMNS
    assert {field.name for field in fields(UsageRow)} == set(COLUMNS)


def test_a_line_of_json_is_the_record_as_the_admin_api_tells_it():
    rows = [row(), row("r-2", **NOTHING_KNOWN)]
    lines = written(JsonLines, rows[:1], rows[1:]).splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(UsageOut.of(one).model_dump_json()) for one in rows]


def test_an_export_of_nothing_is_a_header_or_nothing():
    assert written(Csv) == ",".join(COLUMNS) + "\n"
    assert written(JsonLines) == ""


def test_amounts_and_times_are_plain_and_exact():
    (line,) = table(row(ts=1_800_014_400.000001))
    assert (line["cost"], line["ts"]) == ("0.0000057915", "2027-01-15T12:00:00.000001Z")
    assert (line["total_tokens"], line["stream"], line["status"]) == ("21", "true", "completed")


def test_lists_are_json_and_what_is_not_known_is_empty():
    known, unknown = table(row(), row(**NOTHING_KNOWN))
    assert json.loads(known["groups"]) == ["physics, applied", "staff"]
    assert (unknown["cost"], unknown["email"], unknown["groups"]) == ("", "", "[]")


def test_the_header_stands_once_however_many_pages():
    assert written(Csv, [row("r-1")], [row("r-2")]).count("request_id") == 1


def test_text_with_commas_quotes_and_new_lines_stays_one_cell():
    odd = 'one, "two"\nthree'
    assert table(row(reason=odd), row())[0]["reason"] == odd


@pytest.mark.parametrize("column", USERS_TEXT)
@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_a_cell_is_never_a_formula(column: str, begin: str):
    formula = f'{begin}HYPERLINK("http://evil.example","Your bill")'
    (line,) = table(row(**{column: formula}))
    assert line[column] == f"'{formula}"


def test_other_text_is_as_it_was():
    (line,) = table(row(email="zoë+1=2@example.com", chat_id="'quoted"))
    assert (line["email"], line["chat_id"]) == ("zoë+1=2@example.com", "'quoted")


def test_json_keeps_what_would_be_a_formula_elsewhere():
    assert json.loads(written(JsonLines, [row(email="=1+1@example.com")]))["email"] == "=1+1@example.com"
