"""How many prompt tokens a chat body can be at most, from its raw JSON.

Every byte-level tokenizer makes at most one token of a UTF-8 byte (contract openrouter, section 7), and JSON never
spells a text with fewer bytes than UTF-8 does. So the length of the raw values bounds their tokens, and the
punctuation of JSON, which is counted too, pays for the role markers of the model's template. Text is not decoded.

Only media are different: they are billed by size or length, not by the bytes of their base64. Where the raw bytes can
hold any, they are decoded, and the payload of each medium that is recognised is exchanged for an allowance. Whatever
is not recognised stays counted byte by byte.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

TEMPLATE_TOKENS = 256
"""What templates put around messages: default system prompts of open models take up to about 200 tokens."""

TOOL_TEMPLATE_TOKENS = 1024
"""What providers add when there are tools: Anthropic's own tool prompt takes up to 530 tokens, others less."""

WHOLE_CONTEXT = 10_000_000
"""Tokens of a medium whose size cannot be seen, such as a linked video: more than any context, which then bounds it."""

IMAGE_TOKENS = 50_000
"""The most that an image costs: 48,169 tokens on GPT-4o mini (2,833, and 5,667 for each of eight tiles)."""

TILE_TOKENS = 8_500
"""One tile of it: what an image of up to 512 x 512 pixels costs there. All other models count far fewer."""

TILE_PIXELS = 512

AUDIO_BYTES_PER_TOKEN = 30
"""Gemini counts most, 32 tokens a second; speech is recorded at 8 kbit/s, 1,000 bytes a second, or more."""

VIDEO_BYTES_PER_TOKEN = 50
"""Gemini counts about 300 tokens a second, picture and sound; video has 120 kbit/s, 15,000 bytes a second, or more."""

FILE_TOKENS = 5_000
"""The first page of a document, shown as an image and as text (Anthropic: 1,600 and up to 3,000 tokens). The others are
in a token per byte, since deflated text has three or four characters, about one token, in a byte."""

PAGE_BYTES = 2_000
"""A page of deflated text takes so much of a PDF, or more."""

MOST_PAGES = 1_000
"""What the page reader that OpenRouter uses takes at most (Mistral OCR)."""


MOST_PARTS = 200_000
"""Lists and objects in messages that have to be decoded: to walk through more would keep everybody else waiting."""


class MalformedBody(ValueError):
    """The messages are not JSON, or have too many or too deeply nested parts to be read."""


class PromptBound(msgspec.Struct, frozen=True, gc=False):
    """The most that a prompt can be: tokens, images, pages of documents. What else it holds has another price.

    `long_cache`: it may ask for the cache of one hour, whose writes cost more.
    """

    prompt_tokens: int
    images: int = 0
    file_pages: int = 0
    audio: bool = False
    long_cache: bool = False


class _Kind(Enum):
    IMAGE = auto()
    AUDIO = auto()
    VIDEO = auto()
    FILE = auto()


_KEYS = {
    "image_url": _Kind.IMAGE,
    "source": _Kind.IMAGE,
    "input_audio": _Kind.AUDIO,
    "video_url": _Kind.VIDEO,
    "file": _Kind.FILE,
}
"""Under which key a part has its medium. `source` is Anthropic's."""

_PAYLOADS = ("url", "data", "file_data")
_MEDIA_KEYS = tuple(f'"{key}"'.encode() for key in _KEYS)
_LONG = b'"1h"'
_TELLING = re.compile(rb'"(?:%s)' % b"|".join(key[1:] for key in (*_MEDIA_KEYS, _LONG)))
"""What messages hold that are more than text. It begins at a quote, and those are few in text."""
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_MEDIA_TYPES = {
    "image": _Kind.IMAGE,
    "audio": _Kind.AUDIO,
    "video": _Kind.VIDEO,
    "application": _Kind.FILE,
}
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_CHARACTERS = 32
"""Base64 of its first 24 bytes: signature, the chunk's length and name, width, height."""


def prompt_bound(raw_messages: bytes, raw_tools: bytes | None = None, other: Iterable[bytes] = ()) -> PromptBound:
    """The most that these raw JSON values of a body can be as a prompt.

    `other` are further values that become part of it, such as `response_format`. Raises `MalformedBody` where the
    messages have to be decoded and cannot be.
    """
    tokens, spelled = _text(raw_messages)
    tokens += TEMPLATE_TOKENS
    # One search for all of them first: most messages have none.
    telling = _TELLING.search(raw_messages) is not None
    may_hold_media = spelled or (telling and any(key in raw_messages for key in _MEDIA_KEYS))
    long_cache = spelled or (telling and _says_1h(raw_messages))
    if raw_tools is not None:
        tokens += TOOL_TEMPLATE_TOKENS
        other = (raw_tools, *other)
    for raw in other:
        more, spelled = _text(raw)
        tokens += more
        long_cache = long_cache or spelled or _says_1h(raw)
    if not may_hold_media:
        return PromptBound(tokens, long_cache=long_cache)
    images = pages = 0
    audio = False
    for medium in _media(_decoded(raw_messages)):
        tokens += medium.tokens - medium.payload_bytes
        images += medium.kind is _Kind.IMAGE
        pages += medium.pages
        # The sound of a video may be billed as sound.
        audio = audio or medium.kind in (_Kind.AUDIO, _Kind.VIDEO)
    return PromptBound(tokens, images, pages, audio, long_cache)


def _text(raw: bytes) -> tuple[int, bool]:
    """The most tokens of `raw`, and whether letters are written as escapes, so that words cannot be searched for."""
    # Most bodies end at the first or second line: these searches are the cost of the hot path.
    if raw.find(b"\\") < 0 or not (escapes := raw.count(b"\\u")):
        return len(raw), False
    # An escape is six bytes for at most three of UTF-8. A `\u` after another backslash may be no escape at all, so
    # it is never taken for one.
    return len(raw) - 3 * (escapes - raw.count(b"\\\\u")), _ESCAPED_ASCII.search(raw) is not None


def _says_1h(raw: bytes) -> bool:
    return _LONG in raw and b"ephemeral" in raw


def _decoded(raw: bytes) -> object:
    if raw.count(b"{") + raw.count(b"[") > MOST_PARTS:
        raise MalformedBody(f"The messages have more than {MOST_PARTS:,} parts.")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody("The messages are not valid JSON.") from error
    except RecursionError as error:
        raise MalformedBody("The messages are nested too deeply.") from error


@dataclass(frozen=True, slots=True)
class _Medium:
    """`payload_bytes` are those of the text that `tokens` stand for instead: 0 where it stays counted as well."""

    kind: _Kind
    tokens: int
    payload_bytes: int = 0
    pages: int = 0


def _media(messages: object) -> Iterator[_Medium]:
    """All media, wherever they are: a part may be in a message, in the answer of a tool, or somewhere new."""
    pending = [messages]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                kind = _KEYS.get(key)
                if kind is not None:
                    yield from _media_at(kind, inner)
                if isinstance(inner, list | dict):
                    pending.append(inner)


def _media_at(kind: _Kind, value: object) -> Iterator[_Medium]:
    if isinstance(value, str):
        yield _medium(kind, value)
    elif isinstance(value, dict):
        media_type = value.get("media_type")
        for key in _PAYLOADS:
            payload = value.get(key)
            if isinstance(payload, str):
                yield _medium(kind, payload, media_type if isinstance(media_type, str) else "")
        if "file_id" in value:
            yield _unseen(kind)


def _medium(kind: _Kind, payload: str, media_type: str = "") -> _Medium:
    is_base64, data = True, payload
    if payload[:5].lower() == "data:":
        head, _, data = payload.partition(",")
        media_type, _, parameters = head[5:].partition(";")
        is_base64 = "base64" in parameters
    if media_type:
        kind = _MEDIA_TYPES.get(media_type.strip().partition("/")[0].lower(), _Kind.FILE)
    # Text in the place of a medium would be read as text by somebody: only base64 is exchanged for an allowance.
    if not is_base64 or not _BASE64.fullmatch(data):
        return _unseen(kind)
    size = len(data) * 3 // 4
    match kind:
        case _Kind.IMAGE:
            return _Medium(kind, _image_tokens(data), len(payload))
        case _Kind.AUDIO:
            return _Medium(kind, size // AUDIO_BYTES_PER_TOKEN + 1, len(payload))
        case _Kind.VIDEO:
            return _Medium(kind, size // VIDEO_BYTES_PER_TOKEN + 1, len(payload))
        case _Kind.FILE:
            return _Medium(kind, FILE_TOKENS + size, len(payload), pages=min(MOST_PAGES, 1 + size // PAGE_BYTES))


def _unseen(kind: _Kind) -> _Medium:
    """A medium that is not in the body, or not in a form that we read."""
    if kind is _Kind.IMAGE:
        return _Medium(kind, IMAGE_TOKENS)
    return _Medium(kind, WHOLE_CONTEXT, pages=MOST_PAGES if kind is _Kind.FILE else 0)


def _image_tokens(data: str) -> int:
    # Bytes say nothing of the size of an image: a blank one of 4,000 x 4,000 pixels has a few thousand. Only the
    # header does, and only PNG, the format of small pictures and screenshots, has it in one place.
    try:
        header = a2b_base64(data[:_PNG_HEADER_CHARACTERS])
    except Base64Error:
        return IMAGE_TOKENS
    if len(header) < 24 or not header.startswith(_PNG):
        return IMAGE_TOKENS
    width, height = int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
    tiles = max(1, -(-width // TILE_PIXELS)) * max(1, -(-height // TILE_PIXELS))
    return min(IMAGE_TOKENS, TILE_TOKENS * tiles)
