"""The figures of a record: from a cost, from what OpenRouter tells afterwards, or from the hold's own bound.

Pure: records in, records out.
"""

from decimal import ROUND_CEILING, Decimal

from faregate.accounting.generation import Generation
from faregate.ledger.port import Hold
from faregate.policy.model import NANO
from faregate.policy.money import nano_of
from faregate.records import PICO, Source, Status, UsageRecord, altered

NODE_STOPPED = "the gateway node that served this request stopped before the answer had ended"


def charged(cost: Decimal) -> tuple[Decimal, int]:
    """A `cost` (dollars) as a record keeps it, rounded up to 12 decimals, and in nano-dollars as the counters do.

    Raises ValueError for a cost that is negative or not a number: it would credit somebody.
    """
    if not cost.is_finite() or cost < 0:
        raise ValueError(f"a cost is zero or more dollars, not {cost}")
    exact = cost.quantize(PICO, ROUND_CEILING)
    return exact, nano_of(exact)


def with_cost(record: UsageRecord, cost: Decimal, source: Source) -> UsageRecord:
    """`record` with its `cost` (dollars) and what the counters are charged for it. Raises as `charged`."""
    exact, nano = charged(cost)
    return altered(record, cost=exact, cost_nano=nano, source=source)


def pending_row(record: UsageRecord) -> UsageRecord:
    """`record` as it is kept while its cost is not known: `pending`, charged nothing, its status as `outcome`."""
    return altered(
        record, status=Status.PENDING, source=None, cost=None, cost_nano=0, outcome=record.outcome or record.status
    )


def unsettled_row(record: UsageRecord) -> UsageRecord:
    """`record`, whose figures are final, as it is kept while it waits for the ledger: `pending`, charged nothing yet.

    Its status is kept as `outcome`, and what it cost as it is.
    """
    return altered(record, status=Status.PENDING, cost_nano=0, outcome=record.status)


def ended(row: UsageRecord) -> UsageRecord:
    """The record that a pending `row` was made of, as far as its figures are known; final if it has a cost."""
    nano = 0 if row.cost is None else nano_of(row.cost)
    return altered(row, status=row.outcome or Status.FAILED, outcome=None, cost_nano=nano)


def orphan(hold: Hold) -> UsageRecord:
    """The record of a hold whose node stopped: the answer was cut, what it cost is not known yet."""
    return UsageRecord(
        facts=hold.facts,
        status=Status.FAILED,
        cost=None,
        generation_id=hold.generation_id,
        reason=NODE_STOPPED,
    )


def from_generation(record: UsageRecord, generation: Generation) -> UsageRecord | None:
    """`record` with the figures that OpenRouter told afterwards; None if it did not tell the cost."""
    if generation.cost is None:
        return None
    return with_cost(_with_tokens(record, generation), generation.cost, Source.GENERATION)


def with_known_tokens(record: UsageRecord, generation: Generation) -> UsageRecord:
    """`record` with the tokens that a generation without a cost tells; as it was, if it does not tell them all."""
    if generation.prompt_tokens is None or generation.completion_tokens is None:
        return record
    return _with_tokens(record, generation)


def estimated(record: UsageRecord) -> UsageRecord:
    """`record` settled on the estimate, never under what the request can have cost.

    Where the usage told its tokens: these at the hold's prices, with the prompt's part in full. Else the hold's bound.
    """
    facts = record.facts
    if record.total_tokens > 0:
        nano = facts.fixed_nano + record.completion_tokens * facts.nano_per_output_token
        return with_cost(record, Decimal(nano) / NANO, Source.ESTIMATE)
    bound = altered(
        record,
        prompt_tokens=facts.prompt_bound,
        completion_tokens=facts.cap,
        total_tokens=facts.bound_tokens(),
    )
    return with_cost(bound, Decimal(facts.bound_nano()) / NANO, Source.ESTIMATE)


def _with_tokens(record: UsageRecord, generation: Generation) -> UsageRecord:
    prompt = _told(generation.prompt_tokens, record.prompt_tokens)
    completion = _told(generation.completion_tokens, record.completion_tokens)
    told = generation.prompt_tokens is not None or generation.completion_tokens is not None
    return altered(
        record,
        # The name on the answer is kept: it is the one that patterns know, this one may be dated.
        served_model=record.served_model or generation.model,
        provider=generation.provider or record.provider,
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion if told else record.total_tokens,
        cached_tokens=_told(generation.cached_tokens, record.cached_tokens),
        reasoning_tokens=_told(generation.reasoning_tokens, record.reasoning_tokens),
    )


def _told(told: int | None, known: int) -> int:
    return known if told is None else told
