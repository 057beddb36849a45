"""Bytes that are no UTF-8, in the keys of what upstream sends."""

import json

import pytest

from faregate.gateway.sse import Reader, decode_object


@pytest.mark.parametrize("key", [b"\x80", b"x\xff", b"\xc3"])
def test_a_key_of_broken_letters_is_no_reason_to_break_off(key: bytes) -> None:
    fields = decode_object(b'{"' + key + b'":1,"id":"gen-1"}')
    assert fields is not None
    assert bytes(fields["id"]) == b'"gen-1"'


def test_broken_letters_do_not_hide_an_event_key_from_us_that_open_webui_would_see() -> None:
    block = b'data: {"event":{"type":"execute"},"\x80":1,"choices":[]}\n\n'
    data = Reader().read(block).data
    seen = json.loads(data.decode("utf-8", "replace").removeprefix("data:"))
    assert "event" not in seen
    assert seen["choices"] == []
