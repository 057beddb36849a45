"""Forms: what is filled in reads like the plain claims and charges that it stands for."""

import pytest
from ledger_world import counter

from faregate.ledger.forms import Ask, ChargeLine, Charges, ClaimLine, Claims, Form
from faregate.ledger.port import Claim
from faregate.policy.model import Meter, Window

USD = counter()
TOKENS = counter(Meter.TOKENS)
TOTAL = counter(window=Window.TOTAL)
CLAIMS = [Claim(USD, 5, 2, 100, enforce=False), Claim(TOKENS, 7, 1), Claim(TOTAL, 5, 2, limit=9)]


def test_a_form_that_is_filled_in_is_the_claims_in_their_order():
    form = Form([ClaimLine(USD, 2, 100, False), ClaimLine(TOKENS, 0, None, True), ClaimLine(TOTAL, 2, 9, True)])
    claims = Claims(form, [Ask(7, 1), Ask(10**30, -1), Ask(5, 2)])
    assert list(claims) == CLAIMS
    assert len(claims) == 3
    assert claims[-1] == CLAIMS[-1]
    assert claims[1:] == CLAIMS[1:]


def test_what_no_line_names_is_not_asked():
    form = Form([ClaimLine(USD, 2, 100, False), ClaimLine(TOKENS, 0, None, True), ClaimLine(TOTAL, 2, 9, True)])
    assert form.places == (2, 0)
    assert Claims(form, [Ask(7, 1), Ask(10**30, -1), Ask(5, 2)]).named() == [(5, 2), (7, 1)]


def test_plain_claims_get_a_form_of_their_own_and_claims_keep_theirs():
    claims = Claims.of(CLAIMS)
    assert list(claims) == CLAIMS
    assert Claims.of(claims) is claims


def test_a_form_that_is_filled_in_is_the_charges_in_their_order():
    charges = Charges(Form([ChargeLine(USD, 1), ChargeLine(TOTAL, 1), ChargeLine(TOKENS, 2)]), (-1, 50, 60))
    assert list(charges) == [(USD, 50), (TOTAL, 50), (TOKENS, 60)]
    assert charges[:1] == [(USD, 50)]
    assert charges.named() == [50, 60]
    assert list(Charges.of(list(charges))) == list(charges)
    assert Charges.of(charges) is charges


def test_there_may_be_nothing_to_fill_in():
    assert list(Claims.of([])) == []
    assert Charges(Form([]), (1, 2)).named() == []
    with pytest.raises(IndexError):
        Claims.of([])[0]
