"""People and rules in memory: what the hot path asks instead of the database.

The database is the memory of the directory, not its source: a person is known here first and written later
(`changed`), a policy is written first and known here afterwards, and what other nodes wrote is taken over
(`follow`, `replace_rules`). Synchronous and for one thread, so that nothing can happen between looking and doing.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict, Unpack

from faregate.policy.model import GroupPolicy, Policy
from faregate.policy.rulebook import Resolution, Rulebook

SEEN_EVERY = 60.0
"""Seconds between two writes of `last_seen_at` of one person who changes in nothing else."""

MICROSECOND = 1e-6
"""What databases tell two instants apart by, in seconds."""


@dataclass(frozen=True, slots=True)
class Person:
    """What a request proved about who sent it.

    None in `email`, `name`, `role` or `groups` means that the request did not say: what is known stays.
    An empty `groups` says that the person is in none.
    """

    connection: str
    subject: str
    email: str | None = None
    name: str | None = None
    role: str | None = None
    groups: tuple[str, ...] | None = None


@dataclass(slots=True)
class User:
    """A person as registered, unique per (`connection`, `subject`). Times are in seconds since the epoch.

    `policy_id` is the policy assigned to this very person, None if there is none. `groups` are sorted.
    """

    id: str
    connection: str
    subject: str
    email: str | None
    name: str | None
    role: str | None
    groups: tuple[str, ...]
    is_active: bool
    policy_id: str | None
    created_at: float
    last_seen_at: float


class Assignment(TypedDict, total=False):
    """What an administrator decides about a person; a key that is absent leaves that part as it is."""

    is_active: bool
    policy_id: str | None


class Directory:
    """Everybody and every rule that this node knows.

    `changing` is held by whoever reads or writes the store and brings that here: what was read before a change
    could otherwise arrive after it, and undo it on this node.
    """

    def __init__(
        self,
        users: Iterable[User],
        policies: Iterable[Policy],
        group_policies: Iterable[GroupPolicy],
        *,
        changed: Callable[[User], None],
    ) -> None:
        self._by_id = {user.id: user for user in users}
        self._by_subject = {(user.connection, user.subject): user for user in self._by_id.values()}
        self._announced = {user.id: user.last_seen_at for user in self._by_id.values()}
        # What each said last. It comes as the same object for as long as a token is believed.
        self._heard: dict[str, Person] = {}
        self._policies = {policy.id: policy for policy in policies}
        self._group_policies = {rule.group: rule for rule in group_policies}
        self._changed = changed
        self._rulebook = self._compile()
        self.changing = asyncio.Lock()

    @property
    def rulebook(self) -> Rulebook:
        """The rules of this moment. Immutable: a change of rules replaces it, so one request sees one state."""
        return self._rulebook

    def recognise(self, person: Person, now: float) -> User:
        """The user that `person` is, registered if this is the first time; `now` in seconds since the epoch."""
        user = self._by_subject.get((person.connection, person.subject))
        if user is None:
            return self._register(person, now)
        before = user.last_seen_at
        if now > before:
            user.last_seen_at = now
        if self._heard.get(user.id) is not person and self._hear(user, person):
            # Newer than the state that it replaces, whatever the clock says: the other nodes go by that.
            user.last_seen_at = max(user.last_seen_at, before + MICROSECOND)
            self._announce(user)
        elif user.last_seen_at - self._announced[user.id] >= SEEN_EVERY:
            self._announce(user)
        return user

    def user(self, user_id: str) -> User | None:
        """The user with this id."""
        return self._by_id.get(user_id)

    def users(self) -> list[User]:
        """Everybody, first registered first."""
        return sorted(self._by_id.values(), key=lambda user: (user.created_at, user.id))

    def find(self, id_or_email: str) -> list[User]:
        """Who has this id or e-mail. Several connections may each know somebody by the same e-mail."""
        if (user := self._by_id.get(id_or_email)) is not None:
            return [user]
        email = id_or_email.strip().lower()
        return [user for user in self.users() if user.email == email]

    def put_policy(self, policy: Policy) -> None:
        """Add `policy`, or replace the one with its id."""
        self._policies[policy.id] = policy
        self._rulebook = self._compile()

    def drop_policy(self, policy_id: str) -> None:
        """Forget a policy; the caller has made sure that nothing is assigned to it."""
        self._policies.pop(policy_id, None)
        self._rulebook = self._compile()

    def put_group_policy(self, rule: GroupPolicy) -> None:
        """Add `rule`, or replace the one of its group."""
        self._group_policies[rule.group] = rule
        self._rulebook = self._compile()

    def drop_group_policy(self, group: str) -> None:
        """Forget the policy of `group`."""
        self._group_policies.pop(group, None)
        self._rulebook = self._compile()

    def assign(self, user_id: str, **changes: Unpack[Assignment]) -> User:
        """Apply what an administrator decided and the store has kept. Raises KeyError for an unknown id."""
        user = self._by_id[user_id]
        if "is_active" in changes:
            user.is_active = changes["is_active"]
        if "policy_id" in changes:
            user.policy_id = changes["policy_id"]
        return user

    def replace_rules(self, policies: Iterable[Policy], group_policies: Iterable[GroupPolicy]) -> None:
        """Have these rules and no others. If they are those that are known, the rulebook stays the same object."""
        by_id = {policy.id: policy for policy in policies}
        by_group = {rule.group: rule for rule in group_policies}
        if by_id == self._policies and by_group == self._group_policies:
            return
        self._policies, self._group_policies = by_id, by_group
        self._rulebook = self._compile()

    def follow(self, users: Iterable[User]) -> None:
        """Take over people as the store has them.

        What an administrator decided, and since when somebody is registered, is always as the store says. What people
        said of themselves is so only if the store has seen them at least as late as this node: what this node knows
        may be on its way to the store. Where the store has less, or something older that nothing on its way will
        replace, it is told again.
        """
        for stored in users:
            user = self._by_subject.get((stored.connection, stored.subject))
            if user is None:
                self._by_id[stored.id] = self._by_subject[stored.connection, stored.subject] = stored
                self._announced[stored.id] = stored.last_seen_at
                continue
            user.is_active = stored.is_active
            user.policy_id = stored.policy_id
            user.created_at = stored.created_at
            if stored.last_seen_at >= user.last_seen_at:
                if _follow(user, stored):
                    self._heard.pop(user.id, None)
                user.last_seen_at = self._announced[user.id] = stored.last_seen_at
            if _said(user) != _said(stored) and self._announced[user.id] <= stored.last_seen_at:
                self._announce(user)

    def resolve(self, user: User) -> Resolution:
        """The effective policy of `user`, and why it is that one."""
        return self._rulebook.resolve(user.policy_id, user.groups)

    def _register(self, person: Person, now: float) -> User:
        user = User(
            id=user_id_of(person.connection, person.subject),
            connection=person.connection,
            subject=person.subject,
            email=person.email,
            name=person.name,
            role=person.role,
            groups=_ordered(person.groups or ()),
            is_active=True,
            policy_id=None,
            created_at=now,
            last_seen_at=now,
        )
        self._by_id[user.id] = user
        self._by_subject[person.connection, person.subject] = user
        self._announce(user)
        return user

    def _hear(self, user: User, person: Person) -> bool:
        """Take over what `person` says differently, and remember that it was; whether anything did."""
        self._heard[user.id] = person
        return _follow(user, person)

    def _announce(self, user: User) -> None:
        self._announced[user.id] = user.last_seen_at
        self._changed(user)

    def _compile(self) -> Rulebook:
        return Rulebook(tuple(self._policies.values()), tuple(self._group_policies.values()))


def user_id_of(connection: str, subject: str) -> str:
    """The id of a person: the same on every node, so that two that meet somebody at once count on one counter."""
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    key = f"{len(connection)}:{connection}{subject}".encode("utf-8", "surrogatepass")
    return uuid.UUID(bytes=hashlib.sha256(key).digest()[:16], version=5).hex


def _follow(user: User, person: Person | User) -> bool:
    """Take over what `person` says differently; whether anything did."""
    groups = user.groups if person.groups is None else _ordered(person.groups)
    said = (
        user.email if person.email is None else person.email,
        user.name if person.name is None else person.name,
        user.role if person.role is None else person.role,
        groups,
    )
    if said == _said(user):
        return False
    user.email, user.name, user.role, user.groups = said
    return True


def _said(user: User) -> tuple[str | None, str | None, str | None, tuple[str, ...]]:
    return user.email, user.name, user.role, user.groups


def _ordered(groups: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(groups)))
