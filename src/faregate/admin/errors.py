"""Every error of the admin API has one shape, OpenAI's: `{"error": {"message", "type", "code", "param"}}`."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from faregate.ledger.port import LedgerAway
from faregate.store.errors import StoreUnavailable, UnknownPolicy

RETRY_AFTER = 5
"""Seconds after which to try again when the store or the ledger is away."""


class ErrorDetail(BaseModel):
    """What went wrong; `param` is the field or parameter it is about."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class AdminError(Exception):
    """An answer that is an error. `message` is a sentence for the administrator."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers
        super().__init__(message)


def invalid(param: str, message: str) -> AdminError:
    """422, naming the field."""
    return AdminError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_value", message, param=param)


def not_found(what: str, name: str, *, param: str | None = None) -> AdminError:
    """404 for a noun of the API."""
    return AdminError(HTTPStatus.NOT_FOUND, "not_found", f"There is no {what} {name!r}.", param=param)


def conflict(code: str, message: str) -> AdminError:
    """409: the request is fine, the state of things forbids it."""
    return AdminError(HTTPStatus.CONFLICT, code, message)


def error_response(
    status: int,
    code: str,
    message: str,
    *,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as the API says it."""
    kind = {401: "authentication_error", 500: "server_error", 503: "server_error"}.get(status, "invalid_request_error")
    detail = ErrorDetail(message=message, type=kind, code=code, param=param)
    # The answer to a fault of ours is given outside of all middleware.
    return JSONResponse(ErrorBody(error=detail).model_dump(), status, {"cache-control": "no-store", **(headers or {})})


def install(app: FastAPI) -> None:
    """Let `app` answer every failure in the one shape."""
    app.add_exception_handler(AdminError, _admin_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(UnknownPolicy, _unknown_policy)
    app.add_exception_handler(StoreUnavailable, _unavailable)
    app.add_exception_handler(LedgerAway, _ledger_away)
    app.add_exception_handler(Exception, _unexpected)


async def _admin_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AdminError)  # noqa: S101 - how handlers are registered
    return error_response(error.status, error.code, error.message, param=error.param, headers=error.headers)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError | ValidationError)  # noqa: S101 - how handlers are registered
    first = error.errors()[0]
    param = _path(first["loc"])
    reason = str(first["msg"]).removeprefix("Value error, ")
    return error_response(422, "invalid_value", f"{param} is not valid: {reason}.", param=param)


async def _http_exception(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - how handlers are registered
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    message = f"{phrase}: /admin/openapi.json lists what there is."
    return error_response(error.status_code, code, message, headers=error.headers)


async def _unknown_policy(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UnknownPolicy)  # noqa: S101 - how handlers are registered
    sentence = f"There is no policy {error.policy_id!r}: create it first."
    return error_response(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_value", sentence, param="policy_id")


async def _unavailable(_: Request, __: Exception) -> JSONResponse:
    return error_response(
        503,
        "store_unavailable",
        f"The database cannot be reached at the moment, nothing was changed. Try again in {RETRY_AFTER} seconds.",
        headers={"Retry-After": str(RETRY_AFTER)},
    )


async def _ledger_away(_: Request, error: Exception) -> JSONResponse:
    return error_response(
        503,
        "ledger_unavailable",
        f"What was used cannot be read at the moment: {str(error).rstrip('.')}. Try again in {RETRY_AFTER} seconds.",
        headers={"Retry-After": str(RETRY_AFTER)},
    )


async def _unexpected(_: Request, __: Exception) -> JSONResponse:
    # The traceback is logged by the server: Starlette raises the exception again after this answer.
    return error_response(500, "internal_error", "Faregate failed to do this; its log says why.")


def _path(location: Sequence[object]) -> str:
    # FastAPI puts the part of the request in front of the name.
    names = location[1:] if location and location[0] in {"query", "path", "header", "body"} else location
    return ".".join(str(name) for name in names) or "body"
