"""Streams that are made up, of events that an upstream might send and of bytes that none should.

What a split must not change is in the tests of the corpus; here are streams that no file has, and what holds for all.
"""

import json

import msgspec
from fuzz_world import CUTS, UNHURRIED, split
from hypothesis import given, settings
from hypothesis import strategies as st

from faregate.gateway.sse import Reader, Splitter

FORBIDDEN = ("event", "selected_model_id")
TEXT = st.text(max_size=6) | st.sampled_from(['"usage"', "[DONE]", "data: ", "\n\n", "\r\r", "\u2028", "\x85", "é"])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 10**18) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["id", "provider", "model", "choices", "usage", "error", "x", *FORBIDDEN])
CHUNK = st.dictionaries(KEYS, VALUE, max_size=5)


@st.composite
def spelled(draw: st.DrawFn) -> str:
    """A chunk as JSON, of the many ways one: letters of its keys escaped, white space where it may be."""
    text = json.dumps(
        draw(CHUNK),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 0])),
        separators=draw(st.sampled_from([(",", ":"), (" , ", " : ")])),
    )
    for key in FORBIDDEN if draw(st.booleans()) else ():
        letter = draw(st.sampled_from(key))
        text = text.replace(f'"{key}"', f'"{key.replace(letter, f"{chr(92)}u{ord(letter):04x}")}"')
    return text


@st.composite
def event(draw: st.DrawFn, newline: str) -> str:
    """One event: a chunk on a line of data or on several, between fields and comments."""
    space = draw(st.sampled_from(["", " ", "\t", "\u00a0", "  "]))
    lines = [f"data:{space}{line}" for line in draw(spelled()).split("\n")]
    for more in draw(st.lists(st.sampled_from([": x", "id: 1", "retry: 5", "event: ping", "data", ": OPENROUTER"]))):
        lines.insert(draw(st.integers(0, len(lines))), more)
    return newline.join(lines) + newline * 2


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A stream with line ends of one kind, well formed but for what is put into it."""
    newline = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    odd = ("data: [DONE]", "data: {", ": ping", "", '{"error": {"code": 1}}', "data: [DONE] ", "data:[DONE]")
    parts = st.one_of(event(newline), st.sampled_from(odd).map(lambda line: line + newline * 2))
    data = "".join(draw(st.lists(parts, max_size=6))).encode()
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return data


class Relayed:
    """A stream on its way: what a client gets of it, and what is known of it."""

    def __init__(self, pieces: list[bytes]) -> None:
        splitter, self.reader = Splitter(), Reader()
        self.data, self.usages, self.ended = b"", [], False
        for piece in pieces:
            self._pass(splitter.feed(piece))
        self._pass(splitter.rest())

    def _pass(self, block: bytes) -> None:
        passed = self.reader.read(block)
        if not self.ended:
            self.data += passed.data
            self.ended = passed.error is not None
        if self.reader.usage is not None:
            self.usages.append(bytes(self.reader.usage))

    @property
    def known(self) -> tuple[object, ...]:
        reader = self.reader
        # Behind [DONE] nobody asks any more whether the figures were the last.
        counts = reader.done or reader.usage_was_last
        return self.usages[-1:], counts, reader.done, reader.generation_id, reader.provider, reader.model, self.ended


def seen(data: bytes) -> list[object]:
    """What Open WebUI parses: each line that begins with `data:` as text, by itself, with Python's own reader."""
    found = []
    for line in data.decode(errors="replace").split("\n"):
        text = line.strip()
        if text.startswith("data:"):
            try:
                found.append(json.loads(text[5:].strip()))
            except (ValueError, RecursionError):
                continue
    return found


@UNHURRIED
@given(stream=streams(), cuts=CUTS)
def test_no_split_of_any_stream_changes_what_is_relayed_or_found(stream: bytes, cuts: list[int]):
    whole, parts = Relayed(split(stream, [])), Relayed(split(stream, cuts))
    assert parts.data == whole.data
    assert parts.known == whole.known


@UNHURRIED
@given(stream=streams(), cuts=CUTS)
def test_nothing_that_a_browser_would_run_passes_however_it_is_spelled(stream: bytes, cuts: list[int]):
    payloads = seen(Relayed(split(stream, cuts)).data)
    assert not [payload for payload in payloads if isinstance(payload, dict) and payload.keys() & set(FORBIDDEN)]


@settings(UNHURRIED, max_examples=30)
@given(stream=streams())
def test_no_more_is_kept_back_than_the_event_that_is_not_complete(stream: bytes):
    splitter, passed = Splitter(), b""
    for at in range(len(stream)):
        passed += splitter.feed(stream[at : at + 1])
        kept = stream[len(passed) : at + 1]
        assert passed == stream[: len(passed)]
        assert not [end for end in (b"\n\n", b"\r\r", b"\n\r\n") if end in kept.lstrip(b"\r\n")]


@UNHURRIED
@given(data=st.binary(max_size=60), cuts=CUTS)
def test_no_bytes_at_all_break_the_reader(data: bytes, cuts: list[int]):
    whole, parts = Relayed([data]), Relayed(split(data, cuts))
    assert parts.data == whole.data
    assert parts.known == whole.known
    assert whole.reader.usage is None or isinstance(whole.reader.usage, msgspec.Raw)
