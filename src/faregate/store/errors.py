"""What can go wrong with the store. The messages are sentences for people, without SQL and without data."""

from datetime import UTC, datetime


class StoreError(Exception):
    """The store cannot be used as it is configured; trying again will not help."""


class StoreUnavailable(StoreError):
    """The database did not answer, is locked, full or away. Trying again may help.

    Nothing was written, unless the connection broke just before the database could confirm it.
    """


class PolicyInUse(StoreError):
    """The policy is still assigned, so that deleting it would silently lift limits."""

    def __init__(self, policy_id: str, *, users: int, groups: tuple[str, ...]) -> None:
        self.policy_id = policy_id
        self.users = users
        self.groups = groups
        super().__init__(f"the policy {policy_id} is still assigned")


class UnknownPolicy(StoreError):
    """There is no policy with this id, so that nobody can be assigned to it."""

    def __init__(self, policy_id: str) -> None:
        self.policy_id = policy_id
        super().__init__(f"there is no policy {policy_id}")


class UnknownRecord(StoreError):
    """There is no usage record with this request id."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        super().__init__(f"there is no usage record {request_id}")


class JobTaken(StoreError):
    """Another node is doing this at the moment, and one is enough."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"another node is at the job {job}")


class StillStale(StoreError):
    """Records cannot be deleted, because roll-ups lack them: they could never be made up for."""

    def __init__(self) -> None:
        super().__init__("nothing was deleted, because some of it is not added up yet")


class RollupFailed(StoreError):
    """One hour cannot be added up, for another reason than a database that is away.

    `hour` is its beginning in seconds since the epoch, `why` is the kind of error.
    """

    def __init__(self, hour: float, why: str) -> None:
        self.hour = hour
        self.why = why
        start = datetime.fromtimestamp(hour, UTC)
        super().__init__(f"the hour from {start:%Y-%m-%d %H:%M} UTC cannot be added up ({why})")
