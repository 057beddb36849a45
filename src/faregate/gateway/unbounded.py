"""What a chat body can ask for that no hold can bound, or that no rule on models can see.

Presets are configured at OpenRouter and may change the model; plugins and server tools run other models, searches
and loops of their own; a service tier has prices of its own (contract with OpenRouter, section 6). Under a policy
with rules that these would get around they are refused; where there is nothing to get around they pass.
"""

import msgspec

from faregate.gateway.request import ChatRequest
from faregate.policy.model import Enforcement, Meter, Policy

_HARMLESS_PLUGINS = frozenset({"response-healing", "context-compression", "moderation"})
_TELLING = frozenset({"preset", "plugins", "tools", "web_search_options", "prediction", "service_tier"})
"""The fields that are looked at: most requests have none of them."""
_LISTED_TIERS = frozenset({"auto", "default", "flex"})
_CLIENT_TOOLS = frozenset({"function", "custom"})


class _Typed(msgspec.Struct):
    type: object = None


class _Named(msgspec.Struct):
    id: object = None


_tools = msgspec.json.Decoder(list[_Typed])
_plugins = msgspec.json.Decoder(list[_Named])


def evasion(request: ChatRequest, policy: Policy) -> str | None:
    """What in `request` would get around `policy`, in words for the person; None if nothing would."""
    names = " ".join(request.candidates)
    if _TELLING.isdisjoint(request.fields) and "@preset" not in names and ":online" not in names:
        return None
    limited = policy.enforcement is not Enforcement.SHADOW and any(
        limit.meter in (Meter.USD, Meter.TOKENS) for limit in policy.limits
    )
    if not limited and not policy.allow and not policy.deny:
        return None
    if request.raw("preset") is not None or "@preset" in names:
        return "a preset"
    if ":online" in names:
        return "the variant :online, which searches the web"
    if _beyond(request.raw("plugins"), _plugins, "id", _HARMLESS_PLUGINS):
        return "a plugin"
    if _beyond(request.raw("tools"), _tools, "type", _CLIENT_TOOLS):
        return "a tool that runs at OpenRouter"
    if request.raw("web_search_options") is not None:
        return "a web search"
    if limited and request.raw("prediction") is not None:
        # What is predicted and rejected is billed as output, beyond the cap.
        return "a predicted output"
    tier = request.raw("service_tier")
    if limited and tier is not None and tier.strip(b'"').decode("latin-1") not in _LISTED_TIERS:
        return "a service tier with prices of its own"
    return None


def _beyond(
    raw: bytes | None,
    decoder: "msgspec.json.Decoder[list[_Typed]] | msgspec.json.Decoder[list[_Named]]",
    field: str,
    harmless: frozenset[str],
) -> bool:
    if raw is None:
        return False
    try:
        entries = decoder.decode(raw)
    except msgspec.DecodeError:
        # What cannot be read here might be read there.
        return True
    return any(getattr(entry, field) not in harmless for entry in entries)
