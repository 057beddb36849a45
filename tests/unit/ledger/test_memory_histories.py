"""The in-process engine, through random histories."""

from histories import histories_of
from hypothesis import settings

from faregate.ledger.memory import MemoryLedger

TestMemoryLedgerHistories = histories_of(MemoryLedger).TestCase
TestMemoryLedgerHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
