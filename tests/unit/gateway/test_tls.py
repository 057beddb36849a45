"""TLS by hand: what a protocol gets is what the server sent, however that was cut, and an end is what it was."""

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Sequence

import pytest
from authority import Authority
from hypothesis import given, settings
from hypothesis import strategies as st

from faregate.gateway.tls import SLICE, Tls, TlsPeer


class Wire(asyncio.Transport):
    """A raw transport in memory, that has room for `room` bytes until they are taken."""

    def __init__(self, room: int = 1 << 40) -> None:
        super().__init__()
        self.tls: Tls
        self.waiting = bytearray()
        self.most = 0
        self.reading = True
        self.closed = self.aborted = False
        self._room = room
        self._full = False

    def write(self, data: bytes) -> None:
        self.waiting += data
        self.most = max(self.most, len(self.waiting))
        if len(self.waiting) > self._room and not self._full:
            self._full = True
            self.tls.pause_writing()

    def take(self) -> bytes:
        """What was written, as if sent."""
        taken = bytes(self.waiting)
        self.waiting.clear()
        if self._full:
            self._full = False
            self.tls.resume_writing()
        return taken

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Reader(asyncio.Protocol):
    """Writes down what it is told; pauses after each piece if it is to."""

    def __init__(self, *, pausing: bool = False) -> None:
        self.transport: asyncio.Transport | None = None
        self.pieces: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.pausing = pausing
        self.paused = False
        self.full: list[bool] = []

    @property
    def plain(self) -> bytes:
        return b"".join(self.pieces)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self.transport is None
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        assert not self.paused
        assert not self.ends
        self.pieces.append(data)
        if self.pausing:
            self.paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        self.paused = False
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.full.append(True)

    def resume_writing(self) -> None:
        self.full.append(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)


class Server:
    """The other end, in memory as well."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def shake(self, data: bytes) -> bytes:
        """Its turn of the handshake."""
        self.incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def sends(self, *pieces: bytes, goodbye: bool = False) -> bytes:
        """The cipher bytes of `pieces`, each a write of its own."""
        for piece in pieces:
            self.tls.write(piece)
        if goodbye:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.unwrap()
        return self.outgoing.read()

    def gets(self, data: bytes) -> bytes:
        """The plain bytes of what was sent to it."""
        self.incoming.write(data)
        pieces = []
        try:
            while piece := self.tls.read(1 << 16):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)


class World:
    """A client and a server, and the bytes between them."""

    def __init__(
        self, server: ssl.SSLContext, peer: TlsPeer, *, pausing: bool = False, room: int = 1 << 40, size: int = 1 << 20
    ) -> None:
        """The client is given the server's handshake in pieces of `size` bytes."""
        self.reader = Reader(pausing=pausing)
        self.wire = Wire(room)
        self.tls = self.wire.tls = Tls(self.reader, peer)
        self.server = Server(server)
        self.tls.connection_made(self.wire)
        while self.reader.transport is None and not self.wire.is_closing():
            self.give(*cut(self.server.shake(self.wire.take()), range(size, 1 << 16, size)))
        # The client's last word, and what the server says to it: tickets, still on their way.
        self.late = b"" if self.wire.is_closing() else self.server.shake(self.wire.take())

    def give(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.wire.is_closing():
                self.tls.data_received(piece)


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` in pieces."""
    inside = sorted({place for place in places if 0 < place < len(data)})
    return [data[start:end] for start, end in zip([0, *inside], [*inside, len(data)], strict=True)]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=[ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2], ids=["1.3", "1.2"])
def server(request: pytest.FixtureRequest, authority: Authority) -> ssl.SSLContext:
    context = authority.server("upstream.test")
    context.maximum_version = request.param
    return context


@pytest.fixture(scope="module")
def client(authority: Authority) -> ssl.SSLContext:
    return authority.client()


@pytest.fixture
def peer(client: ssl.SSLContext) -> TlsPeer:
    return TlsPeer(client, "upstream.test")


PIECES = st.lists(st.integers(1, 40_000), min_size=1, max_size=8)
PLACES = st.lists(st.integers(1, 200_000), max_size=12)


@settings(max_examples=60, deadline=None)
@given(sizes=PIECES, places=PLACES, size=st.integers(1, 2_000))
async def test_for_any_cut_of_the_cipher_bytes_the_plain_bytes_are_the_same(
    server: ssl.SSLContext, client: ssl.SSLContext, sizes: list[int], places: list[int], size: int
) -> None:
    world = World(server, TlsPeer(client, "upstream.test"), size=size)
    sent = [bytes([at]) * length for at, length in enumerate(sizes)]
    world.give(*cut(world.late + world.server.sends(*sent, goodbye=True), places))
    assert world.reader.plain == b"".join(sent)
    assert world.reader.ends == [None]


@settings(max_examples=60, deadline=None)
@given(sizes=PIECES, places=PLACES)
async def test_a_reader_that_pauses_gets_the_same_and_nothing_while_it_does(
    server: ssl.SSLContext, client: ssl.SSLContext, sizes: list[int], places: list[int]
) -> None:
    world = World(server, TlsPeer(client, "upstream.test"), pausing=True)
    sent = [bytes([at]) * length for at, length in enumerate(sizes)]
    for piece in cut(world.late + world.server.sends(*sent), places):
        # A raw transport may have read already what it hands over after a pause.
        world.give(piece)
    while world.reader.paused:
        world.reader.resume()
        await asyncio.sleep(0)
    assert world.reader.plain == b"".join(sent)
    assert world.wire.reading


async def test_an_answer_cut_at_every_byte_is_the_same_answer(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer, size=1)
    cipher = world.late + world.server.sends(b"HTTP/1.1 200 OK\r\n", b"\r\n", b"hello", goodbye=True)
    world.give(*cut(cipher, range(len(cipher))))
    assert world.reader.plain == b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert world.reader.ends == [None]


async def test_what_came_in_one_read_is_handed_over_in_one_call(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.give(world.late + world.server.sends(*(b"data: %d\n\n" % at for at in range(44))))
    assert len(world.reader.pieces) == 1


async def test_both_ends_have_to_end_a_pause_before_anything_is_handed_over(
    server: ssl.SSLContext, peer: TlsPeer
) -> None:
    world = World(server, peer, pausing=True)
    world.give(world.late + world.server.sends(b"one"))
    assert not world.wire.reading
    world.give(world.server.sends(b"two"))
    assert world.reader.plain == b"one"
    # Not from within the call that asks for it.
    world.reader.resume()
    assert world.reader.plain == b"one"
    await asyncio.sleep(0)
    assert world.reader.plain == b"onetwo"


async def test_the_end_of_the_connection_is_no_goodbye(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.give(world.late + world.server.sends(b"so far"))
    assert world.tls.eof_received() is False
    world.tls.connection_lost(None)
    assert world.reader.plain == b"so far"
    assert [type(end) for end in world.reader.ends] == [ConnectionResetError]


async def test_a_goodbye_is_answered_and_told_once(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.give(world.late + world.server.sends(b"all of it", goodbye=True))
    assert world.reader.ends == [None]
    assert world.wire.closed
    world.server.incoming.write(world.wire.take())
    world.server.tls.unwrap()
    world.tls.connection_lost(None)
    world.tls.write(b"too late")
    assert world.reader.ends == [None]
    assert not world.wire.waiting


@pytest.mark.parametrize("together", [True, False])
async def test_bytes_that_were_changed_on_the_way_are_not_passed_on_and_what_came_before_them_is(
    server: ssl.SSLContext, peer: TlsPeer, together: bool
) -> None:
    world = World(server, peer)
    good = world.late + world.server.sends(b"good")
    bad = bytearray(world.server.sends(b"bad"))
    bad[-1] ^= 1
    if together:
        world.give(good + bad)
    else:
        world.give(good, bytes(bad))
    assert world.reader.plain == b"good"
    assert len(world.reader.ends) == 1
    assert isinstance(world.reader.ends[0], ssl.SSLError)
    assert world.wire.closed
    # The server is told why.
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
        world.server.gets(world.wire.take())


async def test_an_alert_in_mid_stream_is_no_proper_end(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.give(world.late + world.server.sends(b"so far"))
    world.tls.write(b"x")
    broken = bytearray(world.wire.take())
    broken[-1] ^= 1
    with pytest.raises(ssl.SSLError):
        world.server.gets(bytes(broken))
    world.give(world.server.outgoing.read())
    assert world.reader.plain == b"so far"
    assert [type(end) for end in world.reader.ends] == [ssl.SSLError]


async def test_nobody_is_connected_to_a_server_of_another_name(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    world = World(server, TlsPeer(client, "other.test"))
    assert world.reader.transport is None
    assert world.wire.closed
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.test'"):
        await world.tls.secured()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.certificate"):
        world.server.shake(world.wire.take())
    world.tls.connection_lost(None)
    assert world.reader.ends == []


async def test_a_connection_that_ends_in_the_handshake_never_was_one(peer: TlsPeer) -> None:
    wire, reader = Wire(), Reader()
    wire.tls = Tls(reader, peer)
    wire.tls.connection_made(wire)
    wire.tls.connection_lost(None)
    with pytest.raises(ConnectionError):
        await wire.tls.secured()
    assert (reader.transport, reader.ends) == (None, [])


async def test_the_next_handshake_with_a_server_is_a_short_one(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.give(world.late + world.server.sends(b"hello"))
    # Ended rudely, as an abort does, and by the server's fault.
    world.tls.abort()
    again = World(server, peer)
    assert again.server.tls.session_reused
    again.give(again.late + again.server.sends(b"hello"))
    assert again.reader.plain == b"hello"


async def test_of_a_large_body_no_more_is_prepared_than_the_way_has_room_for(
    server: ssl.SSLContext, peer: TlsPeer
) -> None:
    room = 64 * 1024
    world = World(server, peer, room=room)
    body = bytes(range(256)) * (16 * 1024)
    world.tls.write(b"head")
    world.tls.write(body)
    world.tls.write(bytearray(b"tail"))
    assert world.tls.get_write_buffer_size() >= len(body) - SLICE
    world.tls.close()
    got = hashlib.sha256()
    size = 0
    while world.wire.waiting:
        plain = world.server.gets(world.wire.take())
        size += len(plain)
        got.update(plain)
        await asyncio.sleep(0)
    assert size == len(body) + 8
    assert got.digest() == hashlib.sha256(b"head" + body + b"tail").digest()
    assert world.wire.most < room + 2 * SLICE
    assert world.reader.full == [True, False]
    assert world.wire.closed


async def test_what_is_changed_after_it_was_written_is_sent_as_it_was(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer, room=10)
    world.tls.write(b"first, which fills the way")
    later = bytearray(b"second")
    world.tls.write(later)
    later[:] = b"other!"
    assert world.server.gets(world.wire.take() + world.wire.take()) == b"first, which fills the waysecond"


async def test_small_pieces_written_together_are_one_record(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    world.tls.writelines([b"head", b"body"])
    together = len(world.wire.waiting)
    assert world.server.gets(world.wire.take()) == b"headbody"
    world.tls.write(b"head")
    world.tls.write(b"body")
    assert len(world.wire.waiting) > together
    large = [b"x" * 100_000, b"y" * 100_000]
    assert world.server.gets(world.wire.take()) == b"headbody"
    world.tls.writelines(large)
    assert world.server.gets(world.wire.take()) == b"".join(large)


async def test_after_an_abort_nothing_is_passed_on(server: ssl.SSLContext, peer: TlsPeer) -> None:
    world = World(server, peer)
    cipher = world.late + world.server.sends(b"too late")
    world.tls.abort()
    assert world.wire.aborted
    assert world.tls.is_closing()
    world.tls.data_received(cipher)
    world.tls.connection_lost(None)
    assert world.reader.plain == b""
    assert world.reader.ends == [None]


async def test_a_server_that_says_goodbye_and_takes_nothing_is_left_at_once(
    server: ssl.SSLContext, peer: TlsPeer
) -> None:
    world = World(server, peer)
    world.tls.write(b"x" * 1_000)
    world.give(world.late + world.server.sends(b"413", goodbye=True))
    assert world.reader.plain == b"413"
    assert world.reader.ends == [None]
    assert world.wire.aborted
