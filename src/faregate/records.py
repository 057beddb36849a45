"""What is known of a request, before and after: its facts at admission and the one usage record it becomes."""

from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

import msgspec

PICO = Decimal("0.000000000001")
"""The smallest part of a dollar that a record keeps (`NUMERIC(24,12)`)."""

NOTHING = Decimal(0)
"""What a request costs that nobody bills."""


class Status(StrEnum):
    """How a request ended. `pending`: it is over, but what it cost is not known yet."""

    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    REFUSED = "refused"
    PENDING = "pending"


class Source(StrEnum):
    """Where the figures of a record come from."""

    USAGE = "usage"
    GENERATION = "generation"
    ESTIMATE = "estimate"


class Facts(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What is known of a request when it is admitted: enough for another node to settle it and write its record.

    `admitted_at` is in seconds since the epoch; its calendar windows are the ones that are charged, however late.
    `model` is the one asked for, `candidates` all that may answer, `aliases` for each of these its other names.
    `fixed_nano` and `nano_per_output_token` (nano-dollars), `prompt_bound` and `cap` (tokens) are what the hold was
    made of. `rules` are the rules that matched, in words.
    """

    request_id: str
    admitted_at: float
    connection: str
    user_id: str
    email: str | None
    groups: tuple[str, ...]
    policy_id: str
    model: str
    candidates: tuple[str, ...] = ()
    aliases: tuple[tuple[str, ...], ...] = ()
    stream: bool = False
    chat_id: str | None = None
    task: str | None = None
    cap: int = 0
    prompt_bound: int = 0
    fixed_nano: int = 0
    nano_per_output_token: int = 0
    rules: tuple[str, ...] = ()

    def families(self) -> tuple[tuple[str, ...], ...]:
        """For each model that may answer, all names that it is known by: a limit on one of them is about it."""
        return _families(self.candidates or (self.model,), self.aliases)

    def names(self) -> tuple[str, ...]:
        """All names of all models that may answer."""
        return tuple(name for family in self.families() for name in family)

    def bound_nano(self) -> int:
        """The most that the request can cost, in nano-dollars."""
        return self.fixed_nano + self.cap * self.nano_per_output_token

    def bound_tokens(self) -> int:
        """The most tokens that the request can use."""
        return self.prompt_bound + self.cap


class UsageRecord(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One row per request. `cost` is in dollars, None while `pending`; `cost_nano` is what the counters were charged.

    `ttft_ms` (time to first token) and `duration_ms` are None where nothing was answered. `requests` is 0 for a
    refusal, which counts on no counter, else 1. `reason` is why it was refused or failed, in full, for administrators.
    `outcome` is how a `pending` request ended. `era` is the era of a shared ledger in which the record was charged:
    its counters are built from the records of earlier eras, so that each counts once. 0 where no ledger is shared,
    or nothing was charged.
    """

    facts: Facts
    status: Status
    source: Source | None = None
    served_model: str | None = None
    provider: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal | None = NOTHING
    cost_nano: int = 0
    requests: int = 1
    ttft_ms: int | None = None
    duration_ms: int | None = None
    generation_id: str | None = None
    reason: str | None = None
    outcome: Status | None = None
    era: int = 0

    def counted_models(self) -> tuple[str, ...]:
        """The names whose limits this record counts on: those of the candidate that served, else of all candidates.

        OpenRouter may answer under a name that nobody listed; then every candidate is charged, never none.
        """
        facts = self.facts
        return _counted(facts.candidates or (facts.model,), facts.aliases, self.served_model)


altered = msgspec.structs.replace
"""`altered(row, **changes)` is `row` with these fields instead of its own."""


# Remembered for the few models that are asked at a time.
@lru_cache(maxsize=1024)
def _counted(candidates: tuple[str, ...], aliases: tuple[tuple[str, ...], ...], served: str | None) -> tuple[str, ...]:
    families = _families(candidates, aliases)
    if served is not None:
        for family in families:
            if served in family:
                return family
    return tuple(name for family in families for name in family)


def _families(candidates: tuple[str, ...], aliases: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    aliases = aliases or ((),) * len(candidates)
    return tuple((name, *others) for name, others in zip(candidates, aliases, strict=True))
