"""Why a call on Redis failed: what the server says, sorted by what it means for the call."""

import re
from enum import Enum, auto

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from faregate.ledger.port import LedgerAway

REPLIES = (ResponseError, BusyLoadingError, AuthenticationError)
"""The exceptions of redis-py that are replies; others say that the connection failed."""

_CODES: dict[type[Exception], str] = {
    AskError: "ASK",
    AuthenticationError: "NOAUTH",
    BusyLoadingError: "LOADING",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    MovedError: "MOVED",
    NoPermissionError: "NOPERM",
    NoScriptError: "NOSCRIPT",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
}
# Redis 6 wraps what a command in a script was told; redis-py knows the codes of plain replies only.
_WRAPPED = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")
# What Redis and Valkey say, without a code, where a script does what the user of our connection may not.
_FORBIDDEN = re.compile(r"The user executing the script can't|ACL failure in script")


class CallTimeout(LedgerAway):
    """Redis fell silent after the call was sent: it may have been done, or be done yet."""


class ConnectionLost(LedgerAway):
    """The connection ended after the call was sent: it may have been done."""


class NotSent(LedgerAway):
    """The call was not done, and will not be."""


class Meaning(Enum):
    """What a reply that is an error means."""

    UNKNOWN_SCRIPT = auto()
    ELSEWHERE = auto()
    """The server is not, or not now, the one to ask. Nothing was done."""
    UNABLE = auto()
    """It is the right one, and cannot serve."""
    MISTAKE = auto()
    """We asked for what cannot be asked for."""


_MEANINGS = {
    "NOSCRIPT": Meaning.UNKNOWN_SCRIPT,
    **dict.fromkeys(
        ("ASK", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOAUTH", "READONLY", "TRYAGAIN"), Meaning.ELSEWHERE
    ),
    **dict.fromkeys(("BUSY", "MISCONF", "NOPERM", "NOREPLICAS", "OOM"), Meaning.UNABLE),
}


def meaning(error: Exception) -> Meaning:
    """What one of REPLIES means."""
    code = _CODES.get(type(error))
    if code is None:
        text = str(error)
        if _FORBIDDEN.search(text):
            return Meaning.UNABLE
        wrapped = _WRAPPED.search(text)
        code = wrapped[1] if wrapped else text.partition(" ")[0]
    return _MEANINGS.get(code, Meaning.MISTAKE)


def said(error: Exception) -> str:
    """What the server said, with the code that redis-py has cut off."""
    code = _CODES.get(type(error))
    return str(error).rstrip(".") if code is None else f"{code} {error}".rstrip(".")
