"""Whose limits a record counts on."""

import pytest

from faregate.records import Facts, Status, UsageRecord


def counted(served, *, candidates=(), aliases=()):
    facts = Facts("r-1", 0.0, "c", "u", None, (), "default", "a", candidates=candidates, aliases=aliases)
    return UsageRecord(facts=facts, status=Status.COMPLETED, served_model=served).counted_models()


def test_who_asks_for_one_model_is_counted_on_it():
    assert counted(None) == counted("a") == counted("unheard of") == ("a",)


@pytest.mark.parametrize(
    ("served", "names"),
    [
        ("a", ("a", "a-2024")),
        ("a-2024", ("a", "a-2024")),
        ("b", ("b",)),
        ("unheard of", ("a", "a-2024", "b")),
        (None, ("a", "a-2024", "b")),
    ],
)
def test_the_candidate_that_served_is_counted_under_all_its_names_else_all_candidates(served, names):
    assert counted(served, candidates=("a", "b"), aliases=(("a-2024",), ())) == names


def test_other_names_of_the_same_models_are_noticed():
    assert counted("a-2024", candidates=("a", "b"), aliases=(("a-2024",), ())) == ("a", "a-2024")
    assert counted("a-2024", candidates=("a", "b"), aliases=((), ("a-2024",))) == ("b", "a-2024")
    assert counted("a-2024", candidates=("a", "b")) == ("a", "b")
