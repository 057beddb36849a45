"""All policies at one moment, and which of them applies to a person."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from faregate.policy.model import DEFAULT_POLICY_ID, GroupPolicy, Limit, Meter, Policy, Scope, Window

Via = Literal["user", "group", "default"]
"""How a policy came to a person."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a limit is about, without whom it concerns and how much it is. Counters exist per shape."""

    scope: Scope
    meter: Meter
    window: Window | None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Resolution:
    """The policy that applies to a person, and why. `group` is the one that it came through, if it did.

    Equal to itself alone: what is worked out for it can be remembered by it, and is for its rulebook only.
    """

    policy: Policy
    via: Via
    group: str | None
    amounts: Mapping[Shape, int]

    @property
    def words(self) -> str:
        """How the policy came to the person, for records."""
        return f"policy {self.policy.id} by {self.via if self.group is None else f'group {self.group}'}"

    def limit_for(self, shape: Shape, scope_id: str) -> int | None:
        """The limit on the counter of `shape` for `scope_id`; None counts without a limit.

        Nano-dollars for `usd`, else tokens or requests. A group limit of a policy that came through a group
        is about the pool of that group alone; of any other policy, about the pool of each of the person's groups.
        """
        if shape.scope is Scope.GROUP and self.group is not None and scope_id != self.group:
            return None
        return self.amounts.get(shape)


class Rulebook:
    """Policies and their assignment to groups: an immutable snapshot. There always is a `default` policy."""

    def __init__(self, policies: Iterable[Policy], group_policies: Iterable[GroupPolicy]) -> None:
        by_id = {DEFAULT_POLICY_ID: Policy(DEFAULT_POLICY_ID, "Default")}
        by_id.update((policy.id, policy) for policy in policies)
        self.policies: Mapping[str, Policy] = MappingProxyType(by_id)
        self.group_policies = tuple(sorted(group_policies, key=_rank))
        self.shapes: tuple[Shape, ...] = tuple(
            dict.fromkeys(_shape(limit) for policy in by_id.values() for limit in policy.limits)
        )
        self._amounts = {policy.id: _amounts(policy) for policy in by_id.values()}
        self._resolutions: dict[tuple[str, Via, str | None], Resolution] = {}
        # A policy that is gone does not hide the next rule.
        self._by_group = {rule.group: rule for rule in reversed(self.group_policies) if rule.policy_id in by_id}

    def resolve(self, policy_id: str | None, groups: Sequence[str]) -> Resolution:
        """The policy assigned to the person (`policy_id`), else of their first-ranking group, else the default."""
        if policy_id is not None and policy_id in self.policies:
            return self._resolution(policy_id, "user")
        if groups and (ranked := [self._by_group[group] for group in groups if group in self._by_group]):
            rule = min(ranked, key=_rank)
            return self._resolution(rule.policy_id, "group", rule.group)
        return self._resolution(DEFAULT_POLICY_ID, "default")

    def _resolution(self, policy_id: str, via: Via, group: str | None = None) -> Resolution:
        # The same object each time: what was worked out for it can be found again.
        key = policy_id, via, group
        if (known := self._resolutions.get(key)) is None:
            known = Resolution(self.policies[policy_id], via, group, self._amounts[policy_id])
            self._resolutions[key] = known
        return known


def _rank(rule: GroupPolicy) -> tuple[int, str]:
    return -rule.priority, rule.group


def _shape(limit: Limit) -> Shape:
    return Shape(limit.scope, limit.meter, limit.window, limit.models)


def _amounts(policy: Policy) -> Mapping[Shape, int]:
    amounts: dict[Shape, int] = {}
    for limit in policy.limits:
        shape = _shape(limit)
        amounts[shape] = min(limit.amount, amounts.get(shape, limit.amount))
    return MappingProxyType(amounts)
