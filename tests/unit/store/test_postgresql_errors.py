"""Which errors of PostgreSQL are worth another try, and which would only come again."""

import pytest
from asyncpg import exceptions

from faregate.store.postgresql import is_our_fault


@pytest.mark.parametrize(
    "kind",
    [
        exceptions.CannotConnectNowError,
        exceptions.AdminShutdownError,
        exceptions.CrashShutdownError,
        exceptions.TooManyConnectionsError,
        exceptions.DiskFullError,
        exceptions.OutOfMemoryError,
        exceptions.ConnectionDoesNotExistError,
        exceptions.InvalidPasswordError,
        exceptions.InvalidCatalogNameError,
        exceptions.InsufficientPrivilegeError,
        exceptions.ReadOnlySQLTransactionError,
        exceptions.DeadlockDetectedError,
        exceptions.SerializationError,
        exceptions.LockNotAvailableError,
        exceptions.QueryCanceledError,
        exceptions.PostgresIOError,
        exceptions.InterfaceError,
        exceptions.InternalClientError,
    ],
)
def test_what_the_server_or_its_administrator_can_mend_is_tried_again(kind):
    assert not is_our_fault(kind("the server's own words"))


@pytest.mark.parametrize(
    "kind",
    [
        exceptions.NumericValueOutOfRangeError,
        exceptions.UntranslatableCharacterError,
        exceptions.NotNullViolationError,
        exceptions.UniqueViolationError,
        exceptions.UndefinedColumnError,
        exceptions.ProgramLimitExceededError,
        exceptions.FeatureNotSupportedError,
        exceptions.DataError,
    ],
)
def test_what_is_wrong_with_a_row_or_a_statement_is_not(kind):
    assert is_our_fault(kind("the server's own words"))
