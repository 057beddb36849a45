"""Random histories of a ledger beside a model of it: equal decisions, equal totals, never over, nothing leaks.

A Hypothesis state machine; an engine's tests inherit it and say how to `open` the ledger.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from ledger_model import Model, Request
from ledger_world import LEASE, NOON, counter, facts, record

from faregate.ledger.port import AlreadySettled, Claim, Counter, Held, Ledger, Released, Settled
from faregate.policy.model import Meter, Scope, Window

FIRM = 120
"""The limit that every request of these histories claims, and that no charge exceeds its hold on: never over."""

SHAPES: list[tuple[Meter, Window | None]] = [
    (Meter.USD, Window.DAY),
    (Meter.USD, Window.TOTAL),
    (Meter.TOKENS, Window.MINUTE),
    (Meter.TOKENS, Window.HOUR),
    (Meter.REQUESTS, Window.MINUTE),
    (Meter.CONCURRENT, None),
]
REMEMBERED = 3600
"""Seconds that every engine knows an id which is over."""

PEOPLE = ["ada", "bob"]
NODES = ["node-1", "node-2"]
Rule = tuple[int | None, bool]

limits = st.one_of(st.none(), st.integers(0, 150))
policies = st.dictionaries(st.sampled_from(SHAPES), st.tuples(limits, st.booleans()), max_size=len(SHAPES))


def firm(person: str, at: float) -> Counter:
    return counter(Meter.USD, Window.HOUR, scope_id=person, at=at)


def touched(person: str, at: float) -> list[Counter]:
    """Every counter that a record of `person` is charged to, whether or not its hold knew of it."""
    everyone = [counter(meter, window, scope=Scope.EVERYONE, scope_id="", at=at) for meter, window in SHAPES if window]
    own = [counter(meter, window, scope_id=person, at=at) for meter, window in SHAPES if window]
    return [firm(person, at), *own, *everyone]


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.ledger = self.open()
        self.now = NOON + 3500
        self.people: dict[str, str] = {}
        self.policy: dict[tuple[Meter, Window | None], Rule] = {}
        self.seen: set[Counter] = set()

    def open(self) -> Ledger:
        raise NotImplementedError("an engine's tests give the ledger that starts from `self.model`")

    def close(self) -> None:
        pass

    def is_readable(self, counter: Counter) -> bool:
        """Whether the engine still answers for `counter`: nothing reads one whose window is long over."""
        return True

    def run(self, call: Any) -> Any:
        return self.loop.run_until_complete(call)

    def claims(self, person: str, fixed: int, per_token: int) -> list[Claim]:
        claims = [Claim(firm(person, self.now), fixed, per_token, limit=FIRM)]
        for (meter, window), (limit, enforce) in self.policy.items():
            scope, scope_id = (Scope.USER, person) if meter is not Meter.TOKENS else (Scope.EVERYONE, "")
            asked = (1, 0) if meter in (Meter.REQUESTS, Meter.CONCURRENT) else (fixed, per_token)
            on = counter(meter, window, scope=scope, scope_id=scope_id, at=self.now)
            claims.append(Claim(on, *asked, limit, enforce))
        return claims

    def ids(self, wanted: Callable[[Request], bool]) -> list[str]:
        return [request_id for request_id, request in self.model.requests.items() if wanted(request)]

    def is_known(self, request: Request) -> bool:
        return request.live or request.ended_at + REMEMBERED > self.now

    @rule(policy=policies)
    def the_policy_changes(self, policy: dict[tuple[Meter, Window | None], Rule]) -> None:
        self.policy = policy

    @rule(
        seconds=st.one_of(
            st.sampled_from([0.25, 1.0, 14.0, 30.0, 59.75, 60.0, 61.0]),
            st.sampled_from([3600.0, 7300.0, 40 * 86_400.0]),
        )
    )
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_hour_is_nearly_over(self) -> None:
        self.now = max(self.now, self.now // 3600 * 3600 + 3599.5)

    @rule(
        person=st.sampled_from(PEOPLE),
        node=st.sampled_from(NODES),
        fixed=st.integers(0, 30),
        per_token=st.integers(0, 4),
        wanted=st.integers(0, 30),
        least=st.integers(0, 8),
    )
    def a_request_comes(self, person: str, node: str, fixed: int, per_token: int, wanted: int, least: int) -> None:
        request_id = f"r{len(self.people)}"
        self.people[request_id] = person
        claims, least = self.claims(person, fixed, per_token), min(least, wanted)
        expected = self.model.decide(claims, wanted, least, self.now)
        assert self.reserve(request_id, claims, node, wanted, least) == expected
        if not isinstance(expected, Held):
            return
        self.model.requests[request_id] = Request(
            at=self.now,
            node=node,
            expires_at=self.now + LEASE,
            answer=expected,
            held={claim.counter: claim.fixed + expected.cap * claim.per_output_token for claim in claims},
        )
        self.seen.update(claim.counter for claim in claims)
        bounded = [claim for claim in claims if claim.enforce and claim.limit is not None]
        for claim, balance in zip(bounded, self.peek([claim.counter for claim in bounded]), strict=True):
            assert balance.used + balance.held <= claim.limit

    @precondition(lambda self: self.ids(self.is_known))
    @rule(data=st.data())
    def a_request_is_repeated(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.ids(self.is_known)))
        request = self.model.requests[request_id]
        claims = self.claims(self.people[request_id], 5, 1)
        try:
            answer = self.reserve(request_id, claims, NODES[0], 10, 1)
        except Released:
            assert not request.live
        else:
            assert request.live
            assert answer == request.answer

    @precondition(lambda self: self.ids(lambda request: request.live))
    @rule(data=st.data(), share=st.integers(0, 100), other=st.integers(0, 40))
    def a_request_is_settled(self, data: st.DataObject, share: int, other: int) -> None:
        request_id = data.draw(st.sampled_from(self.ids(lambda request: request.live)))
        self.settle(request_id, share, other)

    @precondition(lambda self: self.ids(lambda request: request.settled and self.is_known(request)))
    @rule(data=st.data())
    def a_request_is_settled_twice(self, data: st.DataObject) -> None:
        settled = self.ids(lambda request: request.settled and self.is_known(request))
        request_id = data.draw(st.sampled_from(settled))
        charges = [(on, 7) for on in touched(self.people[request_id], self.now)]
        answer = self.run(self.ledger.settle(request_id, charges, record(request_id, self.now)))
        assert isinstance(answer, AlreadySettled)

    @rule(person=st.sampled_from(PEOPLE), ago=st.sampled_from([0.0, 30.0, 60.0, 3600.0, 86_400.0]))
    def a_request_without_a_hold_is_settled(self, person: str, ago: float) -> None:
        request_id = f"r{len(self.people)}"
        self.people[request_id] = person
        self.model.requests[request_id] = Request(at=self.now - ago)
        self.settle(request_id, 0, 9)

    @precondition(lambda self: self.ids(lambda request: request.released and not request.settled))
    @rule(data=st.data())
    def a_released_request_turns_out_to_have_cost_something(self, data: st.DataObject) -> None:
        released = self.ids(lambda request: request.released and not request.settled)
        self.settle(data.draw(st.sampled_from(released)), 0, 9)

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def a_request_is_released(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.ids(lambda request: True)))
        self.release(request_id)

    @precondition(lambda self: self.ids(lambda request: request.live))
    @rule(data=st.data())
    def a_request_is_parked(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.ids(lambda request: request.live)))
        self.run(self.ledger.park(request_id))
        request = self.model.requests[request_id]
        request.parked = True
        request.held = {on: amount for on, amount in request.held.items() if on.window}

    @precondition(lambda self: self.model.requests)
    @rule(data=st.data())
    def openrouter_names_a_request(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(self.ids(lambda request: True)))
        self.run(self.ledger.note(request_id, f"gen-{request_id}"))
        self.model.requests[request_id].generation_id = f"gen-{request_id}"

    @rule(node=st.sampled_from(NODES))
    def a_node_renews(self, node: str) -> None:
        self.run(self.ledger.renew(node, LEASE, self.now))
        for request in self.model.requests.values():
            if request.node == node:
                request.expires_at = self.now + LEASE

    @rule()
    def the_reconciler_asks_what_a_dead_node_left(self) -> None:
        left = self.run(self.ledger.expired(self.now, 1000))
        expected = self.ids(lambda request: request.live and request.expires_at <= self.now)
        assert sorted(hold.facts.request_id for hold in left) == sorted(expected)
        for hold in left:
            request = self.model.requests[hold.facts.request_id]
            assert (hold.amounts, hold.node, hold.parked) == (request.held, request.node, request.parked)
            assert (hold.cap, hold.generation_id) == (request.answer.cap, request.generation_id)

    @invariant()
    def every_balance_is_what_the_model_says(self) -> None:
        counters = sorted(filter(self.is_readable, self.seen), key=str)
        assert self.peek(counters) == [self.model.balance(on, self.now) for on in counters]

    @invariant()
    def the_firm_limit_is_never_exceeded(self) -> None:
        firm_counters = [on for on in self.seen if on.meter is Meter.USD and on.window is Window.HOUR]
        assert all(balance.used + balance.held <= FIRM for balance in self.peek(firm_counters))

    def teardown(self) -> None:
        try:
            self.when_all_is_over_nothing_is_held()
        finally:
            self.close()
            self.loop.close()

    def when_all_is_over_nothing_is_held(self) -> None:
        for n, request_id in enumerate(self.ids(lambda request: request.live)):
            if n % 2:
                self.settle(request_id, 50, 1)
            else:
                self.release(request_id)
        assert all(balance.held == 0 for balance in self.peek(list(self.seen)))
        self.every_balance_is_what_the_model_says()

    def reserve(self, request_id: str, claims: list[Claim], node: str, wanted: int, least: int) -> Any:
        return self.run(
            self.ledger.reserve(
                facts(request_id, self.now),
                node=node,
                lease=LEASE,
                claims=claims,
                cap_wanted=wanted,
                cap_min=least,
                now=self.now,
            )
        )

    def settle(self, request_id: str, share: int, other: int) -> None:
        """Charge `share` percent of what was held, and `other` where nothing was; nothing on the firm limit there."""
        request, person = self.model.requests[request_id], self.people[request_id]
        charges = {
            on: request.held[on] * share // 100 if on in request.held else other
            for on in touched(person, request.at)
            if request.live or on != firm(person, request.at)
        }
        answer = self.run(self.ledger.settle(request_id, list(charges.items()), record(request_id, request.at)))
        assert isinstance(answer, Settled)
        request.settled, request.charged, request.ended_at = True, charges, self.now
        self.seen.update(charges)

    def release(self, request_id: str) -> None:
        self.run(self.ledger.release(request_id, self.now))
        request = self.model.requests[request_id]
        if not request.settled:
            request.released, request.ended_at = True, self.now

    def peek(self, counters: list[Counter]) -> Any:
        return self.run(self.ledger.peek(counters, self.now))
