"""A chat request as the simulator reads it: only what changes its answer or its price; the rest is ignored."""

from decimal import Decimal
from typing import Any

import msgspec

from faregate.simulator.errors import refuse

IMAGE_TOKENS = 258
"""What an image costs in prompt tokens, unless its JSON text is shorter than that."""

_MESSAGE_OVERHEAD = 4
_BYTES_PER_TOKEN = 4


class Reasoning(msgspec.Struct):
    """The `reasoning` object. None: not said."""

    enabled: bool | None = None
    effort: str | None = None
    max_tokens: int | None = None
    exclude: bool | None = None


class ProviderWishes(msgspec.Struct):
    """The part of `provider` that can refuse a request: dollars per million tokens (numbers or strings)."""

    max_price: dict[str, Decimal] | None = None


class ChatRequest(msgspec.Struct):
    """The body of a chat request."""

    model: str | None = None
    models: list[str] | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    reasoning: Reasoning | None = None
    provider: ProviderWishes | None = None
    user: str | None = None

    def candidates(self) -> list[str]:
        """The models asked for, in order, each once."""
        asked = [self.model] if self.model else []
        return list(dict.fromkeys(asked + (self.models or [])))

    def caps(self) -> list[int]:
        """The limits on completion tokens that the client set."""
        return [cap for cap in (self.max_tokens, self.max_completion_tokens) if cap is not None]


_decoder = msgspec.json.Decoder(ChatRequest)


def decode(body: bytes) -> ChatRequest:
    """The request in a body. Raises Refused (400) where OpenRouter would refuse it (contract, 5.2)."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise refuse(400, f"Invalid input: {error}") from error
    except msgspec.DecodeError as error:
        # OpenRouter's own words for a body that is not JSON, misleading as they are.
        raise refuse(400, "Input must have at least 1 token.") from error
    if request.messages is None:
        if request.prompt is None:
            raise refuse(400, 'Input required: specify "prompt" or "messages"')
        request.messages = [{"role": "user", "content": request.prompt}]
    if not request.messages:
        raise refuse(400, "Input must have at least 1 token.")
    if any(cap < 1 for cap in request.caps()):
        raise refuse(400, "Invalid input: max_tokens must be at least 1.")
    return request


def last_text(messages: list[dict[str, Any]]) -> str:
    """The text of the last message, its parts joined."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def prompt_tokens(request: ChatRequest, *, dense: bool) -> int:
    """The prompt's tokens: one per four bytes, or per byte if `dense`, and four for each message.

    Never more than the UTF-8 bytes of the request's JSON text, which is what a byte-level tokenizer promises.
    """
    per_token = 1 if dense else _BYTES_PER_TOKEN
    total = 0
    for message in request.messages or ():
        total += _MESSAGE_OVERHEAD + _content_tokens(message.get("content"), per_token)
        if calls := message.get("tool_calls"):
            total += _tokens(msgspec.json.encode(calls), per_token)
    if request.tools:
        total += _tokens(msgspec.json.encode(request.tools), per_token)
    return total


def _content_tokens(content: Any, per_token: int) -> int:
    if isinstance(content, str):
        return _tokens(content.encode(), per_token)
    total = 0
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(text := part.get("text"), str):
            total += _tokens(text.encode(), per_token)
        else:
            total += min(IMAGE_TOKENS, _tokens(msgspec.json.encode(part), per_token))
    return total


def _tokens(text: bytes, per_token: int) -> int:
    return -(-len(text) // per_token)
