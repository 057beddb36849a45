"""Odd and hostile requests, byte by byte: what each is answered, and that upstream gets it once and whole, or never."""

import json
import re
import socket
import uuid
from collections.abc import Callable
from typing import NamedTuple

import pytest
from commands import CONNECTION_KEY, DEADLINE, Gateway, Simulator
from open_webui import plain_headers, somebody, user_turn

CHAT = b"POST /v1/chat/completions HTTP/1.1"
MODELS = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer %b\r\n\r\n" % (
    CONNECTION_KEY.encode()
)
STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Z]")


class Question:
    """A chat request whose text is nobody else's, in pieces that a test puts together as it likes."""

    def __init__(self) -> None:
        self.text = uuid.uuid4().hex
        self.turn = user_turn(f"Hello {self.text}", stream=False, tools=[])
        self.body = json.dumps(self.turn).encode()
        self.length = b"Content-Length: %d" % len(self.body)
        lines = [f"{name}: {value}" for name, value in plain_headers(somebody(), CONNECTION_KEY).items()]
        self.headers = "\r\n".join(["Host: x", *lines]).encode()

    def head(self, *lines: bytes, first: bytes = CHAT) -> bytes:
        """The head of it, with these lines besides."""
        return b"\r\n".join([first, self.headers, *lines]) + b"\r\n\r\n"

    def plain(self, *lines: bytes, first: bytes = CHAT) -> bytes:
        """The whole of it, with a length."""
        return self.head(self.length, *lines, first=first) + self.body

    def chunked(self, *lines: bytes, size: int = 0, extension: bytes = b"", trailers: bytes = b"") -> bytes:
        """The whole of it, in chunks of `size` bytes."""
        size = size or len(self.body)
        pieces = [self.body[start : start + size] for start in range(0, len(self.body), size)]
        chunks = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
        head = self.head(b"Transfer-Encoding: chunked", *lines)
        return head + b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


Build = Callable[[Question], bytes]


class Case(NamedTuple):
    """Bytes, and the statuses that answer them."""

    name: str
    build: Build
    statuses: list[int]


CLOSE = b"Connection: close"
UPSTREAM_HEADERS = {
    "host",
    "authorization",
    "x-title",
    "user-agent",
    "accept-encoding",
    "accept",
    "content-type",
    "content-length",
}

SERVED = [
    Case("length", lambda q: q.plain(CLOSE), [200]),
    Case("chunked", lambda q: q.chunked(CLOSE), [200]),
    Case("chunks-of-a-byte", lambda q: q.chunked(CLOSE, size=1), [200]),
    Case("chunk-extensions", lambda q: q.chunked(CLOSE, size=50, extension=b';a="b";c'), [200]),
    Case("trailers", lambda q: q.chunked(CLOSE, trailers=b"X-OpenWebUI-User-Id: mallory\r\n"), [200]),
    Case("chunked-in-capitals", lambda q: q.chunked(CLOSE).replace(b": chunked", b": CHUNKED"), [200]),
    Case("expect", lambda q: q.plain(CLOSE, b"Expect: 100-continue"), [100, 200]),
    Case("expect-chunked", lambda q: q.chunked(CLOSE, b"Expect: 100-continue"), [100, 200]),
    Case("absolute-form", lambda q: q.plain(CLOSE, first=CHAT.replace(b" /", b" http://other.example:99/")), [200]),
    Case("query", lambda q: q.plain(CLOSE, first=CHAT.replace(b"ns H", b"ns?api_key=x H")), [200]),
    Case("http-1.0", lambda q: q.plain(first=CHAT.replace(b"1.1", b"1.0")), [200]),
    Case("h2c", lambda q: q.plain(b"Connection: close, Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), [200]),
    Case("websocket", lambda q: q.plain(b"Connection: close, Upgrade", b"Upgrade: websocket"), [200]),
    Case("empty-lines-before", lambda q: b"\r\n\r\n" + q.plain(CLOSE), [200]),
    Case("leading-zeros", lambda q: q.plain(CLOSE).replace(b"Length: ", b"Length: 000"), [200]),
    Case("pipelined-list", lambda q: q.plain() + MODELS, [200, 200]),
    Case("behind-a-list", lambda q: MODELS.replace(b"Connection: close\r\n", b"") + q.plain(CLOSE), [200, 200]),
    Case("behind-what-is-refused", lambda q: CHAT + b"\r\nHost: x\r\n\r\n" + q.plain(CLOSE), [401, 200]),
]

REFUSED = [
    Case("two-lengths", lambda q: q.plain(b"Content-Length: 5"), [400]),
    Case("same-length-twice", lambda q: q.plain(q.length), [400]),
    Case("list-of-lengths", lambda q: q.plain().replace(q.length, q.length + b", " + q.length[16:]), [400]),
    Case("negative-length", lambda q: q.plain().replace(b"Length: ", b"Length: -"), [400]),
    Case("signed-length", lambda q: q.plain().replace(b"Length: ", b"Length: +"), [400]),
    Case("length-in-hex", lambda q: q.plain().replace(b"Length: ", b"Length: 0x"), [400]),
    Case("length-overflow", lambda q: q.plain().replace(b"Length: ", b"Length: 99999999999999999999"), [400]),
    Case("length-of-gigabytes", lambda q: q.plain(CLOSE).replace(b"Length: ", b"Length: 99999999"), [413]),
    Case("empty-length", lambda q: q.head(b"Content-Length:") + q.body, [400]),
    Case("length-with-chunked", lambda q: q.chunked(q.length), [400]),
    Case("chunked-with-length", lambda q: q.plain(b"Transfer-Encoding: chunked"), [400]),
    Case(
        "smuggled",
        lambda q: q.head(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + q.plain(),
        [400],
    ),
    Case("chunked-twice", lambda q: q.chunked(b"Transfer-Encoding: chunked"), [400]),
    Case("chunked-not-last", lambda q: q.chunked().replace(b": chunked", b": chunked, gzip"), [400]),
    Case("chunked-behind-gzip", lambda q: q.chunked().replace(b": chunked", b": gzip, chunked"), [400]),
    Case("unknown-coding", lambda q: q.chunked().replace(b": chunked", b": xchunked"), [400]),
    Case("vertical-tab", lambda q: q.chunked().replace(b": chunked", b": \x0bchunked"), [400]),
    Case("chunked-1.0", lambda q: q.chunked().replace(b"HTTP/1.1", b"HTTP/1.0"), [400]),
    Case("chunk-size-of-letters", lambda q: q.chunked().replace(b"\r\n\r\n", b"\r\n\r\nxyz\r\n", 1), [400]),
    Case("chunk-size-negative", lambda q: q.chunked().replace(b"\r\n\r\n", b"\r\n\r\n-", 1), [400]),
    Case("chunk-size-overflow", lambda q: q.chunked().replace(b"\r\n\r\n", b"\r\n\r\n" + b"f" * 17, 1), [400]),
    Case("chunk-longer-than-it-says", lambda q: q.chunked().replace(q.body, q.body + b" "), [400]),
    Case("chunk-shorter-than-it-says", lambda q: q.chunked().replace(q.body, q.body[:-1]), [400]),
    Case("bare-lf-in-the-head", lambda q: q.plain().replace(b"\r\nHost", b"\nHost"), [400]),
    Case("bare-lf-everywhere", lambda q: q.plain().replace(b"\r\n", b"\n"), [400]),
    Case("bare-cr", lambda q: q.plain().replace(b"Host: x\r\n", b"Host: x\r"), [400]),
    Case("bare-lf-behind-a-chunk-size", lambda q: q.chunked().replace(b"\r\n" + q.body, b"\n" + q.body), [400]),
    Case("space-before-colon", lambda q: q.plain().replace(b"Content-Length:", b"Content-Length :"), [400]),
    Case("folded-header", lambda q: q.plain(b"X-OpenWebUI-User-Id: a", b" b"), [400]),
    Case("nul-in-a-header", lambda q: q.plain(b"X: a\x00b"), [400]),
    Case("line-without-colon", lambda q: q.plain(b"X"), [400]),
    Case("header-without-name", lambda q: q.plain(b": x"), [400]),
    Case("identity-twice", lambda q: q.plain(CLOSE, b"X-OpenWebUI-User-Id: mallory"), [403]),
    Case("key-twice", lambda q: q.plain(CLOSE, b"Authorization: Bearer other"), [401]),
    Case(
        "packed-body", lambda q: q.plain(CLOSE, b"Content-Encoding: gzip").replace(q.body, b"\x1f" * len(q.body)), [400]
    ),
    Case("huge-header", lambda q: q.plain(b"X: " + b"a" * 70_000), [431]),
    Case("many-headers", lambda q: q.plain(*[b"X: a"] * 20_000), [431]),
    Case("huge-target", lambda q: q.plain(first=CHAT.replace(b"ns H", b"ns?" + b"a" * 70_000 + b" H")), [431]),
    Case("head", lambda q: q.plain(CLOSE, first=CHAT.replace(b"POST", b"HEAD")), [404]),
    Case("head-of-the-list", lambda q: MODELS.replace(b"GET", b"HEAD"), [404]),
    Case("get", lambda q: q.plain(CLOSE, first=CHAT.replace(b"POST", b"GET")), [404]),
    Case("put", lambda q: q.plain(CLOSE, first=CHAT.replace(b"POST", b"PUT")), [404]),
    Case("options", lambda q: b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [404]),
    Case("connect", lambda q: q.plain(first=b"CONNECT x:443 HTTP/1.1"), [400]),
    Case("unknown-method", lambda q: q.plain(first=CHAT.replace(b"POST", b"BREW")), [400]),
    Case("method-in-small-letters", lambda q: q.plain(first=CHAT.replace(b"POST", b"post")), [400]),
    Case("http-2", lambda q: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + q.plain(), [400]),
    Case("http-3.0", lambda q: q.plain(first=CHAT.replace(b"1.1", b"3.0")), [400]),
    Case("http-0.9", lambda q: b"POST /v1/chat/completions\r\n\r\n", [401]),
    Case("not-http", lambda q: b"\x16\x03\x01\x02\x00" + q.plain(), [400]),
    Case("path-with-escapes", lambda q: q.plain(CLOSE, first=CHAT.replace(b"chat", b"%63hat")), [404]),
    Case("path-with-dots", lambda q: q.plain(CLOSE, first=CHAT.replace(b"/v1", b"/v1/../v1")), [404]),
    Case("path-with-two-slashes", lambda q: q.plain(CLOSE, first=CHAT.replace(b"/v1/", b"/v1//")), [404]),
    Case("path-not-ascii", lambda q: q.plain(CLOSE, first=CHAT.replace(b"chat", b"ch\xc3\xa4t")), [400]),
    Case("absolute-form-without-path", lambda q: q.plain(CLOSE, first=b"POST http://x HTTP/1.1"), [400]),
]

CUT = [
    Case("head", lambda q: q.head(q.length)[:-2], []),
    Case("body", lambda q: q.plain()[:-1], []),
    Case("chunk", lambda q: q.chunked(size=50)[:-60], []),
    Case("last-chunk", lambda q: q.chunked()[:-2], []),
]


def converse(gateway: Gateway, data: bytes, *, by_byte: bool = False, cut: bool = False) -> bytes:
    """All that comes back until the gateway closes."""
    with socket.create_connection(("127.0.0.1", gateway.process.port), timeout=DEADLINE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in (data[at : at + 1] for at in range(len(data))) if by_byte else (data,):
                client.sendall(piece)
            if cut:
                client.shutdown(socket.SHUT_WR)
        except ConnectionError:
            # It has heard enough.
            pass
        answer = b""
        try:
            while piece := client.recv(65_536):
                answer += piece
        except ConnectionError:
            pass
        return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in STATUS_LINE.findall(answer)]


def arrived(simulator: Simulator, question: Question) -> list[dict]:
    """What upstream got of it."""
    return [request for request in simulator.last() if question.text in json.dumps(request)]


def tabled(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.mark.parametrize("by_byte", [False, True], ids=["at-once", "by-byte"])
@tabled(SERVED)
def test_an_odd_request_reaches_upstream_once_and_as_it_was_meant(
    gateway: Gateway, simulator: Simulator, case: Case, by_byte: bool
):
    question = Question()
    answer = converse(gateway, case.build(question), by_byte=by_byte)
    assert statuses(answer) == case.statuses
    (request,) = arrived(simulator, question)
    sent = dict(request["body"])
    assert {name: sent[name] for name in question.turn} == question.turn
    assert set(sent) - set(question.turn) == {"max_tokens", "user"}
    assert set(request["headers"]) == UPSTREAM_HEADERS


@tabled(REFUSED)
def test_a_hostile_request_is_refused_and_reaches_nobody(gateway: Gateway, simulator: Simulator, case: Case):
    question = Question()
    answer = converse(gateway, case.build(question))
    assert statuses(answer) == case.statuses, answer
    assert arrived(simulator, question) == []


@tabled(CUT)
def test_a_request_that_breaks_off_reaches_nobody(gateway: Gateway, simulator: Simulator, case: Case):
    question = Question()
    assert converse(gateway, case.build(question), cut=True) == b""
    assert arrived(simulator, question) == []


def test_requests_on_one_connection_are_answered_in_turn_each_once(gateway: Gateway, simulator: Simulator):
    questions = [Question() for _ in range(5)]
    *more, last = questions
    stream = b"".join(question.chunked(size=40) for question in more) + last.plain(CLOSE)
    assert statuses(converse(gateway, stream)) == [200] * 5
    assert [len(arrived(simulator, question)) for question in questions] == [1] * 5
    texts = [json.dumps(request) for request in simulator.last()[-5:]]
    assert [question.text in text for question, text in zip(questions, texts, strict=True)] == [True] * 5


def test_what_stands_behind_a_request_that_is_no_request_is_not_read(gateway: Gateway, simulator: Simulator):
    first, second = Question(), Question()
    # The first may have been on its way; where one request ends and another begins is not known any more.
    assert converse(gateway, first.plain() + first.plain(b"Content-Length: 1") + second.plain(CLOSE)) == b""
    assert len(arrived(simulator, first)) <= 1
    assert arrived(simulator, second) == []
