"""The plan of a request is remembered, and never outlives the rules and prices that it was made of."""

import json

from faregate.gateway.plans import MOST_REMEMBERED, Plan, Plans
from faregate.policy.model import Enforcement, Limit, Meter, Policy, Window
from faregate.policy.rulebook import Rulebook
from faregate.pricing.catalogue import Catalogue

DOLLARS = (Limit(Meter.USD, Window.DAY, 1_000),)
CHEAP, DEAR, ROUTER = "acme/cheap", "acme/dear", "acme/auto"


def entry(name: str, price: str, context: int | None = None) -> dict[str, object]:
    """A model as `/models` lists it."""
    return {
        "id": name,
        "canonical_slug": f"{name}-2026",
        "context_length": context,
        "pricing": {"prompt": price, "completion": price},
    }


def prices(dear: str = "0.001") -> Catalogue:
    """Two models with prices and one without."""
    listed = [entry(CHEAP, "0.000001", 8_000), entry(DEAR, dear, 200_000), entry(ROUTER, "-1")]
    return Catalogue.parse(json.dumps({"data": listed}).encode())


def rules(*limits: Limit, **options: object) -> Rulebook:
    """A rulebook whose default policy is this one."""
    return Rulebook([Policy("default", "Default", limits, **options)], [])


def plan(*candidates: str, book: Rulebook | None = None, catalogue: Catalogue | None = None) -> Plan:
    """A plan that nobody remembered."""
    return Plans().of(candidates, (book or rules()).resolve(None, ()), catalogue)


def test_a_plan_has_every_name_and_the_longest_context_of_its_models() -> None:
    both = plan(CHEAP, DEAR, catalogue=prices())
    assert both.aliases == ((f"{CHEAP}-2026",), (f"{DEAR}-2026",))
    assert both.names == (CHEAP, f"{CHEAP}-2026", DEAR, f"{DEAR}-2026")
    assert [model.id for model in both.models] == [CHEAP, DEAR]
    assert both.longest_context == 200_000
    assert (both.forbidden, both.unknown) == (None, None)


def test_the_first_model_that_is_not_allowed_is_named() -> None:
    book = rules(deny=(f"{DEAR}-2026",))
    assert plan(CHEAP, DEAR, book=book, catalogue=prices()).forbidden == DEAR


def test_the_first_model_without_a_price_is_named_and_none_is_asked() -> None:
    for missing in (ROUTER, "acme/unheard-of"):
        found = plan(CHEAP, missing, DEAR, catalogue=prices())
        assert (found.unknown, found.models) == (missing, ())


def test_an_empty_list_knows_no_model_and_no_list_says_nothing_of_any() -> None:
    assert plan(CHEAP, catalogue=Catalogue([])).unknown == CHEAP
    assert plan(CHEAP).unknown is None


def test_dollars_count_where_they_refuse_and_are_bounded_where_the_hold_is() -> None:
    found = {how: plan(CHEAP, book=rules(*DOLLARS, enforcement=how)) for how in Enforcement}
    assert [how for how in found if found[how].counts_dollars] == [Enforcement.STRICT, Enforcement.SOFT]
    assert [how for how in found if found[how].bounds_dollars] == [Enforcement.STRICT]
    assert not plan(CHEAP).counts_dollars


def test_a_plan_is_made_once_while_rules_and_prices_stay() -> None:
    plans, book, catalogue = Plans(), rules(), prices()
    first = plans.of((CHEAP,), book.resolve(None, ()), catalogue)
    assert plans.of((CHEAP,), book.resolve(None, ()), catalogue) is first
    assert plans.of((DEAR,), book.resolve(None, ()), catalogue).models != first.models


def test_changed_rules_are_noticed_even_if_they_resolve_in_the_same_words() -> None:
    plans, catalogue = Plans(), prices()
    for allow, forbidden in ((("acme/*",), None), (("other/*",), CHEAP), (("acme/*",), None)):
        resolution = rules(allow=allow).resolve(None, ())
        assert plans.of((CHEAP,), resolution, catalogue).forbidden == forbidden


def test_changed_prices_are_noticed_also_when_they_go_and_come() -> None:
    plans, resolution = Plans(), rules().resolve(None, ())
    for catalogue in (prices("0.001"), prices("0.002"), None, prices("0.003")):
        wanted = () if catalogue is None else (catalogue.find(DEAR),)
        assert plans.of((DEAR,), resolution, catalogue).models == wanted


def test_no_more_plans_are_remembered_than_that() -> None:
    plans, resolution = Plans(), rules().resolve(None, ())
    first = plans.of((CHEAP,), resolution, None)
    for number in range(MOST_REMEMBERED):
        plans.of((f"acme/{number}",), resolution, None)
    again = plans.of((CHEAP,), resolution, None)
    assert again is not first
    assert again == first


def test_names_that_are_refused_are_not_remembered() -> None:
    plans, resolution, catalogue = Plans(), rules().resolve(None, ()), prices()
    first = plans.of((CHEAP,), resolution, catalogue)
    for number in range(MOST_REMEMBERED):
        plans.of((f"acme/{number}",), resolution, catalogue)
    assert plans.of((CHEAP,), resolution, catalogue) is first
