"""Calls of the tools that a request offers."""

from dataclasses import dataclass, replace
from typing import Any

import msgspec

_SAMPLES: dict[str, Any] = {"integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}
_PIECE = 8


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. The name counts as one token, each piece of the arguments' JSON text as another."""

    id: str
    name: str
    arguments: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """The completion tokens of the call."""
        return 1 + len(self.arguments)

    def within(self, room: int) -> "ToolCall | None":
        """The call as far as it comes with so many tokens; None if not even its name fits."""
        return replace(self, arguments=self.arguments[: room - 1]) if room > 0 else None


def call_first(tools: list[Any] | None, call_id: str) -> ToolCall:
    """A call of the first function offered, with a sample for every argument it requires; else of get_weather."""
    name, arguments = "get_weather", {"city": "Paris"}
    for tool in tools or ():
        if isinstance(tool, dict) and isinstance(function := tool.get("function"), dict):
            name, arguments = str(function.get("name")), _arguments(function.get("parameters"))
            break
    text = msgspec.json.encode(arguments).decode()
    return ToolCall(call_id, name, tuple(text[at : at + _PIECE] for at in range(0, len(text), _PIECE)))


def _arguments(schema: Any) -> dict[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    required = schema.get("required") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    return {str(name): _sample(properties.get(name)) for name in required}


def _sample(schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return _SAMPLES.get(kind, "Paris") if isinstance(kind, str) else "Paris"
