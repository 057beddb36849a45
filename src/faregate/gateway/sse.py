"""Whole events out of a byte stream, and the ones among them that must not pass as they are.

Open WebUI reads a stream line by line: a line `data: {...}` with a top-level `event` runs as code in the
person's browser, and OpenRouter's own form of a mid-stream error shows as a silently truncated answer
(contract with Open WebUI, sections c and d). So every event that could carry such a key is decoded; the
rest, which is nearly all of them, passes untouched.
"""

import json
import re
from collections.abc import Iterator, Mapping
from string import ascii_lowercase

import msgspec

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r|\n\r\n")
_BOUNDARY_OVERLAP = 3

_FORBIDDEN = frozenset({"event", "selected_model_id"})
"""Top-level keys by which Open WebUI runs code in the browser, or changes the model of the chat."""

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_text_decoder = msgspec.json.Decoder(str)
_encoder = msgspec.json.Encoder()


def decode_object(payload: bytes) -> dict[str, msgspec.Raw] | None:
    """The top level of a JSON object, its values still raw; None for anything else."""
    try:
        return _object_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        # Open WebUI's parser takes NaN, lone surrogates and broken letters, which are not JSON: what it would read, we
        # must read.
        value = json.loads(payload.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {key: msgspec.Raw(json.dumps(item).encode()) for key, item in value.items()}


def encode_object(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """The JSON text of an object whose values are raw."""
    return _encoder.encode(fields)


class Splitter:
    """Cuts a byte stream, however it is split, into blocks of whole events."""

    def __init__(self) -> None:
        self._tail = bytearray()

    def feed(self, data: bytes) -> bytes:
        """All events that are complete now; what follows the last of them is kept back."""
        tail = self._tail
        # A slice costs less than to call a method, here and for every event of a stream.
        if not tail and data[-2:] == b"\n\n":
            return data
        searched = max(0, len(tail) - _BOUNDARY_OVERLAP)
        tail += data
        end = max(
            tail.rfind(b"\n\n", searched) + 2, tail.rfind(b"\n\r\n", searched) + 3, tail.rfind(b"\r\r", searched) + 2
        )
        if end < 3 and not tail.startswith((b"\n\n", b"\r\r")):
            # rfind's -1 leaves 1 or 2, as does a boundary at the very start.
            return b""
        block = bytes(tail[:end])
        del tail[:end]
        return block

    @property
    def has_rest(self) -> bool:
        """Whether anything is kept back."""
        return bool(self._tail)

    def rest(self) -> bytes:
        """What the stream ended on, brought to the end of an event; of less than one, the empty lines before it."""
        if not self._tail:
            return b""
        rest = bytes(self._tail)
        self._tail.clear()
        event = rest.lstrip(b"\r\n")
        before = rest.removesuffix(event)
        # Half an event is nothing (as the SSE standard has it), and what is sent next would be taken for more of it.
        return before + event.rstrip(b"\r\n") + b"\n\n" if _readable(event) else before


class Block(msgspec.Struct, frozen=True, gc=False):
    """What may be passed on; and, when `error` is set, the upstream error after which nothing more may follow."""

    data: bytes
    error: dict[str, msgspec.Raw] | None = None


class Shape:
    """What events have in common that differ in nothing but the text of their answer.

    Where one of them can be skipped, each can. What an event is looked at for is a key, or has a backslash or a
    bracket: none of it can be, begin or end in a text that has neither these nor a quote.
    """

    __slots__ = ("_after", "_before", "_size")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        """To the quote that opens the text, and with it."""
        self._after = after
        """From the quote that closes it to the end of the event."""
        self._size = len(before) + len(after)

    @classmethod
    def of(cls, event: bytes) -> "Shape | None":
        """The shape of an event; None where it has no text, or is too long to be kept."""
        start = event.find(_TEXT) + len(_TEXT)
        end = event.find(b'"', start)
        return None if start < len(_TEXT) or end < 0 or len(event) > _LONGEST else cls(event[:start], event[end:])

    def fits(self, event: bytes) -> bool:
        """Whether an event is of this shape."""
        # To take off what is the same costs less than to ask whether it is there.
        text = event.removeprefix(self._before).removesuffix(self._after)
        return len(text) == len(event) - self._size and not text.lstrip(_PLAIN)


class Reader:
    """Reads the events of a chat stream as they pass: who serves, what it cost, what must be taken out."""

    def __init__(self) -> None:
        self.provider: str | None = None
        self.model: str | None = None
        self.generation_id: str | None = None
        self.usage: msgspec.Raw | None = None
        self.usage_was_last = False
        """Whether no event with data has followed the latest usage, but for [DONE]."""
        self.done = False
        self.named = False
        """Whether an event has come that says who serves; comments and keep-alives do not."""
        self._shape: Shape | None = None
        """That of an event which could be skipped."""
        self._unlike = _UNLIKE - 1

    def skips(self, block: bytes) -> bool:
        """Whether a block of whole events can pass as it is, without being read; it counts as read then."""
        if self._shape is not None and not self.usage_was_last and self._shape.fits(block):
            return True
        if not self.named or block.find(b"[DONE]") >= 0 or _suspect(block):
            return False
        self._skim(block, 0, len(block))
        self._unlike += 1
        if self._unlike >= _UNLIKE:
            self._unlike = 0
            self._shape = Shape.of(block)
        return True

    def read(self, block: bytes) -> Block:
        """Pass a block of whole events, as bytes unless one of them has to change."""
        if _says_done(block):
            self.done = True
        passed: list[bytes] = []
        failed: dict[str, msgspec.Raw] | None = None
        # How far the block has been read, and how far it is in `passed`: nothing is copied until something changes.
        seen = taken = 0
        for start, end in self._to_read(block):
            self._skim(block, seen, start)
            event = block[start:end]
            data, error = self._event(event)
            if failed is None and data is not event:
                passed += (block[taken:start], data)
                taken = end
                failed = error
            seen = end
        self._skim(block, seen, len(block))
        if not passed:
            return Block(block)
        if failed is None:
            passed.append(block[taken:])
        return Block(b"".join(passed), failed)

    def _skim(self, block: bytes, start: int, end: int) -> None:
        """Note what is between the events that have to be looked at."""
        if self.usage_was_last and not self.done and block.find(b"data:", start, end) >= 0:
            self.usage_was_last = False

    def _to_read(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Where the events of a block are that have to be looked at."""
        if b"\r" in block:
            for start, end in _events(block):
                if not self.named or _suspect(block[start:end]):
                    yield start, end
            return
        end = 0
        while not self.named and end < len(block):
            start, end = end, _end_of_event(block, end)
            yield start, end
        marks = _Marks(block, end)
        while (mark := marks.next(end)) >= 0:
            before = block.rfind(b"\n\n", end, mark)
            start = end if before < 0 else before + 2
            end = _end_of_event(block, mark)
            yield start, end

    def _event(self, event: bytes) -> tuple[bytes, dict[str, msgspec.Raw] | None]:
        written = event.splitlines(keepends=True)
        lines = _joined(written)
        changed = lines is not written
        for position, line in enumerate(lines):
            text = line.rstrip(b"\r\n")
            if text.startswith(b"data:"):
                payload = _stripped(text[5:])
            elif text.startswith(b"{"):
                payload = text
            else:
                continue
            fields = decode_object(payload)
            if fields is None:
                continue
            self._learn(fields)
            if _present(fields.get("error")):
                return b"", fields
            if not _FORBIDDEN.isdisjoint(fields):
                for key in _FORBIDDEN:
                    fields.pop(key, None)
                lines[position] = b"data: " + encode_object(fields) + line[len(text) :]
                changed = True
        return b"".join(lines) if changed else event, None

    def _learn(self, fields: dict[str, msgspec.Raw]) -> None:
        self.named = True
        self.provider = text_of(fields.get("provider")) or self.provider
        self.model = text_of(fields.get("model")) or self.model
        self.generation_id = self.generation_id or text_of(fields.get("id"))
        self.usage_was_last = _present(usage := fields.get("usage"))
        if self.usage_was_last:
            self.usage = usage


def _readable(event: bytes) -> bool:
    """Whether an event that may lack its end lacks nothing else."""
    lines = event.splitlines()
    payloads = [_stripped(line.removeprefix(b"data:")) for line in lines if line.startswith((b"data:", b"{"))]
    return bool(payloads) and (all(map(_whole, payloads)) or _whole(b"".join(payloads)))


def _whole(payload: bytes) -> bool:
    return payload == b"[DONE]" or decode_object(payload) is not None


def _present(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw) != b"null"


def _joined(lines: list[bytes]) -> list[bytes]:
    """The lines of an event, its payload on one of them.

    A JSON text over several data lines is one payload to the SSE standard; to Open WebUI each line is its own.
    """
    data = [line for line in lines if line.startswith(b"data:")]
    if len(data) < 2:
        return lines
    payload = b"".join(_stripped(line[5:]) for line in data)
    if decode_object(payload) is None:
        return lines
    first = lines.index(data[0])
    rest = [line for line in lines[first:] if not line.startswith(b"data:")]
    return [*lines[:first], b"data: " + payload + b"\n", *rest]


def text_of(raw: msgspec.Raw | None) -> str | None:
    """The string that a raw JSON value is, if it is one and not empty."""
    if raw is None:
        return None
    try:
        return _text_decoder.decode(raw) or None
    except msgspec.DecodeError:
        return None


def _says_done(data: bytes) -> bool:
    # From the end, where it nearly always is.
    at = data.rfind(b"[DONE]")
    while at >= 0:
        # A line of its own, where no text of an answer can be: JSON has no raw line ends in its strings.
        line = data[max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1 : at]
        if line.rstrip() == b"data:":
            return True
        at = data.rfind(b"[DONE]", 0, at)
    return False


_USAGE, _ERROR, _EVENT, _MODEL_ID = _KEYS = (b'"usage"', b'"error"', b'"event"', b'"selected_model_id"')
_ESCAPE = b"\\u00"
"""An escaped letter can spell each of the keys. Without any of these an event has nothing to be looked at."""

_TEXT = b'"content":"'
"""What the text of an answer begins behind."""
# The letters of most words first: they are looked up from the beginning.
_PLAIN = (ascii_lowercase.encode() + bytes(range(256))).translate(None, b'"\\[')
_LONGEST = 2048
"""Bytes of an event whose shape is kept."""
_UNLIKE = 8
"""Events without the shape that is kept, after which that of another is."""


def _suspect(data: bytes) -> bool:
    # Some searches for a word are a tenth of the work of one regular expression for all of them; one for a single
    # byte is next to none. `in` costs more than to find: it asks first, by an exception, whether it was given a number.
    find = data.find
    return (
        find(_USAGE) >= 0
        or find(_ERROR) >= 0
        or find(_EVENT) >= 0
        or find(_MODEL_ID) >= 0
        or (find(b"\\") >= 0 and find(_ESCAPE) >= 0)
    )


class _Marks:
    """Where the marks of a block are, from `start` on: each part of it is searched once for each."""

    __slots__ = ("_block", "_places")

    def __init__(self, block: bytes, start: int) -> None:
        self._block = block
        marks = (*_KEYS, _ESCAPE) if b"\\" in block else _KEYS
        self._places = {mark: place for mark in marks if (place := block.find(mark, start)) >= 0}

    def next(self, start: int) -> int:
        """The first mark at or behind `start`; -1 where there is none."""
        for mark, place in list(self._places.items()):
            if place < start:
                place = self._block.find(mark, start)
                if place < 0:
                    del self._places[mark]
                else:
                    self._places[mark] = place
        return min(self._places.values(), default=-1)


def _stripped(payload: bytes) -> bytes:
    # As Open WebUI strips it, of white space in any alphabet: what it would read behind such, we must read.
    stripped = payload.strip()
    if stripped.startswith(b"{") and stripped.endswith(b"}"):
        return stripped
    return stripped.decode("utf-8", "surrogateescape").strip().encode("utf-8", "surrogateescape")


def _end_of_event(block: bytes, position: int) -> int:
    end = block.find(b"\n\n", position)
    return len(block) if end < 0 else end + 2


def _events(block: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    for boundary in _BOUNDARY.finditer(block):
        yield start, boundary.end()
        start = boundary.end()
    if start < len(block):
        yield start, len(block)
