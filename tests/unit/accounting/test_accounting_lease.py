"""The leases of this node are renewed, whatever goes wrong once."""

from accounting_world import NOON, HandClock, others_run

from faregate.accounting.lease import RENEW_SECONDS, Leases


class Books:
    """A ledger and an accountant that note when they are called, and fail at the moments in `fails`."""

    def __init__(self, fails=()):
        self.fails = fails
        self.renewed = []
        self.taken_over = []

    async def renew(self, _node, _lease, now):
        self.renewed.append(now)
        if now in self.fails:
            raise OSError("no file descriptor is left")

    async def take_over(self, now):
        self.taken_over.append(now)
        if now in self.fails:
            raise ValueError("a hold that cannot be read")


async def renewing(ledger, accountant, rounds):
    clock = HandClock()
    leases = Leases(ledger, accountant, "node", clock=clock)
    leases.start()
    await others_run()
    for _ in range(rounds - 1):
        await clock.advance(RENEW_SECONDS)
    await leases.stop()


async def test_a_renewal_that_fails_is_logged_and_tried_again(caplog):
    ledger, accountant = Books(fails={NOON}), Books()
    await renewing(ledger, accountant, rounds=3)

    assert ledger.renewed == [NOON, NOON + RENEW_SECONDS, NOON + 2 * RENEW_SECONDS]
    assert accountant.taken_over == ledger.renewed[1:]
    assert "leases could not be renewed" in caplog.text


async def test_holds_that_cannot_be_taken_over_do_not_end_the_renewing(caplog):
    ledger, accountant = Books(), Books(fails={NOON, NOON + RENEW_SECONDS})
    await renewing(ledger, accountant, rounds=3)

    assert len(ledger.renewed) == len(accountant.taken_over) == 3
    assert caplog.text.count("leases could not be renewed") == 2
