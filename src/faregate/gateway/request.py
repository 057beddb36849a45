"""A chat request as it came in, checked, and as it goes out.

Only the top level is decoded; the values stay the bytes that were sent, so what is not ours to change leaves
unchanged. Everything below is decoded from one dictionary and sent from the same one: a key that stands twice,
or is spelled with escapes, means the same to us and to upstream.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

from faregate.gateway.errors import ApiError, bad_request
from faregate.pricing.bound import Ceiling

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder = msgspec.json.Encoder()
_null = b"null"
_LIST = re.compile(rb"\[(?!\s*\])")
_T = TypeVar("_T")

_HAIR = Decimal("0.000001")
"""Dollars per million tokens."""

LONGEST_NAME = 256
"""Characters of a model's name. It is kept in records, so it must not be a way to fill a disk."""
MOST_CANDIDATES = 16
"""Models that one request may name."""


@dataclass(frozen=True, slots=True)
class _Kind(Generic[_T]):
    """What a field should be, and that in words."""

    decoder: msgspec.json.Decoder[_T]
    words: str


_STRING = _Kind(msgspec.json.Decoder(str), "a string")
_NUMBER = _Kind(msgspec.json.Decoder(int), "a whole number")
_SWITCH = _Kind(msgspec.json.Decoder(bool), "true or false")
_STRINGS = _Kind(msgspec.json.Decoder(list[str]), "a list of strings")
_OBJECT = _Kind(_decoder, "an object")
_OBJECTS = _Kind(msgspec.json.Decoder(list[dict[str, msgspec.Raw]]), "a list of objects")

CAP_FIELDS = ("max_tokens", "max_completion_tokens")
_OPTIONAL = frozenset({*CAP_FIELDS, "n", "models", "fallbacks", "stream_options", "provider"})
"""The fields that are looked at when they are there, and most requests have none of them."""


class ChatRequest(msgspec.Struct, frozen=True, gc=False):
    """A chat completion request. `cap` is the client's own limit of output tokens, None if it set none."""

    fields: dict[str, msgspec.Raw]
    model: str
    candidates: tuple[str, ...]
    """Every model that OpenRouter may use for this request, the one asked for first."""
    stream: bool
    cap: int | None
    stream_options: dict[str, msgspec.Raw]
    provider: dict[str, msgspec.Raw]
    max_price: dict[str, msgspec.Raw]

    def raw(self, name: str) -> bytes | None:
        """The JSON text of a field; None when it is absent or null."""
        value = self.fields.get(name)
        if value is None:
            return None
        text = bytes(value)
        return None if text == _null else text


def parse_chat(body: bytes) -> ChatRequest:
    """Check a body. Raises `ApiError` (400) with a sentence that says what it should be."""
    try:
        if not body.isascii():
            body.decode()
        fields = _decoder.decode(body)
    except msgspec.ValidationError:
        raise bad_request("The request body should be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("The request body should be JSON, and it cannot be read as such.") from None
    model = _typed(fields, "model", _STRING)
    if not model or not model.strip():
        raise bad_request("The request should name a model, for example openai/gpt-4o-mini.", "model")
    if len(model) > LONGEST_NAME:
        raise bad_request(f"The name of a model should have at most {LONGEST_NAME} characters.", "model")
    if fields.get("prompt") is not None and bytes(fields["prompt"]) != _null:
        # Upstream takes one or the other: what it would make of both is not known, so no hold could be for it.
        raise bad_request("The request should have messages, and no prompt beside them.", "prompt")
    if not _LIST.match(fields.get("messages", b"")):
        raise bad_request("The request should have messages: a list with at least one message.", "messages")
    if _OPTIONAL.isdisjoint(fields):
        return ChatRequest(fields, model, (model,), _typed(fields, "stream", _SWITCH) is True, None, {}, {}, {})
    if (choices := _typed(fields, "n", _NUMBER)) is not None and choices != 1:
        raise bad_request("n should be 1: the gateway asks for one answer per request.", "n")
    provider = _typed(fields, "provider", _OBJECT) or {}
    return ChatRequest(
        fields=fields,
        model=model,
        candidates=tuple(dict.fromkeys((model, *_fallbacks(fields)))),
        stream=_typed(fields, "stream", _SWITCH) is True,
        cap=_cap(fields),
        stream_options=_typed(fields, "stream_options", _OBJECT) or {},
        provider=provider,
        max_price=_typed(provider, "max_price", _OBJECT) or {},
    )


def outgoing(request: ChatRequest, *, cap: int, user: str, ceiling: Ceiling | None = None) -> bytes:
    """The body for upstream: the output `cap` that the hold pays for, the pseudonym `user`, a `ceiling` of prices.

    Refuses nothing: the hold is in place by now, so all that can be wrong is found by `parse_chat`.
    """
    fields: dict[str, object] = dict(request.fields)
    if request.cap is None:
        fields[CAP_FIELDS[0]] = cap
    else:
        fields |= {name: cap for name in CAP_FIELDS if request.raw(name) is not None}
    if (reasoning := request.fields.get("reasoning")) is not None:
        fields["reasoning"] = _capped(reasoning, cap)
    fields["user"] = user
    if request.stream:
        # Open WebUI asks for usage only from some models; the books need it from all.
        fields["stream_options"] = {**request.stream_options, "include_usage": True}
    if ceiling is not None:
        max_price = _max_price(request.max_price, ceiling) if request.max_price else _listed(ceiling)
        fields["provider"] = {**request.provider, "max_price": max_price}
    return _encoder.encode(fields)


@lru_cache(maxsize=4_096)
def _listed(ceiling: Ceiling) -> msgspec.Raw:
    return _raw(_max_price({}, ceiling))


def _max_price(asked: dict[str, msgspec.Raw], ceiling: Ceiling) -> dict[str, msgspec.Raw]:
    # The list shows the cheapest endpoint of a model and others may be dearer: the hold is true only if they are
    # not used (contract, section 7). A hair more than the price itself, lest a rounding refuse the listed one.
    prices = dict(asked)
    for name, price in (("prompt", ceiling.prompt), ("completion", ceiling.completion)):
        own = _price(prices.get(name))
        if own is None or own > price + _HAIR:
            prices[name] = msgspec.Raw(f"{price + _HAIR:f}".encode())
    return prices


def _price(raw: msgspec.Raw | None) -> Decimal | None:
    if raw is None:
        return None
    try:
        price = msgspec.json.decode(raw, type=Decimal)
    except msgspec.DecodeError:
        return None
    return price if price.is_finite() and price >= 0 else None


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encoder.encode(value))


def _capped(raw: msgspec.Raw, cap: int) -> object:
    # Reasoning is paid from the same cap, and providers refuse a reasoning budget that is not below it.
    try:
        reasoning = _decoder.decode(raw)
        budget = msgspec.json.decode(reasoning["max_tokens"], type=int)
    except (msgspec.DecodeError, KeyError):
        return raw
    return {**reasoning, "max_tokens": max(1, cap // 2)} if budget >= cap else raw


def _fallbacks(fields: dict[str, msgspec.Raw]) -> tuple[str, ...]:
    for field in ("models", "fallbacks"):
        raw = fields.get(field)
        # Before they are decoded: a list of millions is refused for the price of counting its commas.
        if raw is not None and bytes(raw).count(b",") > MOST_CANDIDATES * 8:
            raise _too_many(field)
    names = _typed(fields, "models", _STRINGS) or []
    entries = _typed(fields, "fallbacks", _OBJECTS) or []
    for entry in entries:
        name = _typed(entry, "model", _STRING)
        if not name:
            raise bad_request("Each entry of fallbacks should name a model.", "fallbacks")
        names.append(name)
    if not all(name.strip() for name in names):
        raise bad_request("models should be a list of model names.", "models")
    if len(names) >= MOST_CANDIDATES:
        raise _too_many("models")
    if any(len(name) > LONGEST_NAME for name in names):
        raise bad_request(f"The name of a model should have at most {LONGEST_NAME} characters.", "models")
    return tuple(names)


def _too_many(field: str) -> ApiError:
    return bad_request(f"A request should name at most {MOST_CANDIDATES} models.", field)


def _cap(fields: dict[str, msgspec.Raw]) -> int | None:
    caps = [value for name in CAP_FIELDS if (value := _typed(fields, name, _NUMBER)) is not None]
    if any(value < 1 for value in caps):
        raise bad_request("max_tokens should be at least 1.", "max_tokens")
    return min(caps, default=None)


def _typed(fields: dict[str, msgspec.Raw], name: str, kind: _Kind[_T]) -> _T | None:
    raw = fields.get(name)
    if raw is None or bytes(raw) == _null:
        return None
    try:
        return kind.decoder.decode(raw)
    except msgspec.DecodeError:
        raise bad_request(f"{name} should be {kind.words}.", name) from None
