"""What passes through a stream, at any split of its bytes, and what must not."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faregate.gateway.sse import Reader, Shape, Splitter

HEAD = (
    'data: {"id":"gen-1-abc","provider":"OpenAI","model":"openai/gpt-4o-mini","choices":[{"delta":{"content":"Hé"}}]}'
)
USAGE = 'data: {"id":"gen-1-abc","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"cost":0.0000057915}}'


def relay(stream: bytes, cuts: list[int] | None = None) -> tuple[bytes, Reader]:
    """What a client receives of `stream` when it arrives cut at `cuts`."""
    splitter, reader, out = Splitter(), Reader(), b""
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts or [])})
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    for piece in pieces:
        if block := splitter.feed(piece):
            out += reader.read(block).data
    if rest := splitter.rest():
        out += reader.read(rest).data
    return out, reader


def payloads(stream: bytes) -> list[object]:
    """What Open WebUI would parse: each line that begins with `data:`, on its own, with Python's own reader."""
    found = []
    for line in stream.decode().split("\n"):
        if line.startswith("data:"):
            try:
                found.append(json.loads(line[5:].strip()))
            except ValueError:
                continue
    return found


def test_ordinary_events_and_comments_pass_byte_for_byte() -> None:
    stream = f": OPENROUTER PROCESSING\n\n{HEAD}\n\n{USAGE}\n\ndata: [DONE]\n\n".encode()
    out, reader = relay(stream)
    assert out == stream
    assert (reader.provider, reader.model, reader.generation_id) == ("OpenAI", "openai/gpt-4o-mini", "gen-1-abc")
    assert reader.usage is not None
    assert b"0.0000057915" in bytes(reader.usage)
    assert reader.done


_EVENTS = st.lists(
    st.sampled_from(
        [
            ": OPENROUTER PROCESSING",
            HEAD,
            USAGE,
            'data: {"choices":[{"delta":{"content":"\\"usage\\" and \\u00e9"}}]}',
            'data: {"event":{"type":"execute","data":{"code":"alert(1)"}},"choices":[]}',
            'data: {"\\u0065vent":{"type":"execute"},"choices":[]}',
            'data: {"event":1,"x":NaN}',
            'data: {"choices":[],\ndata: "event":{"type":"execute"}}',
            "data: [DONE]",
            "event: ping\ndata: {}",
            "",
        ]
    ),
    max_size=8,
)


@given(events=_EVENTS, cuts=st.lists(st.integers(0, 4096), max_size=12), newline=st.sampled_from(["\n", "\r\n"]))
def test_no_split_of_a_stream_changes_what_is_relayed_or_found(
    events: list[str], cuts: list[int], newline: str
) -> None:
    stream = "".join(event.replace("\n", newline) + newline * 2 for event in events).encode()
    whole, one = relay(stream)
    parts, other = relay(stream, cuts)
    assert parts == whole
    assert (one.usage, one.generation_id, one.done) == (other.usage, other.generation_id, other.done)


@given(events=_EVENTS, cuts=st.lists(st.integers(0, 4096), max_size=6), newline=st.sampled_from(["\n", "\r\n"]))
def test_no_event_key_ever_reaches_the_browser(events: list[str], cuts: list[int], newline: str) -> None:
    stream = "".join(event.replace("\n", newline) + newline * 2 for event in events).encode()
    out, _ = relay(stream, cuts)
    assert not [payload for payload in payloads(out) if isinstance(payload, dict) and "event" in payload]


def test_an_event_key_is_removed_and_the_rest_of_its_chunk_stays() -> None:
    out, _ = relay(b'data: {"id":"g","event":{"type":"execute"},"choices":[{"delta":{"content":"hi"}}]}\n\n')
    assert payloads(out) == [{"id": "g", "choices": [{"delta": {"content": "hi"}}]}]


def test_an_event_key_on_the_last_line_without_an_end_is_removed_too() -> None:
    out, _ = relay(b'data: {"event":{"type":"execute"},"choices":[]}')
    assert payloads(out) == [{"choices": []}]


def test_only_what_has_to_change_in_a_block_does_and_the_rest_of_it_stays_where_it_is() -> None:
    evil, plain = 'data: {"event":1,"x":2}\n\n', f"{HEAD}\n\n: ping\n\n"
    block = f"{plain}{evil}{plain}{evil}{evil}{USAGE}\n\n{plain}data: [DONE]\n\n".encode()
    assert Reader().read(block).data == block.replace(evil.encode(), b'data: {"x":2}\n\n')


def test_a_block_in_which_nothing_changes_is_not_copied() -> None:
    block = f"{HEAD}\n\n{HEAD}\n\n{USAGE}\n\ndata: [DONE]\n\n".encode()
    assert Reader().read(block).data is block


def named() -> Reader:
    """A reader that knows who serves."""
    reader = Reader()
    reader.read(f"{HEAD}\n\n".encode())
    return reader


@pytest.mark.parametrize(
    "block",
    [
        f"{HEAD}\n\n",
        f"{HEAD}\n\n{HEAD}\n\n",
        ": OPENROUTER PROCESSING\n\n",
        'data: {"choices":[{"delta":{"content":"C:\\\\new"}}]}\n\n',
    ],
)
def test_what_nobody_has_to_look_at_is_skipped(block: str) -> None:
    assert named().skips(block.encode())


@pytest.mark.parametrize(
    "block",
    [
        f"{USAGE}\n\n",
        "data: [DONE]\n\n",
        'data: {"error":{"message":"no"}}\n\n',
        'data: {"event":1}\n\n',
        'data: {"x":1,"selected_model_id":"evil"}\n\n',
        'data: {"\\u0065vent":1}\n\n',
        'data: {"event":1,"x":NaN}\n\n',
        'data: {"x":1} {"event":1}\n\n',
        # A line of its own to Open WebUI, within what is one object as a whole.
        'data: {"x":\n{"event":1}\n}\n\n',
        'data: {"x":\r{"event":1}\r}\n\n',
        f'{HEAD}\n\ndata: {{"event":1}}\n\n',
        'data: {"event":1,"x":' + "[" * 100_000 + "\n\n",
    ],
)
def test_what_has_to_be_looked_at_is_not_skipped(block: str) -> None:
    assert not named().skips(block.encode())


@given(events=_EVENTS, newline=st.sampled_from(["\n", "\r\n"]))
def test_what_is_skipped_would_have_passed_as_it_is(events: list[str], newline: str) -> None:
    block = "".join(event.replace("\n", newline) + newline * 2 for event in events).encode()
    skipping, reading = named(), named()
    if skipping.skips(block):
        passed = reading.read(block)
        assert passed.data == block
        assert passed.error is None
        assert (skipping.usage, skipping.done) == (reading.usage, reading.done) == (None, False)


def said(text: str, more: str = "") -> bytes:
    """An event of the stream that says `text`, as it is spelled."""
    return f'data: {{"id":"gen-1-abc","choices":[{{"delta":{{"content":"{text}"}}}}]{more}}}\n\n'.encode()


@pytest.mark.parametrize("text", ["", "b", " the gate ", "Hé", "{}:,]", "data: x", "'"])
def test_events_that_differ_in_their_text_alone_are_of_one_shape(text: str) -> None:
    shape = Shape.of(said("a"))
    assert shape is not None
    assert shape.fits(said(text))


@pytest.mark.parametrize(
    "event",
    [
        said('\\"'),
        said("\\u0065"),
        said('"}}],"event":1,"x":[{"y":{"z":"'),
        said("[DONE]"),
        said("a", ',"event":1'),
        said("a").replace(b"gen-1-abc", b"gen-1-abd"),
        said("a")[:-1],
        said("a") * 2,
        said("a") + b"data: [DONE]\n\n",
        said("a").partition(b'content":"')[0] + b'content":',
        b"",
    ],
)
def test_no_other_event_is_of_that_shape(event: bytes) -> None:
    shape = Shape.of(said("a"))
    assert shape is not None
    assert not shape.fits(event)


@pytest.mark.parametrize("event", [b": ping\n\n", b'data: {"content":"', said("x" * 4096)])
def test_what_has_no_text_or_is_long_has_no_shape(event: bytes) -> None:
    assert Shape.of(event) is None


@pytest.mark.parametrize("more", ['"event":1', '"usage":{"cost":1}', '"error":{"message":"no"}', '"x":"[DONE]"'])
def test_what_has_to_be_looked_at_is_not_skipped_behind_events_that_are_alike(more: str) -> None:
    reader = named()
    for text in "abcdefghijkl":
        assert reader.skips(said(text))
    assert not reader.skips(said("a", f",{more}"))
    assert reader.skips(said("m"))


_HOSTILE = st.text(max_size=4) | st.sampled_from(
    ["usage", "event", '"event"', '","event":1,"x":"', "\\n", "\\u0065vent", "[DONE]", "\n\ndata: [DONE]\n\n", "\r\r"]
)
_MORE = st.sampled_from(["", "", "", ',"event":1', f",{USAGE[USAGE.index(chr(34) + 'usage') : -1]}"])


@given(st.lists(st.builds(said, _HOSTILE, _MORE), max_size=30))
def test_skipping_changes_nothing_whatever_came_before(events: list[bytes]) -> None:
    skipping, reading = named(), named()
    for event in events:
        passed = event if skipping.skips(event) else skipping.read(event).data
        assert passed == reading.read(event).data
        assert (skipping.usage, skipping.usage_was_last) == (reading.usage, reading.usage_was_last)
        assert skipping.done == reading.done


def test_nothing_is_relayed_after_an_upstream_error_but_usage_is_still_read() -> None:
    splitter, reader = Splitter(), Reader()
    error = 'data: {"id":"g","error":{"code":429,"message":"slow down"},"choices":[{"finish_reason":"error"}]}'
    block = reader.read(splitter.feed(f"{HEAD}\n\n{error}\n\n{USAGE}\n\ndata: [DONE]\n\n".encode()))
    assert block.data == f"{HEAD}\n\n".encode()
    assert block.error is not None
    assert b"slow down" in bytes(block.error["error"])
    assert reader.usage is not None


def test_an_error_on_a_bare_line_is_an_error_too() -> None:
    block = Reader().read(b'{"error":{"message":"no"}}\n\n')
    assert block.error is not None


def test_an_event_of_megabytes_passes_whole() -> None:
    event = b'data: {"choices":[{"delta":{"content":"' + b"x" * 3_000_000 + b'"}}]}\n\n'
    out, _ = relay(event, list(range(0, len(event), 65_536)))
    assert out == event


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u3000", "\x1c", "\x85"])
def test_no_white_space_of_any_alphabet_hides_an_event_key(space: str) -> None:
    # Open WebUI strips a payload as text, not as bytes.
    out, _ = relay(f'{HEAD}\n\ndata:{space}{{"event":{{"type":"execute"}}}}\n\n'.encode())
    assert b"execute" not in out


def test_a_chunk_cannot_change_the_model_of_the_chat() -> None:
    out, _ = relay(f'{HEAD}\n\ndata: {{"selected_model_id":"evil","choices":[]}}\n\n'.encode())
    assert payloads(out)[1:] == [{"choices": []}]


@pytest.mark.parametrize(
    ("tail", "last"),
    [
        ("", True),
        ("data: [DONE]\n\n", True),
        (": ping\n\n", True),
        (f"{HEAD}\n\n", False),
        (f"{HEAD}\n\n{USAGE}\n\n", True),
    ],
)
@given(cuts=st.lists(st.integers(0, 4096), max_size=6))
def test_figures_are_the_last_until_more_is_said(tail: str, last: bool, cuts: list[int]) -> None:
    _, reader = relay(f"{HEAD}\n\n{USAGE}\n\n{tail}".encode(), cuts)
    assert reader.usage_was_last is last
