"""Reading a JSON body so that no number loses a digit on the way in."""

import json
from decimal import Decimal
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from faregate.admin.errors import AdminError, invalid

MAX_BYTES = 1_000_000


async def _json_object(request: Request) -> dict[str, object]:
    try:
        data = json.loads(
            await _read(request), parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=_unrepeated
        )
    except (ValueError, ArithmeticError, RecursionError):
        raise invalid("body", "The body is not JSON: send one JSON object.") from None
    if not isinstance(data, dict):
        raise invalid("body", "The body should be one JSON object.")
    _check(data, "")
    return data


JsonObject = Annotated[dict[str, object], Depends(_json_object)]
"""The body: a JSON object with `Decimal` for every number that is not an integer."""


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that `JsonObject` reads."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    # The references of a schema are about its own root, which it has not once it is part of another document.
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: _inlined(item, definitions) for name, item in schema.items() if name != "$ref"}
    if "$ref" in schema:
        whole = _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions) | whole
    return whole


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise AdminError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body_too_large",
                f"The body is larger than {MAX_BYTES:,} bytes, which is more than the admin API reads.",
                # Otherwise the server goes on receiving what nobody reads.
                headers={"connection": "close"},
            )
    return bytes(body)


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise invalid(repeated, f"{repeated!r} is there twice: send it once.")
    return fields


def _check(value: object, path: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not _is_text(name):
                raise invalid(path or "body", "The name of a field has characters that no database can keep.")
            _check(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
    elif isinstance(value, Decimal) and not value.is_finite():
        raise invalid(path, f"{path} should be a number.")
    elif isinstance(value, str) and not _is_text(value):
        raise invalid(path, f"{path} has characters that no database can keep.")


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
