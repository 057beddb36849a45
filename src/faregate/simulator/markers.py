"""Markers: what a request can ask of the simulator in the text of its last message, such as `[[tokens=500]]`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from faregate.simulator.errors import ERROR_NAMES

_MOST_DAYS = 10_000
_MARKER = re.compile(r"\[\[([a-z][a-z0-9-]*)(?:=([^\]]*))?\]\]")


class MarkerError(ValueError):
    """A marker that does not exist or has a value that it cannot have. The message says which, and what is right."""


@dataclass(frozen=True, slots=True)
class Markers:
    """What was asked, by marker: the fields are the markers' names. Times are in seconds."""

    tokens: int | None = None
    reasoning: int | None = None
    tool: bool = False
    big: int = 0
    dense: bool = False
    cached: int = 0
    cache_write: int = 0
    reasoning_excess: int = 0
    byok: bool = False
    discount: Decimal | None = None
    dearer: Decimal = Decimal(1)
    cost: str | None = None
    no_usage: bool = False
    empty_choices: bool = False
    usage_on_finish: bool = False
    finish_null: bool = False
    generation_lost: bool = False
    days_ago: int = 0
    provider: str | None = None
    permaslug: bool = False
    fallback: int = 0
    wait: float = 0.0
    pace: float | None = None
    comments: int = 0
    whitespace: int = 0
    split: int = 0
    crlf: bool = False
    event: bool = False
    event_escaped: bool = False
    done_missing: bool = False
    error: str | None = None
    error_200: bool = False
    error_first: bool = False
    error_after: int | None = None
    error_code_string: bool = False
    error_done: bool = False
    cut: int | None = None
    stall: int | None = None


NONE = Markers()


@dataclass(frozen=True, slots=True)
class Marker:
    """One marker of the table. `read` makes its value; `bare` is its value without `=`, None if it needs one."""

    name: str
    example: str
    meaning: str
    read: Callable[[str], Any] | None = None
    bare: Any = None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not (value := _count(text)):
        raise ValueError("a whole number above zero")
    return value


def _days(text: str) -> int:
    if not 0 < (value := _count(text)) <= _MOST_DAYS:
        raise ValueError(f"a whole number from 1 to {_MOST_DAYS}")
    return value


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError("a number") from None
    if not value.is_finite() or value < 0:
        raise ValueError("a number that is not negative")
    return value


def _seconds(text: str) -> float:
    return float(_decimal(text))


def _share(text: str) -> Decimal:
    if (value := _decimal(text)) > 1:
        raise ValueError("a share between 0 and 1")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return read


def _name(text: str) -> str:
    if not text:
        raise ValueError("a name")
    return text


def _flag(name: str, meaning: str) -> Marker:
    return Marker(name, name, meaning, bare=True)


TABLE: tuple[tuple[str, tuple[Marker, ...]], ...] = (
    (
        "The answer",
        (
            Marker("tokens", "tokens=500", "so many tokens of text, one per event; max_tokens still caps it", _count),
            Marker("reasoning", "reasoning=100", "so many reasoning tokens first, on any model", _count),
            _flag("tool", "a call of the first tool that the request offers (or of get_weather)"),
            Marker("big", "big=1000000", "the first delta is so many bytes long and counts as one token", _positive),
        ),
    ),
    (
        "Usage and the bill",
        (
            _flag("dense", "the worst tokenizer: one prompt token per byte of text"),
            Marker("cached", "cached=50", "so many prompt tokens are read from the cache", _count),
            Marker("cache-write", "cache-write=50", "so many are written to it (models that price writes)", _count),
            Marker("reasoning-excess", "reasoning-excess=55", "usage reports more reasoning than there was", _count),
            _flag("byok", "your own provider key: cost 0, the provider bills upstream_cost"),
            Marker("discount", "discount=0.01", "the charge is this share below the provider's price", _share),
            Marker("dearer", "dearer=2", "the endpoint is dearer than listed; max_price applies", _decimal),
            Marker(
                "cost",
                "cost=null",
                "usage.cost is null, missing, negative or absurd (the bill stays right), or tiny: at most 1.2e-7",
                _one_of("null", "missing", "negative", "absurd", "tiny"),
            ),
            _flag("no-usage", "no usage at all; the bill stands"),
            _flag("empty-choices", "the usage chunk has choices: []"),
            _flag("usage-on-finish", "usage is on the chunk with finish_reason, no chunk follows"),
            _flag("finish-null", "the usage chunk has finish_reason null"),
            _flag("generation-lost", "/generation never knows this id, though it was billed"),
            Marker("days-ago", "days-ago=2", "the bill is dated so many days back, see /activity", _days),
        ),
    ),
    (
        "Who answers",
        (
            Marker("provider", "provider=Groq", "this provider; it decides what an abort costs", _name),
            _flag("permaslug", "the reply names the model by its dated name"),
            Marker("fallback", "fallback", "the first of model + models fails (=2: the first two)", _count, bare=1),
        ),
    ),
    (
        "Pace and framing",
        (
            Marker("wait", "wait=0.5", "seconds before the first byte", _seconds),
            Marker("pace", "pace=0.02", "seconds between events", _seconds),
            Marker("comments", "comments=3", "comment lines before the first event", _count),
            Marker("whitespace", "whitespace", "white space before a JSON answer (=5: five pieces)", _count, bare=3),
            Marker("split", "split=1", "the body is written in pieces of so many bytes", _positive),
            _flag("crlf", "lines of the stream end with CR LF"),
            _flag("event", "the first chunk has a top-level event key that asks a browser to run code"),
            _flag("event-escaped", "the same, the key spelled with a \\u0065"),
            _flag("done-missing", "the stream ends without [DONE]"),
        ),
    ),
    (
        "Failures",
        (
            Marker("error", "error=429", f"instead of an answer: {', '.join(ERROR_NAMES)}", _one_of(*ERROR_NAMES)),
            _flag("error-200", "status 200, the body has only an error"),
            _flag("error-first", "the first event of the stream is an error"),
            Marker("error-after", "error-after=5", "an error in the stream after so many events", _count),
            _flag("error-code-string", "the code of an error in the stream is a string; alone, after 3 events"),
            _flag("error-done", "[DONE] follows an error in the stream"),
            Marker("cut", "cut=5", "a broken connection after so many events (JSON: bytes); 0: no header", _count),
            Marker(
                "stall", "stall", "silence until the client leaves: no header, or =5 after five events", _count, bare=0
            ),
        ),
    ),
)
"""Every marker, by heading: the parser and the guide read the same table."""

_BY_NAME = {marker.name: marker for _, group in TABLE for marker in group}


def parse(text: str, base: Markers = NONE) -> Markers:
    """The markers in a text, on top of `base`. Raises MarkerError; text without `[[` is not looked at."""
    if "[[" not in text:
        return base
    found = {}
    for name, value in _MARKER.findall(text):
        if (marker := _BY_NAME.get(name)) is None:
            raise MarkerError(
                f"The simulator knows no marker [[{name}]], and guessing would hide a mistake in a test. "
                "See `faregate simulator --help` for those it knows."
            )
        found[name.replace("-", "_")] = _value(marker, value)
    return replace(base, **found)


def _value(marker: Marker, value: str) -> Any:
    if not value and marker.bare is not None:
        return marker.bare
    if marker.read is None:
        raise MarkerError(f"The marker [[{marker.name}]] takes no value; write [[{marker.example}]].")
    try:
        return marker.read(value)
    except ValueError as error:
        raise MarkerError(
            f"The marker [[{marker.name}]] needs {error}, such as [[{marker.example}]]; it has {value!r}."
        ) from error
