"""The live holds of a node: what is kept of them is all that Redis, or another node, needs to go on with them."""

from ledger_world import NODE, counter, facts

from faregate.ledger.port import Claim, Hold
from faregate.ledger.redis.holds import KeptHold, NodeHolds, hold_of
from faregate.ledger.redis.names import name_of
from faregate.policy.model import Meter, Window
from faregate.records import altered

TOTAL = counter(window=Window.TOTAL)
SLOTS = counter(Meter.CONCURRENT, None)
CLAIMS = [Claim(TOTAL, 10, 3), Claim(SLOTS, 1)]


def written(kept: KeptHold) -> list[bytes]:
    """The hash that Redis has of it."""
    amounts = [part for on, amount in kept.amounts().items() for part in (name_of(on), b"%d" % amount)]
    return [*kept.fields(), b"n", kept.node.encode(), b"a", b"1", *amounts]


def test_a_hold_is_read_as_it_was_written():
    kept = KeptHold(facts("r"), NODE, 100, CLAIMS, name_of(TOTAL), "gen-1")
    cap_known = altered(facts("r"), cap=100)
    assert hold_of(written(kept), 7.0) == Hold(cap_known, NODE, 7.0, 100, {TOTAL: 310, SLOTS: 1}, "gen-1", parked=False)


def test_a_request_that_is_over_has_no_slot_any_more():
    kept = KeptHold(facts("r"), NODE, 100, CLAIMS)
    kept.parked = True
    assert hold_of(written(kept), 7.0).amounts == {TOTAL: 310}
    assert hold_of(written(kept), 7.0).parked


def test_what_was_another_nodes_is_written_the_same_again():
    hold = hold_of(written(KeptHold(facts("r"), "other", 100, CLAIMS, b"", "gen-1")), 7.0)
    holds = NodeHolds()
    holds.take_over(hold)
    taken = holds.get("r")
    assert taken is not None
    assert hold_of(written(taken), 7.0) == hold


def test_a_request_that_is_held_already_stays_as_it_is():
    holds = NodeHolds()
    holds.add(KeptHold(facts("r"), NODE, 100, CLAIMS))
    holds.add(KeptHold(facts("r"), NODE, 50, CLAIMS))
    assert (len(holds), list(holds)) == (1, ["r"])
    assert holds.get("r").cap == 100


def test_a_hold_that_lapsed_is_known_to_have_until_its_request_is_over():
    holds = NodeHolds()
    holds.add(KeptHold(facts("before"), NODE, 0, CLAIMS))
    holds.lapse()
    holds.add(KeptHold(facts("after"), NODE, 0, CLAIMS))
    assert (holds.has_lapsed("before"), holds.has_lapsed("after")) == (True, False)
    holds.forget("before")
    assert not holds.has_lapsed("before")
    assert "before" not in holds
