"""What callers read when something does not go through: OpenAI's error shape, a status, a sentence.

Open WebUI shows `error.message` in the chat, as plain text, and passes on nothing but `Retry-After`
(contract with Open WebUI, section d).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec


@dataclass(slots=True)
class ApiError(Exception):
    """An answer that is an error. `reason` is for administrators alone; it stands in the record, not in the body."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None

    def body(self) -> bytes:
        """The JSON body."""
        return msgspec.json.encode(
            {"error": {"message": self.message, "type": self.type, "code": self.code, "param": self.param}}
        )

    def event(self) -> bytes:
        """The same as the last event of a stream that has begun.

        Without `choices` on purpose: with them Open WebUI shows nothing but a truncated answer.
        """
        return b"data: " + self.body() + b"\n\n"


def bad_request(message: str, param: str | None = None, status: int = 400) -> ApiError:
    """The request is not one that can be served as it stands."""
    return ApiError(status, message, "invalid_request_error", "invalid_request", param)


def no_route(method: str, path: str) -> ApiError:
    """A path or method outside the table."""
    return ApiError(
        404,
        f"There is no {method} {path[:200]} here. Faregate serves POST /v1/chat/completions and GET /v1/models.",
        "invalid_request_error",
        "not_found",
    )


def bad_key(message: str) -> ApiError:
    """The connection is not known."""
    return ApiError(
        401, message, "authentication_error", "invalid_api_key", headers={"www-authenticate": 'Bearer realm="faregate"'}
    )


def no_person(message: str) -> ApiError:
    """A spending call without a person that the connection's identity mode proves."""
    return ApiError(403, message, "permission_error", "identity_required")


def upstream_unavailable(reason: str, contact: str, status: int = 502) -> ApiError:
    """OpenRouter could not be reached, or its answer broke off. `reason` says it to administrators."""
    return ApiError(
        status,
        "The AI service did not answer. Nothing is wrong with your request: please try again in a moment, "
        f"and tell {contact} if it stays like this.",
        "upstream_error",
        "upstream_unavailable",
        headers={"retry-after": "5"},
        reason=reason,
    )


def books_closed(contact: str, reason: str) -> ApiError:
    """What is spent cannot be written down here. `reason` says it to administrators."""
    return ApiError(
        503,
        "The gateway cannot keep its books at the moment, so it does not spend anything. "
        f"Please try again in a minute, and tell {contact} if it stays like this.",
        "server_error",
        "ledger_unavailable",
        headers={"retry-after": "10"},
        reason=reason,
    )


def ledger_away(contact: str, reason: str) -> ApiError:
    """The shared ledger does not answer, so nobody can say what is left. `reason` says it to administrators."""
    return ApiError(
        503,
        "The gateway cannot check your limits at the moment, so it does not let anything through. "
        f"Please try again in a few seconds, and tell {contact} if it stays like this.",
        "server_error",
        "ledger_unavailable",
        # Said here too: the ledger may answer again by now.
        headers={"retry-after": "2", "x-faregate-ledger": "away"},
        reason=reason,
    )


def shutting_down() -> ApiError:
    """The node stops, and the time that it lets answers end in is over."""
    return ApiError(
        503,
        "The gateway is being restarted, and could not wait for the end of this answer. Please try again.",
        "server_error",
        "shutting_down",
        headers={"retry-after": "1"},
    )


def overloaded() -> ApiError:
    """As many requests are being served as this process takes."""
    return ApiError(
        503,
        "The gateway has as many requests as it can serve at the moment. Nothing is wrong with yours: "
        "please try again in a few seconds.",
        "server_error",
        "overloaded",
        headers={"retry-after": "1"},
    )


def internal_error() -> ApiError:
    """A mistake of ours; the log has it."""
    return ApiError(
        500,
        "The gateway made a mistake with this request. Please try again; it is noted in the gateway's log.",
        "server_error",
        "internal_error",
    )


def cut_short(reason: str) -> ApiError:
    """A stream that upstream did not bring to its end."""
    return ApiError(
        502,
        "The AI service broke off in the middle of this answer; what you see is all that arrived. Please try again.",
        "upstream_error",
        "upstream_cut",
        reason=reason,
    )
