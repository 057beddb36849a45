"""The order of a start: what the journal kept goes to the database before anything is added up from there."""

from faregate.accounting.outbox import Outbox
from faregate.accounting.spend import Spend, SpendSource
from faregate.ledger.journal import Replay
from faregate.policy.windows import Calendar


async def recover_spend(store: SpendSource, outbox: Outbox, kept: Replay, calendar: Calendar, now: float) -> Spend:
    """The sums of everything that was settled, what the journal `kept` included, each once.

    To be called before the outbox is started. Afterwards the ledger can take its holds back, and the accountant
    `recover` them. `now` is in epoch seconds. Raises `StoreUnavailable`.
    """
    outbox.restore(kept.records, kept.people)
    await outbox.flush()
    spend = await Spend.load(store, calendar, now)
    # What the database refuses was spent all the same.
    for record in outbox.unwritten():
        spend.add(record, now)
    return spend
