"""What is asked and answered in the measurement: a request as Open WebUI sends it, answers as OpenRouter sends them.

The answers are the same for everybody, generation id included: Faregate knows requests by ids of its own.
"""

import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "acceptance"))

from commands import CONNECTION_KEY
from open_webui import Person, signed_headers

MODEL = "openai/gpt-4o-mini"
GENERATION = "gen-1790981403-wrnRYGs8VBhCEKopNY1F"
JWT_SECRET = secrets.token_hex(32)
"""Of this measurement alone."""
LIFETIME = 12 * 3600
"""Seconds that the identities are valid: longer than any measurement."""

PEOPLE = 50
JSON_BYTES = 1_300
STREAM_EVENTS = 44
STREAM_BYTES = 14_000
BODY_BYTES = 2_000

USAGE = {
    "prompt_tokens": 500,
    "completion_tokens": 42,
    "total_tokens": 542,
    "cost": 0.0001002,
    "is_byok": False,
    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0, "video_tokens": 0},
    "cost_details": {
        "upstream_inference_cost": 0.0001002,
        "upstream_inference_prompt_cost": 0.000075,
        "upstream_inference_completions_cost": 0.0000252,
    },
    "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0, "audio_tokens": 0},
}


def people(group: str) -> list[dict[str, str]]:
    """The headers of some people of `group`, each with a signed identity."""
    headers = []
    for number in range(PEOPLE):
        name = f"{group}-{number:02}"
        person = Person(name, f"{name}@example.com", f"Person {number}", groups=(group,))
        headers.append(signed_headers(person, CONNECTION_KEY, JWT_SECRET, chat_id=f"chat-{name}", lifetime=LIFETIME))
    return headers


def request_body(*, stream: bool) -> bytes:
    """A body of 2 kB."""
    body: dict[str, Any] = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": ""}]}
    body["messages"][0]["content"] = _text(BODY_BYTES - len(_packed(body)))
    return _packed(body)


def json_answer() -> bytes:
    """A whole answer of 1.3 kB."""
    answer: dict[str, Any] = _head("chat.completion") | {
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "logprobs": None,
                "finish_reason": "stop",
                "native_finish_reason": "completed",
                "message": {"role": "assistant", "content": "", "refusal": None, "reasoning": None},
            }
        ],
        "usage": USAGE,
    }
    answer["choices"][0]["message"]["content"] = _text(JSON_BYTES - len(_packed(answer)))
    return _packed(answer)


def stream_answer() -> bytes:
    """A stream of 14 kB in 44 events with usage in the last but one."""
    events = STREAM_EVENTS - 3
    size = (STREAM_BYTES - len(_ending()) - events * len(text_event(""))) // events
    return b": OPENROUTER PROCESSING\n\n" + b"".join(text_event(_text(size)) for _ in range(events)) + _ending()


def paced_answer(events: int) -> list[bytes]:
    """The events of a stream: numbered ones, and as the last three the finish, usage and `[DONE]`."""
    numbered = [text_event(f" word {number} of many") for number in range(events - 3)]
    return [*numbered, *(event + b"\n\n" for event in _ending().split(b"\n\n")[:-1])]


def numbers_in(body: bytes) -> list[int]:
    """The numbers in what arrived of such a stream."""
    return [int(number) for number in re.findall(rb" word (\d+) of many", body)]


def text_event(text: str) -> bytes:
    """An event of a stream that says `text`."""
    return _event(
        {"delta": {"content": text, "role": "assistant"}, "finish_reason": None, "native_finish_reason": None}
    )


def models() -> bytes:
    """The catalogue: one model, with prices."""
    entry = {
        "id": MODEL,
        "canonical_slug": MODEL,
        "name": "OpenAI: GPT-4o-mini",
        "created": 1721260800,
        "context_length": 128_000,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"], "tokenizer": "GPT"},
        "pricing": {"prompt": "0.00000015", "completion": "0.0000006"},
        "top_provider": {"context_length": 128_000, "max_completion_tokens": 16_384, "is_moderated": True},
    }
    return _packed({"data": [entry]})


def _ending() -> bytes:
    finish = {"delta": {"content": "", "role": "assistant"}, "finish_reason": "stop", "native_finish_reason": "stop"}
    return _event(finish) + _event(finish, usage=USAGE) + b"data: [DONE]\n\n"


def _event(choice: dict[str, Any], **more: object) -> bytes:
    chunk = _head("chat.completion.chunk") | {"choices": [{"index": 0, **choice}], **more}
    return b"data: " + _packed(chunk) + b"\n\n"


def _head(kind: str) -> dict[str, Any]:
    return {"id": GENERATION, "object": kind, "created": 1790981403, "model": MODEL, "provider": "OpenAI"}


def _packed(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _text(size: int) -> str:
    words = "the gate lets you in if your balance covers the longest ride and charges the real fare when you leave "
    return (words * (size // len(words) + 1))[:size]
