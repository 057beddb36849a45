from histories import Histories
from hypothesis import settings

from faregate.ledger.memory import MemoryLedger


class MemoryHistories(Histories):
    def open(self) -> MemoryLedger:
        return MemoryLedger(self.model)


TestMemoryHistories = MemoryHistories.TestCase
TestMemoryHistories.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
