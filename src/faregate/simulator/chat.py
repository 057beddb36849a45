"""The bodies of chat: JSON and events, keys in the order of the wire (contract, 2.1, 3 and 9)."""

from decimal import Decimal
from typing import Any

import msgspec

from faregate.simulator.billing import Charge, json_number
from faregate.simulator.errors import in_answer
from faregate.simulator.tools import ToolCall
from faregate.simulator.turn import Turn
from faregate.simulator.words import ANSWER, STARTS, THOUGHT, circle

COMMENT = b": OPENROUTER PROCESSING\n\n"
DONE = b"data: [DONE]\n\n"
FINGERPRINT = "fp_simulator"

_encode = msgspec.json.encode
_NO_FINISH = b'},"finish_reason":null,"native_finish_reason":null}]}\n\n'
_CODE = 'alert("the simulator ran code in your browser")'
_EVENT_KEY = b'"event":' + _encode({"type": "execute", "data": {"code": _CODE}}) + b","
_ABSURD = b"1e300"


def _raw(value: Decimal) -> msgspec.Raw:
    return msgspec.Raw(json_number(value))


def _text_delta(text: str) -> bytes:
    return b'"choices":[{"index":0,"delta":{"content":' + _encode(text) + b',"role":"assistant"' + _NO_FINISH


def _thought_delta(text: str) -> bytes:
    delta = {
        "content": "",
        "role": "assistant",
        "reasoning": text,
        "reasoning_details": [{"type": "reasoning.text", "text": text, "format": "unknown", "index": 0}],
    }
    return b'"choices":[{"index":0,"delta":' + _encode(delta)[:-1] + _NO_FINISH


_ANSWER_DELTAS = tuple(_text_delta(word) for word in ANSWER)
_FIRST_DELTAS = tuple(_text_delta(ANSWER[start].lstrip()) for start in STARTS)
_THOUGHT_DELTAS = tuple(_thought_delta(word) for word in THOUGHT)
_FIRST_THOUGHT = _thought_delta(THOUGHT[0].lstrip())
_ANSWER_BYTES = tuple(word.encode() for word in ANSWER)
_THOUGHT_BYTES = tuple(word.encode() for word in THOUGHT)


def usage(turn: Turn, charge: Charge) -> dict[str, Any]:
    """The `usage` object. Amounts are the digits of the bill, unless a marker asks for nonsense."""
    tokens, marked = turn.tokens, turn.markers
    cost: dict[str, object] = {"cost": _cost(charge.cost, marked.cost)} if marked.cost != "missing" else {}
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        **cost,
        "is_byok": charge.is_byok,
        "prompt_tokens_details": {
            "cached_tokens": tokens.cached,
            "cache_write_tokens": tokens.written,
            "audio_tokens": 0,
            "video_tokens": 0,
        },
        "cost_details": {
            "upstream_inference_cost": _raw(charge.upstream),
            "upstream_inference_prompt_cost": _raw(charge.upstream_prompt),
            "upstream_inference_completions_cost": _raw(charge.upstream_completion),
        },
        "completion_tokens_details": {
            "reasoning_tokens": tokens.reasoning + marked.reasoning_excess,
            "image_tokens": 0,
            "audio_tokens": 0,
        },
    }


def _cost(cost: Decimal, marker: str | None) -> msgspec.Raw | None:
    match marker:
        case "null":
            return None
        case "negative":
            return _raw(-cost if cost else Decimal(-1))
        case "absurd":
            return msgspec.Raw(_ABSURD)
        case _:
            return _raw(cost)


def json_body(turn: Turn, charge: Charge) -> bytes:
    """The body of an answer that is not streamed."""
    marked = turn.markers
    message: dict[str, Any] = {"role": "assistant", "content": _content(turn), "refusal": None, "reasoning": None}
    if turn.tokens.reasoning and turn.show_reasoning:
        thought = b"".join(circle(_THOUGHT_BYTES, 0, turn.tokens.reasoning)).decode().lstrip()
        message["reasoning"] = thought
        message["reasoning_details"] = [{"type": "reasoning.text", "text": thought, "format": "unknown", "index": 0}]
    if turn.tool is not None:
        message["tool_calls"] = [_whole_call(turn.tool)]
    body = {
        "id": turn.id,
        "object": "chat.completion",
        "created": int(turn.created),
        "model": turn.shown_model,
        "provider": turn.provider,
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "finish_reason": turn.finish,
                "native_finish_reason": turn.native_finish,
                "message": message,
            }
        ],
    }
    if not marked.no_usage:
        body["usage"] = usage(turn, charge)
    return _with_event_key(_encode(body), turn)


def error_body(turn: Turn) -> bytes:
    """A body with an error only: a failure that came too late for a status."""
    error = in_answer(turn.provider, code_as_string=turn.markers.error_code_string)
    return _encode({"error": error})


def events(turn: Turn, charge: Charge) -> list[bytes]:
    """The events of a streamed answer, one per token, then the end of it."""
    marked = turn.markers
    prefix = _prefix(turn)
    found = [prefix + delta for delta in _deltas(turn)]
    finish, last = _end(turn, charge)
    found.append(prefix + finish)
    if last is not None:
        found.append(prefix + last)
    if marked.event or marked.event_escaped:
        found[0] = b"data: " + _with_event_key(found[0].removeprefix(b"data: "), turn)
    if not marked.done_missing:
        found.append(DONE)
    return _framed(found, turn)


def error_events(turn: Turn, charge: Charge, after: int) -> list[bytes]:
    """The same stream, broken off by an error after so many events."""
    marked = turn.markers
    error = _encode(in_answer(turn.provider, code_as_string=marked.error_code_string))
    event = (
        *(_prefix(turn), b'"error":', error),
        b',"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}\n\n',
    )
    ending = [b"".join(event), DONE] if marked.error_done else [b"".join(event)]
    return events(turn, charge)[:after] + _framed(ending, turn)


def _framed(found: list[bytes], turn: Turn) -> list[bytes]:
    return [event.replace(b"\n", b"\r\n") for event in found] if turn.markers.crlf else found


def _prefix(turn: Turn) -> bytes:
    head = f'data: {{"id":"{turn.id}","object":"chat.completion.chunk","created":{int(turn.created)},"model":'
    return b"".join((head.encode(), _encode(turn.shown_model), b',"provider":', _encode(turn.provider), b","))


def _deltas(turn: Turn) -> list[bytes]:
    found: list[bytes] = []
    if turn.tokens.reasoning and turn.show_reasoning:
        found.append(_FIRST_THOUGHT)
        found += circle(_THOUGHT_DELTAS, 1, turn.tokens.reasoning - 1)
    if turn.text:
        sentence = turn.offset % len(STARTS)
        big = turn.markers.big
        found.append(_text_delta("x" * big) if big else _FIRST_DELTAS[sentence])
        found += circle(_ANSWER_DELTAS, STARTS[sentence] + 1, turn.text - 1)
    if turn.tool is not None:
        found += _call_deltas(turn.tool)
    return found


def _call_deltas(tool: ToolCall) -> list[bytes]:
    first = {"index": 0, "id": tool.id, "type": "function", "function": {"name": tool.name, "arguments": ""}}
    calls = [first, *({"index": 0, "function": {"arguments": piece}} for piece in tool.arguments)]
    deltas = ({"content": "", "role": "assistant", "tool_calls": [call]} for call in calls)
    return [b'"choices":[{"index":0,"delta":' + _encode(delta)[:-1] + _NO_FINISH for delta in deltas]


def _whole_call(tool: ToolCall) -> dict[str, Any]:
    function = {"name": tool.name, "arguments": "".join(tool.arguments)}
    return {"index": 0, "id": tool.id, "type": "function", "function": function}


def _end(turn: Turn, charge: Charge) -> tuple[bytes, bytes | None]:
    """The chunk that finishes, and the one with usage that repeats the finish reason (contract, conflict 1)."""
    marked = turn.markers
    choice = {
        "index": 0,
        "delta": {"content": "", "role": "assistant"},
        "finish_reason": turn.finish,
        "native_finish_reason": turn.native_finish,
    }
    finish = {"system_fingerprint": FINGERPRINT, "choices": [choice]}
    if marked.no_usage:
        return _chunk(finish), None
    if marked.usage_on_finish:
        return _chunk(finish | {"usage": usage(turn, charge)}), None
    if marked.finish_null:
        choice = choice | {"finish_reason": None, "native_finish_reason": None}
    last = {
        "system_fingerprint": FINGERPRINT,
        "service_tier": "default",
        "choices": [] if marked.empty_choices else [choice],
        "usage": usage(turn, charge),
    }
    return _chunk(finish), _chunk(last)


def _chunk(rest: dict[str, Any]) -> bytes:
    return _encode(rest)[1:] + b"\n\n"


def _with_event_key(body: bytes, turn: Turn) -> bytes:
    if turn.markers.event_escaped:
        return b"{" + _EVENT_KEY.replace(b'"event"', rb'"\u0065vent"') + body[1:]
    return b"{" + _EVENT_KEY + body[1:] if turn.markers.event else body


def _content(turn: Turn) -> str:
    if not turn.text:
        return ""
    start = STARTS[turn.offset % len(STARTS)]
    words = circle(_ANSWER_BYTES, start, turn.text)
    first = b"x" * turn.markers.big if turn.markers.big else words[0].lstrip()
    return b"".join((first, *words[1:])).decode()
