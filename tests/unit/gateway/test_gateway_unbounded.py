"""What no hold can bound and no rule can see is refused where there is a rule to get around."""

import json

import pytest

from faregate.gateway.request import ChatRequest, parse_chat
from faregate.gateway.unbounded import evasion
from faregate.policy.model import Enforcement, Limit, Meter, Policy, Window

LIMITED = Policy("p", "P", limits=(Limit(Meter.USD, Window.DAY, 1),))
RULED = Policy("p", "P", allow=("openai/*",))
OPEN = Policy("default", "Default")
SHADOW = Policy("p", "P", limits=LIMITED.limits, enforcement=Enforcement.SHADOW)
COUNTED = Policy("p", "P", limits=(Limit(Meter.REQUESTS, Window.DAY, 1),))


def request(**more: object) -> ChatRequest:
    """A chat request with some fields besides the usual."""
    return parse_chat(json.dumps({"model": "openai/gpt-4o", "messages": [{"role": "user"}]} | more).encode())


GETS_AROUND = [
    {"preset": "cheap-looking"},
    {"model": "@preset/mine"},
    {"model": "openai/gpt-4o@preset/mine"},
    {"models": ["openai/gpt-4o:online"]},
    {"plugins": [{"id": "web"}]},
    {"plugins": [{"id": "response-healing"}, {"id": "fusion"}]},
    {"plugins": [{}]},
    {"plugins": "web"},
    {"tools": [{"type": "openrouter:web_search"}]},
    {"tools": [{"type": "function", "function": {}}, {"type": "openrouter:subagent"}]},
    {"tools": [{"type": "web_search_preview"}]},
    {"tools": [{"function": {}}]},
    {"tools": {"0": {"type": "function"}}},
    {"web_search_options": {}},
]
BOUNDED = [
    {},
    {"plugins": [{"id": "response-healing"}, {"id": "context-compression"}]},
    {"plugins": []},
    {"plugins": None},
    {"tools": [{"type": "function", "function": {"name": "openrouter:web_search"}}]},
    {"service_tier": "flex"},
    {"preset": None},
]
DEARER = [{"service_tier": "priority"}, {"service_tier": "ultrafast"}, {"prediction": {"type": "content"}}]


@pytest.mark.parametrize("policy", [LIMITED, RULED])
@pytest.mark.parametrize("fields", GETS_AROUND, ids=json.dumps)
def test_what_gets_around_a_rule_is_refused(fields: dict[str, object], policy: Policy) -> None:
    assert evasion(request(**fields), policy)


def test_a_server_tool_is_seen_however_it_is_spelled() -> None:
    body = rb'{"model":"a","messages":[{}],"tools":[{"ty\u0070e":"\u006fpenrouter:web_search"}]}'
    assert evasion(parse_chat(body), LIMITED)


@pytest.mark.parametrize("fields", DEARER, ids=json.dumps)
def test_what_is_dearer_than_listed_is_refused_under_a_limit(fields: dict[str, object]) -> None:
    assert evasion(request(**fields), LIMITED)
    assert evasion(request(**fields), RULED) is None


@pytest.mark.parametrize("fields", BOUNDED, ids=json.dumps)
def test_what_can_be_bounded_passes(fields: dict[str, object]) -> None:
    assert evasion(request(**fields), LIMITED) is None


@pytest.mark.parametrize("policy", [OPEN, SHADOW, COUNTED])
@pytest.mark.parametrize("fields", [*GETS_AROUND, *DEARER], ids=json.dumps)
def test_where_there_is_nothing_to_get_around_everything_passes(fields: dict[str, object], policy: Policy) -> None:
    assert evasion(request(**fields), policy) is None
