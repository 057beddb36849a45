"""The journal of the in-process ledger: what lets its holds and records survive a kill -9.

An append-only file of JSON lines, one write per event. A finished write is in the page cache, which outlives the
process; `sync` puts it on the disk, which outlives the machine.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgspec

from faregate.directory import User
from faregate.ledger.port import Counter, Hold, LedgerAway
from faregate.records import Facts, UsageRecord

TAIL_BLOCK = 65_536
"""Bytes read at once in search of the last whole line."""


class JournalError(LedgerAway):
    """The journal cannot be opened, read or written; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a journal knows: the live holds, the records settled since it was last compacted, and people met since.

    Records and people may or may not be in the database already; writing them again is harmless.
    """

    holds: list[Hold]
    records: list[UsageRecord]
    people: list[User] = field(default_factory=list)


class _Held(msgspec.Struct, tag="held", tag_field="event"):
    facts: Facts
    node: str
    expires_at: float
    cap: int
    amounts: list[tuple[Counter, int]]
    generation_id: str | None = None
    parked: bool = False


class _Noted(msgspec.Struct, tag="noted", tag_field="event"):
    request_id: str
    generation_id: str


class _Parked(msgspec.Struct, tag="parked", tag_field="event"):
    request_id: str


class _Settled(msgspec.Struct, tag="settled", tag_field="event"):
    record: UsageRecord


class _Released(msgspec.Struct, tag="released", tag_field="event"):
    request_id: str


class _Met(msgspec.Struct, tag="met", tag_field="event"):
    user: User


_ADVICE = dict.fromkeys((errno.EMFILE, errno.ENFILE), "Allow more open files")

_Event = _Met | _Held | _Noted | _Parked | _Settled | _Released
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[_Event] = msgspec.json.Decoder(_Event)


class Journal:
    """An open journal. One process at a time: it is locked while it is open.

    `held` and `settled` raise `JournalError` when the event cannot be written, and leave the file as it was. What
    only tells of a person (`met`), or how a hold went on (`noted`, `parked`, `released`), never fails: on a full disk
    it is owed, and written in front of the next event, so that no slot stays taken because a disk was full. What is
    owed is bounded by the people and the holds that there are: of a person, only the latest state is owed.
    """

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self._path = path
        self._fd = fd
        self._size = size
        self._torn = False
        self._owed: list[bytes] = []
        self._owed_people: dict[str, bytes] = {}
        self._failure: str | None = None
        self._wanted = 0
        self._swap = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or create the journal, readable by its owner alone, and cut off a line that a kill left unfinished."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.fchmod(fd, 0o600)
        except OSError as error:
            raise JournalError(
                f"The journal {path} cannot be opened: {error.strerror}. Give this user a DATA_DIR that it can write."
            ) from error
        try:
            _lock(fd, path)
            size = _end_of_last_line(fd)
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, size)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    @property
    def failure(self) -> str | None:
        """Why the last event could not be written: nobody can be admitted. None if it could."""
        return self._failure

    def retry(self) -> str | None:
        """After a failure, find out whether there is room again; `failure` as it is then.

        A node that is not ready may be sent no requests: it would never learn from them that its disk has room.
        """
        if self._failure is not None:
            try:
                # No line: should the process end before it is cut off, the next start does that.
                self._write(b" " * self._wanted)
                self._cut_back()
            except JournalError:
                pass
        return self._failure

    def replay(self) -> Replay:
        """What the events so far amount to. Raises `JournalError` if a line cannot be read."""
        holds: dict[str, Hold] = {}
        records: list[UsageRecord] = []
        people: dict[str, User] = {}
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    event = _decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise JournalError(
                        f"The journal {self._path} is damaged in line {number}: {error}. Going on without it could"
                        " lose charges. Restore the file from a backup; or, to give up the requests that were in"
                        " flight and the charges that did not reach the database yet, move it away."
                    ) from error
                _apply(event, holds, records, people)
        return Replay(list(holds.values()), records, list(people.values()))

    def held(self, hold: Hold) -> None:
        self._append(_line(_held(hold)))

    def settled(self, record: UsageRecord) -> None:
        self._append(_line(_Settled(record)))

    def met(self, user: User) -> None:
        """Keep a person as they are now."""
        line = _line(_Met(user))
        try:
            self._append(line)
        except JournalError:
            self._owed_people[user.id] = line

    def noted(self, request_id: str, generation_id: str) -> None:
        self._append_or_owe(_line(_Noted(request_id, generation_id)))

    def parked(self, request_id: str) -> None:
        self._append_or_owe(_line(_Parked(request_id)))

    def released(self, request_id: str) -> None:
        self._append_or_owe(_line(_Released(request_id)))

    def sync(self) -> None:
        """Put everything written so far on the disk. Blocks; may be called from another thread."""
        try:
            with self._swap:
                fd = os.dup(self._fd)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._unwritable(error) from error

    def compact(self, holds: Iterable[Hold], records: Iterable[UsageRecord] = (), people: Iterable[User] = ()) -> None:
        """Start the file anew with the live `holds`, and the `records` and `people` that the database has not yet.

        The new file replaces the old one at once, when it is on the disk. Raises `JournalError` if it cannot be
        written; then the old one stays in use.
        """
        lines = [_line(_Met(user)) for user in people]
        lines += [_line(_held(hold)) for hold in holds]
        lines += [_line(_Settled(record)) for record in records]
        content = b"".join(lines)
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            os.fchmod(fd, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_whole(fd, content)
            os.fsync(fd)
            fresh.rename(self._path)
        except OSError as error:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        with self._swap:
            os.close(self._fd)
            self._fd = fd
        self._size, self._torn, self._failure = len(content), False, None
        self._owed.clear()
        self._owed_people.clear()
        try:
            _sync_directory(self._path.parent)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Write what is owed, if the disk takes it, and let go of the file."""
        self._append_or_owe(b"")
        with self._swap:
            os.close(self._fd)

    def _append_or_owe(self, line: bytes) -> None:
        try:
            self._append(line)
        except JournalError:
            self._owed.append(line)

    def _append(self, line: bytes) -> None:
        data = b"".join([*self._owed_people.values(), *self._owed, line])
        self._write(data)
        self._size += len(data)
        self._owed.clear()
        self._owed_people.clear()

    def _write(self, data: bytes) -> None:
        try:
            if self._torn:
                os.ftruncate(self._fd, self._size)
                self._torn = False
            _write_whole(self._fd, data)
        except OSError as error:
            self._cut_back()
            failure = self._unwritable(error)
            self._failure, self._wanted = str(failure), len(data)
            raise failure from error
        self._failure = None

    def _cut_back(self) -> None:
        """Remove what was written and is not whole; if even that fails, the next write tries again first."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._torn = True

    def _unwritable(self, error: OSError) -> JournalError:
        return JournalError(
            f"The journal {self._path} cannot be written: {error.strerror}. No request can be admitted without it."
            f" {_ADVICE.get(error.errno or 0, 'Make room on its disk')}; nothing needs to be restarted."
        )


def _held(hold: Hold) -> _Held:
    amounts = list(hold.amounts.items())
    return _Held(hold.facts, hold.node, hold.expires_at, hold.cap, amounts, hold.generation_id, hold.parked)


def _line(event: _Event) -> bytes:
    return _encoder.encode(event) + b"\n"


def _apply(event: _Event, holds: dict[str, Hold], records: list[UsageRecord], people: dict[str, User]) -> None:
    match event:
        case _Met(user=user):
            people[user.id] = user
        case _Held():
            holds[event.facts.request_id] = Hold(
                facts=event.facts,
                node=event.node,
                expires_at=event.expires_at,
                cap=event.cap,
                amounts=dict(event.amounts),
                generation_id=event.generation_id,
                parked=event.parked,
            )
        case _Noted(request_id=request_id, generation_id=generation_id):
            if request_id in holds:
                holds[request_id].generation_id = generation_id
        case _Parked(request_id=request_id):
            if request_id in holds:
                hold = holds[request_id]
                kept = {counter: n for counter, n in hold.amounts.items() if counter.window is not None}
                holds[request_id] = replace(hold, amounts=kept, parked=True)
        case _Settled(record=record):
            holds.pop(record.facts.request_id, None)
            records.append(record)
        case _Released(request_id=request_id):
            holds.pop(request_id, None)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalError(
            f"The journal {path} is in use by another process. The in-process ledger serves one process: stop the"
            " other one, give this one its own DATA_DIR, or set REDIS_URL to share limits between processes."
        ) from error


def _write_whole(fd: int, data: bytes) -> None:
    # One write takes a whole line. Only a full disk takes a part, and says so when it is given the rest.
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _end_of_last_line(fd: int) -> int:
    end = os.fstat(fd).st_size
    while end:
        start = max(0, end - TAIL_BLOCK)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
