"""The nouns of a policy. Pure data: amounts are integers, nothing here reads a clock or a file."""

from dataclasses import dataclass
from enum import StrEnum

NANO = 1_000_000_000
"""Nano-dollars in a dollar: the unit of `usd` counters."""


class Meter(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    USD = "usd"
    CONCURRENT = "concurrent"


class Window(StrEnum):
    """The time a limit is about. `minute` is a sliding rate, the others follow the calendar."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"


class Scope(StrEnum):
    """Whose spending a counter adds up."""

    USER = "user"
    GROUP = "group"
    EVERYONE = "everyone"


class Enforcement(StrEnum):
    """`strict` holds an upper bound, `soft` an estimate, `shadow` refuses nothing and records what it would."""

    STRICT = "strict"
    SOFT = "soft"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Limit:
    """One line of a policy.

    `amount` is in nano-dollars for `usd`, else in tokens or requests. `window` is None for `concurrent`
    alone. `models` are lower-cased patterns, sorted; empty means every model.
    """

    meter: Meter
    window: Window | None
    amount: int
    scope: Scope = Scope.USER
    models: tuple[str, ...] = ()


DEFAULT_POLICY_ID = "default"
DEFAULT_MAX_OUTPUT_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Policy:
    """Named limits and permissions. `allow` empty means every model; `deny` wins over `allow`."""

    id: str
    name: str
    limits: tuple[Limit, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_output_tokens: int = DEFAULT_MAX_OUTPUT_TOKENS
    enforcement: Enforcement = Enforcement.STRICT


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """A policy assigned to a group. The highest `priority` among a person's groups wins, then the name."""

    group: str
    policy_id: str
    priority: int = 0
