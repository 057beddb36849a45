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
# Redis 6 wraps what a command in a script was told.
_WRAPPED = re.compile(r"@user_script: ?\d+: -?([A-Z]+) ")
# What Redis and Valkey say, without a code, where a script does what the user of our connection may not.
_FORBIDDEN = re.compile(r"The user executing the script can't|ACL failure in script")


class CallTimeout(LedgerAway):
    """Redis fell silent after the call was sent: it may have been done, or be done yet."""


class ConnectionLost(LedgerAway):
    """The connection ended after the call was sent: it may have been done."""


class NotSent(LedgerAway):
    """The call was not done, and will not be."""


class Silent(LedgerAway):
    """Whom we connect to does not answer in time. No call was sent."""


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


def meaning(reply: ResponseError) -> Meaning:
    """What a reply means that is the whole of what the server said, its code included."""
    text = str(reply)
    if _FORBIDDEN.search(text):
        return Meaning.UNABLE
    wrapped = _WRAPPED.search(text)
    return _MEANINGS.get(wrapped[1] if wrapped else text.partition(" ")[0], Meaning.MISTAKE)


def said(error: Exception) -> str:
    """What the server said, with its code if redis-py has cut that off."""
    code = _CODES.get(type(error))
    return str(error).rstrip(".") if code is None else f"{code} {error}".rstrip(".")
