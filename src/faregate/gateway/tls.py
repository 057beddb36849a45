"""TLS towards upstream, driven by hand: what stands between a raw transport and the protocol that reads the answer.

The event loop's own TLS costs more for each read. This does per read what has to be done: cipher bytes in, the
plain bytes of all whole records out, in one call.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

LARGEST_RECORD = 16 * 1024
"""Plain bytes in one record at most (RFC 8446, section 5.1): a read of so many never leaves part of one behind."""

SLICE = 128 * 1024
"""Plain bytes made cipher bytes in one go. What the raw transport cannot send yet waits as it is, not as a copy."""


class TlsPeer:
    """A server that TLS is spoken with: the name that its certificate has to have, and the last session with it."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._context = context
        self._name = name
        self.session: ssl.SSLSession | None = None
        """Makes the next handshake a short one. Kept from the newest connection."""

    def begin(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """A handshake with this server, between two buffers."""
        return self._context.wrap_bio(incoming, outgoing, server_hostname=self._name, session=self.session)


class Tls(asyncio.Transport, asyncio.Protocol):
    """The protocol of a raw transport, and a transport itself for the `protocol` within.

    That one gets `connection_made` when the handshake is over and the certificate is verified, never before. Its
    `connection_lost` has an exception unless the peer said goodbye (close_notify) or we ended the connection: an
    answer that goes on until the connection closes may only end so.
    """

    def __init__(self, protocol: asyncio.BaseProtocol, peer: TlsPeer) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.set_protocol(protocol)
        self._peer = peer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = peer.begin(self._incoming, self._outgoing)
        self._read = self._tls.read
        self._raw: asyncio.Transport | None = None
        self._secured: asyncio.Future[None] = self._loop.create_future()
        self._shaken = False
        self._flowing = False
        """Whether what arrives is passed on: after the handshake, unless paused, until the end."""
        self._unremembered = True
        self._paused = False
        self._closing = False
        self._over = False
        self._raw_full = False
        self._full = False
        self._unsent: deque[memoryview] = deque()

    async def secured(self) -> None:
        """Wait until the handshake is over.

        Raises `ssl.SSLCertVerificationError`, another `ssl.SSLError`, or `ConnectionError` when it cannot be.
        """
        try:
            await self._secured
        except asyncio.CancelledError:
            self.abort()
            raise

    # What the raw transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._shake()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._incoming.write(data)
        if self._flowing:
            self._deliver()
        elif not self._shaken:
            self._shake()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and not self._closing:
            exc = ConnectionResetError("the connection ended without the goodbye of TLS")
        self._end(exc)

    def pause_writing(self) -> None:
        self._raw_full = True
        if not self._full:
            self._full = True
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._raw_full = False
        self._send_unsent()
        if self._full and not self._raw_full:
            self._full = False
            self._protocol.resume_writing()

    # What the protocol within calls.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`: at once, or when the raw transport has room."""
        if self._closing or not data:
            return
        if len(data) <= SLICE and not self._unsent and not self._raw_full and self._encrypt(data):
            return
        # Whoever changes it afterwards does not change what is sent.
        whole = memoryview(data if isinstance(data, bytes) else bytes(data))
        self._unsent.extend(whole[at : at + SLICE] for at in range(0, len(whole), SLICE))
        self._send_unsent()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all pieces, small ones together: each write by itself is a record by itself."""
        pieces = list(list_of_data)
        if sum(map(len, pieces)) <= LARGEST_RECORD:
            self.write(b"".join(pieces))
        else:
            for piece in pieces:
                self.write(piece)

    def pause_reading(self) -> None:
        """From now on, no `data_received`, whatever is here already."""
        if self._raw is not None and not self._closing:
            self._paused = True
            self._flowing = False
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Pass on what arrives, and what arrived meanwhile."""
        if self._raw is not None and self._paused and not self._closing:
            self._paused = False
            self._flowing = self._shaken
            self._raw.resume_reading()
            if self._incoming.pending:
                self._loop.call_soon(self._catch_up)

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def is_closing(self) -> bool:
        return self._closing or self._raw is None or self._raw.is_closing()

    def close(self) -> None:
        """Send what was written, say goodbye, end. What the peer is still sending is not waited for."""
        if not self._closing:
            self._closing = True
            self._flowing = False
            self._send_unsent()

    def abort(self) -> None:
        """End at once; what was not sent yet is lost."""
        self._closing = True
        self._flowing = False
        self._unsent.clear()
        if self._raw is not None:
            self._raw.abort()

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        waiting = 0 if self._raw is None else self._raw.get_write_buffer_size()
        return waiting + sum(map(len, self._unsent))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    # How it is done.

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._break(error)
            return
        self._shaken = True
        self._flowing = not self._paused
        self._flush()
        self._protocol.connection_made(self)
        if not self._secured.done():
            self._secured.set_result(None)
        self._catch_up()

    def _catch_up(self) -> None:
        if self._flowing and self._incoming.pending:
            self._deliver()

    def _deliver(self) -> None:
        """Pass on the plain bytes of all records that are here; then see whether one of them was the end."""
        try:
            plain = self._read(LARGEST_RECORD)
        except ssl.SSLWantReadError:
            # Part of a record, or a message of TLS itself, which may want an answer, or an answer to ours.
            self._flush()
            self._send_unsent()
            return
        except ssl.SSLError as error:
            self._break(error)
            return
        failure: ssl.SSLError | None = None
        ended = not plain
        if self._incoming.pending and not ended:
            pieces = [plain]
            try:
                while self._incoming.pending and not ended:
                    plain = self._read(LARGEST_RECORD)
                    ended = not plain
                    pieces.append(plain)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                failure = error
            plain = b"".join(pieces)
        if failure is None:
            if self._outgoing.pending:
                self._flush()
            if self._unsent:
                self._send_unsent()
        if self._unremembered:
            self._unremembered = False
            self._peer.session = self._tls.session
        if plain:
            self._protocol.data_received(plain)
        if self._closing:
            return
        if failure is not None:
            self._break(failure)
        elif ended:
            self._protocol.eof_received()
            self._say_goodbye()
            self._hang_up()
            self._end(None)

    def _encrypt(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether it was done. Not while the peer renegotiates (TLS 1.2): then the next read makes way."""
        try:
            self._tls.write(data)
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            # Not from within: whoever writes does not expect to hear of the end before `write` is over.
            self._loop.call_soon(self._break, error)
            return True
        self._flush()
        return True

    def _send_unsent(self) -> None:
        """Send as much as the raw transport has room for; then go, if we are closing."""
        while self._unsent and not self._raw_full and self._encrypt(self._unsent[0]):
            self._unsent.popleft()
        if self._closing and not (self._unsent and self._raw_full):
            # Not from within: a raw transport that is closed while it says that it has room is lost twice.
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        if self._over or self._raw is None:
            return
        if self._unsent:
            # The peer would have to be read first, and it is not any more.
            self.abort()
        else:
            self._say_goodbye()
            self._flush()
            self._raw.close()

    def _flush(self) -> None:
        if self._outgoing.pending and self._raw is not None:
            self._raw.write(self._outgoing.read())

    def _say_goodbye(self) -> None:
        # It is always too early for an answer, and nobody waits for that in HTTP.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()

    def _break(self, error: ssl.SSLError) -> None:
        """TLS itself has failed: the peer is told why, and the protocol that it was no proper end."""
        if not self._over:
            self._hang_up()
            self._end(error)

    def _hang_up(self) -> None:
        """End the raw transport, after what TLS still has to say."""
        if self._raw is None:
            return
        if self._raw.get_write_buffer_size():
            # The peer has not taken what was sent before, and need not ever.
            self._raw.abort()
        else:
            self._flush()
            self._raw.close()

    def _end(self, exc: Exception | None) -> None:
        if self._over:
            return
        self._over = self._closing = True
        self._flowing = False
        self._unsent.clear()
        if self._shaken:
            self._protocol.connection_lost(exc)
        elif not self._secured.done():
            self._secured.set_exception(exc or ConnectionAbortedError("the connection was closed"))
            # Whoever dialled may have left.
            self._secured.exception()
