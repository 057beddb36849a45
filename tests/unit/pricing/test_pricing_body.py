"""How many tokens a body can be at most: never under its text, and not a token for each byte of a picture."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.pricing import body
from faregate.pricing.body import MalformedBody, PromptBound, prompt_bound

EMPTY = body.TEMPLATE_TOKENS


def raw(value: object, **options) -> bytes:
    return json.dumps(value, **options).encode("utf-8", "surrogatepass")


def message(*parts: object) -> bytes:
    return raw([{"role": "user", "content": list(parts)}])


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def png(width: int, height: int, size: int = 4_000) -> bytes:
    header = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4) + b"IHDR" + width.to_bytes(4) + height.to_bytes(4)
    return header.ljust(size, b"\0")


def added_by(part: dict, payload: str) -> int:
    """Tokens that a part adds beyond the JSON around its payload."""
    return prompt_bound(message(part)).prompt_tokens - (EMPTY + len(message(part)) - len(payload))


def test_text_is_bounded_by_its_bytes():
    messages = raw([{"role": "user", "content": "hello"}])
    assert prompt_bound(messages) == PromptBound(EMPTY + len(messages))


def test_tools_and_schemas_are_prompt_too():
    messages, tools, schema = raw([]), raw([{"type": "function"}]), raw({"type": "object"})
    assert prompt_bound(messages, tools, [schema]).prompt_tokens == (
        EMPTY + body.TOOL_TEMPLATE_TOKENS + len(messages) + len(tools) + len(schema)
    )


def test_an_escape_counts_as_the_three_bytes_it_can_stand_for():
    assert prompt_bound(b'["\\u20ac"]').prompt_tokens == EMPTY + len(b'["abc"]')


def test_a_literal_backslash_does_not_shrink_the_bound():
    text = "\\u" * 1_000
    assert prompt_bound(raw([text])).prompt_tokens >= len(text)
    assert prompt_bound(raw(["\\" * 999 + "u" * 9])).prompt_tokens >= 1_008


TEXTS = st.text(alphabet=st.characters(codec=None), max_size=20) | st.sampled_from(
    ["\\u0041", "\\\\u", '"image_url"', "data:image/png;base64,AAAA", "\ud83d", "😀", "é\u2028", "/\b\f"]
)
KEYS = st.sampled_from(["role", "content", "text", "type", "image_url", "file", "url", "data", "input_audio", "x"])


def texts_in(value: object) -> list[str]:
    """All text that a model could read: strings of `text` and `content`, and those in lists."""
    if isinstance(value, list):
        return [text for item in value for text in ([item] if isinstance(item, str) else texts_in(item))]
    if isinstance(value, dict):
        found = [item for key, item in value.items() if key in ("text", "content") and isinstance(item, str)]
        return found + [text for item in value.values() if not isinstance(item, str) for text in texts_in(item)]
    return []


def utf8_bytes(text: str) -> int:
    # What cannot be encoded becomes U+FFFD upstream, three bytes; two halves that meet are one character of four.
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return len(joined.encode())


@given(
    value=st.recursive(
        TEXTS | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    ascii_only=st.booleans(),
    indent=st.none() | st.just(2),
)
def test_the_bound_is_never_under_the_text(value, ascii_only, indent):
    messages = raw([{"role": "user", "content": value}], ensure_ascii=ascii_only, indent=indent)
    try:
        bound = prompt_bound(messages)
    except MalformedBody:
        return
    everything = texts_in([{"content": value}])
    assert bound.prompt_tokens >= sum(utf8_bytes(text) for text in everything)


@given(text=st.text(alphabet='\\u0041"a€', max_size=30), ascii_only=st.booleans())
def test_no_mixture_of_backslashes_gets_under_the_text(text, ascii_only):
    assert prompt_bound(raw([text], ensure_ascii=ascii_only)).prompt_tokens >= len(text.encode())


@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_are_bounded_or_refused(noise):
    assert prompt_bound(noise).prompt_tokens > 0
    with pytest.raises(MalformedBody):
        prompt_bound(b'[{"image_url": \0' + noise)


def test_messages_nested_too_deeply_are_refused_in_a_sentence():
    with pytest.raises(MalformedBody, match="nested too deeply"):
        prompt_bound(b'["image_url",' + b"[" * 100_000 + b"]" * 100_001)


def test_messages_of_too_many_parts_are_refused_in_a_sentence_and_not_walked_through():
    with pytest.raises(MalformedBody, match="more than 200,000 parts"):
        prompt_bound(b'["image_url"' + b",[]" * 200_001 + b"]")
    assert prompt_bound(b'["text"' + b",[]" * 200_001 + b"]").prompt_tokens > 600_000


def test_broken_messages_with_media_are_refused_in_a_sentence():
    with pytest.raises(MalformedBody, match="not valid JSON"):
        prompt_bound(b'[{"image_url": ')


def test_a_photo_is_not_a_token_for_each_of_its_bytes():
    url = data_url("image/jpeg", b"\xff\xd8" + bytes(3_000_000))
    bound = prompt_bound(message(image(url)))
    assert bound.images == 1
    assert body.IMAGE_TOKENS < bound.prompt_tokens < body.IMAGE_TOKENS + 1_000


def test_a_linked_image_counts_as_much_as_an_embedded_one():
    bound = prompt_bound(message(image("https://example.org/cat.jpg")))
    assert bound.images == 1
    assert bound.prompt_tokens > body.IMAGE_TOKENS


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (1, 1, body.TILE_TOKENS),
        (512, 512, body.TILE_TOKENS),
        (513, 512, 2 * body.TILE_TOKENS),
        (4_000, 4_000, body.IMAGE_TOKENS),
        (0, 0, body.TILE_TOKENS),
    ],
)
def test_a_png_counts_by_the_size_that_its_header_says(width, height, tokens):
    url = data_url("image/png", png(width, height))
    assert added_by(image(url), url) == tokens


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40), b"x", b"xx"])
def test_an_image_whose_size_is_not_known_counts_in_full(content):
    url = data_url("image/png", content)
    assert added_by(image(url), url) == body.IMAGE_TOKENS


def test_each_image_counts_wherever_it_is():
    parts = [image(data_url("image/png", png(100, 100))) for _ in range(3)]
    messages = raw(
        [{"role": "user", "content": parts[:2]}, {"role": "tool", "content": [{"new": {"deep": [parts[2]]}}]}]
    )
    bound = prompt_bound(messages)
    assert bound.images == 3
    assert bound.prompt_tokens >= 3 * body.TILE_TOKENS


def test_an_image_whose_key_is_spelled_with_escapes_is_found():
    plain = message(image("https://example.org/cat.jpg"))
    spelled = plain.replace(b'"image_url"', b'"\\u0069mage_url"')
    assert prompt_bound(spelled).images == 1


def test_sound_counts_by_its_length():
    payload = base64.b64encode(bytes(960_000)).decode()
    part = {"type": "input_audio", "input_audio": {"data": payload, "format": "mp3"}}
    assert added_by(part, payload) == 960_000 // body.AUDIO_BYTES_PER_TOKEN + 1
    assert prompt_bound(message(part)).audio


def test_video_counts_by_its_length_and_may_have_sound():
    url = data_url("video/mp4", bytes(900_000))
    part = {"type": "video_url", "video_url": {"url": url}}
    assert added_by(part, url) == 900_000 // body.VIDEO_BYTES_PER_TOKEN + 1
    assert prompt_bound(message(part)).audio


def test_a_document_counts_its_bytes_and_its_pages():
    url = data_url("application/pdf", b"%PDF" + bytes(40_000 - 4))
    part = {"type": "file", "file": {"filename": "a.pdf", "file_data": url}}
    assert added_by(part, url) == body.FILE_TOKENS + 40_002
    assert prompt_bound(message(part)).file_pages == 21


def test_a_document_has_no_more_pages_than_are_read():
    url = data_url("application/pdf", bytes(9_000_000))
    assert prompt_bound(message({"file": {"file_data": url}})).file_pages == body.MOST_PAGES


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "https://example.org/a.pdf"}},
        {"type": "file", "file": {"file_id": "file-abc"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}},
        {"type": "input_audio", "input_audio": {"data": "https://example.org/a.mp3"}},
    ],
)
def test_what_is_elsewhere_may_be_of_any_length(part):
    assert prompt_bound(message(part)).prompt_tokens > body.WHOLE_CONTEXT


def test_a_document_under_the_key_of_images_is_a_document():
    url = data_url("application/pdf", bytes(400_000))
    assert prompt_bound(message(image(url))).prompt_tokens > 400_000


def test_text_in_the_place_of_an_image_is_counted_as_text():
    text = "read this, please! " * 10_000
    for url in (text, f"data:image/png;base64,{text}", f"data:image/png,{text}"):
        assert prompt_bound(message(image(url))).prompt_tokens > len(text)


def test_a_plain_text_document_of_anthropic_is_counted_as_text():
    source = {"type": "text", "media_type": "text/plain", "data": "word " * 1_000}
    assert prompt_bound(message({"type": "document", "source": source})).prompt_tokens > 5_000


def test_an_image_said_twice_hides_no_text():
    text = "secret instructions " * 1_000
    twice = b'[{"image_url":{"url":' + raw(text) + b',"url":"data:image/png;base64,AAAA"}}]'
    assert prompt_bound(twice).prompt_tokens > len(text)


def test_the_word_image_in_a_text_is_text():
    messages = raw([{"role": "user", "content": 'the key "image_url" holds data:image/png;base64,AAAA'}])
    assert prompt_bound(messages) == PromptBound(EMPTY + len(messages))


@pytest.mark.parametrize(
    ("ttl", "is_long"), [(b'"5m"', False), (b'"1h"', True), (b'"1\\u0068"', True), (b'"\\u00e9"', False)]
)
def test_a_cache_of_an_hour_is_noticed(ttl, is_long):
    value = b'[{"cache_control":{"type":"ephemeral","ttl":' + ttl + b"}}]"
    assert prompt_bound(value).long_cache is is_long
    assert prompt_bound(b"[]", value).long_cache is is_long
    assert prompt_bound(b"[]", None, [value]).long_cache is is_long
