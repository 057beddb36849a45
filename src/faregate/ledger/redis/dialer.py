"""From REDIS_URL to a connection to the one server that has the ledger: alone, behind sentinels, or in a cluster."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis.refusals import Silent, said

# RFC 3986, appendix B.
_URL = re.compile(r"([^:/?#]+)://([^/?#]*)([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_LATE = 0.005
_PATIENCE = 3

T = TypeVar("T")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Dialer(Protocol):
    """Finds the server, anew each time: after a fail-over it is another."""

    @property
    def describe(self) -> str:
        """Where it looks, for people. Without the password."""
        ...

    async def dial(self) -> AbstractConnection:
        """A fresh connection, ready for commands. Raises LedgerAway, whose message has no secrets: Silent if that took
        too long."""
        ...


def dialer_for(url: str, *, slot_key: bytes, connect_timeout: float, name: str) -> Dialer:
    """The dialer for a REDIS_URL. Each hop may take `connect_timeout` seconds; servers see our connections as `name`.

    In a cluster the server is the one that has `slot_key`. Raises ValueError for a URL that cannot work; the message
    repeats nothing of it, as any part may be a password in the wrong place.
    """
    parts = _split(url)
    scheme, _, kind = parts.scheme.partition("+")
    schemes = {"redis": False, "valkey": False, "rediss": True, "valkeys": True}
    if parts.fragment or "#" in url:
        raise ValueError("should have no # in it: write %23 where the password has one")
    if parts.scheme == "unix":
        return _unix_dialer(parts, connect_timeout, name)
    if scheme not in schemes or kind not in ("", "sentinel", "cluster"):
        raise ValueError("should begin with redis://, rediss:// (TLS), unix://, redis+sentinel:// or redis+cluster://")
    credentials, _, hosts = parts.netloc.rpartition("@")
    options = _options(parts, _TLS_OPTIONS if schemes[scheme] else ())
    how = _How(connect_timeout, _settings(credentials, name) | options, tls=schemes[scheme])
    path = unquote(parts.path).strip("/")
    if kind == "sentinel":
        master, _, database = path.partition("/")
        if not master:
            raise ValueError("should name the master: redis+sentinel://host:26379/name-of-the-master")
        return _SentinelDialer(how, _addresses(hosts, _SENTINEL_PORT), master, _database(database))
    addresses = _addresses(hosts, _REDIS_PORT)
    if kind == "cluster":
        if _database(path) != 0:
            raise ValueError("should have no database number: a cluster has only database 0")
        return _ClusterDialer(how, addresses, key_slot(slot_key))
    if len(addresses) != 1:
        raise ValueError("should name one host, or begin with redis+sentinel:// or redis+cluster://")
    return _PlainDialer(how, addresses[0], _database(path))


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises TimeoutError if it is not done after `seconds`; it is cancelled then.

    Time in which this process did not come to listen does not count (up to three times `seconds`).
    """
    task = asyncio.ensure_future(work)
    try:
        left = seconds * _PATIENCE
        wait = seconds
        while not task.done() and wait > 0:
            began = time.monotonic()
            await asyncio.wait({task}, timeout=wait)
            late = time.monotonic() - began - wait
            wait = min(late, left) if late > _LATE else 0.0
            left -= wait
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            # Its clean-up is done before anybody goes on.
            await asyncio.wait({task})
    raise TimeoutError


@dataclass(frozen=True, slots=True)
class _How:
    """What all connections have in common."""

    timeout: float
    settings: dict[str, Any]
    tls: bool

    async def open(self, address: Address, database: int = 0, *, anonymous: bool = False) -> AbstractConnection:
        settings = self.settings | {"host": address.host, "port": address.port, "db": database}
        if anonymous:
            settings |= {"username": None, "password": None}
        made = SSLConnection(**settings) if self.tls else Connection(**settings)
        return await _connected(made, str(address), self.timeout)

    async def ask(self, connection: AbstractConnection, address: Address, *command: str) -> Any:
        """The reply to one command. Raises LedgerAway; the connection is closed then."""
        return await _guarded(connection, str(address), self.timeout, lambda: _ask(connection, command))


@dataclass(frozen=True, slots=True)
class _PlainDialer:
    how: _How
    address: Address
    database: int

    @property
    def describe(self) -> str:
        return f"Redis at {self.address}"

    async def dial(self) -> AbstractConnection:
        return await self.how.open(self.address, self.database)


@dataclass(frozen=True, slots=True)
class _UnixDialer:
    path: str
    timeout: float
    settings: dict[str, Any]

    @property
    def describe(self) -> str:
        return f"Redis at {self.path}"

    async def dial(self) -> AbstractConnection:
        return await _connected(UnixDomainSocketConnection(path=self.path, **self.settings), self.path, self.timeout)


@dataclass(frozen=True, slots=True)
class _SentinelDialer:
    how: _How
    sentinels: tuple[Address, ...]
    master: str
    database: int

    @property
    def describe(self) -> str:
        return f"Redis ({self.master}, sentinels {_listed(self.sentinels)})"

    async def dial(self) -> AbstractConnection:
        return await _first(self.sentinels, self._dial)

    async def _dial(self, sentinel: Address) -> AbstractConnection:
        answer = await self._ask(sentinel)
        if answer is None:
            raise LedgerAway(f"The sentinel at {sentinel} knows no master {self.master}. Correct REDIS_URL.")
        address = Address(_text(answer[0]), int(answer[1]))
        connection = await self.how.open(address, self.database)
        # Sentinels tell of a fail-over late, and the old master may be back as a replica.
        role = await self.how.ask(connection, address, "ROLE")
        if role is not None and _text(role[0]) != "master":
            await connection.disconnect(nowait=True)
            raise LedgerAway(f"Redis at {address} is not the master any more. The sentinels will name another soon.")
        return connection

    async def _ask(self, sentinel: Address) -> Any:
        try:
            connection = await self.how.open(sentinel, anonymous=True)
        except _PasswordWanted:
            connection = await self.how.open(sentinel)
        try:
            return await self.how.ask(connection, sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master)
        finally:
            await connection.disconnect(nowait=True)


@dataclass(slots=True)
class _ClusterDialer:
    how: _How
    seeds: tuple[Address, ...]
    slot: int
    known: tuple[Address, ...] = ()

    @property
    def describe(self) -> str:
        return f"the Redis cluster at {_listed(self.seeds)}"

    async def dial(self) -> AbstractConnection:
        # Nodes come and go; those of the URL may be gone one day while the others are there.
        return await _first(dict.fromkeys((*self.seeds, *self.known)), self._dial)

    async def _dial(self, seed: Address) -> AbstractConnection:
        connection = await self.how.open(seed)
        # Deprecated since Redis 7 in favour of CLUSTER SHARDS, which Redis 6 does not have.
        ranges = await self.how.ask(connection, seed, "CLUSTER", "SLOTS")
        owners = [(entry[0], entry[1], _node(entry[2], seed)) for entry in ranges or ()]
        if owners:
            self.known = tuple(dict.fromkeys(owner for _, _, owner in owners))
        owner = next((owner for first, last, owner in owners if first <= self.slot <= last), None)
        if owner == seed:
            return connection
        await connection.disconnect(nowait=True)
        if owner is None:
            raise LedgerAway(f"No node of the Redis cluster has slot {self.slot}, says {seed}. Repair the cluster.")
        return await self.how.open(owner)


class _PasswordWanted(LedgerAway):
    """The server asks for a password, or for another one."""


async def _first(
    addresses: Iterable[Address], dial: Callable[[Address], Awaitable[AbstractConnection]]
) -> AbstractConnection:
    """The first connection that `dial` gets. Raises what was said of the first address if there is none."""
    said: list[LedgerAway] = []
    for address in addresses:
        try:
            return await dial(address)
        except LedgerAway as away:
            said.append(away)
    raise said[0]


async def _connected(connection: AbstractConnection, where: str, timeout: float) -> AbstractConnection:
    # redis-py does not annotate it.
    connect: Callable[[], Coroutine[Any, Any, None]] = connection.connect
    await _guarded(connection, where, timeout, connect)
    return connection


async def _ask(connection: AbstractConnection, command: tuple[str, ...]) -> Any:
    await connection.send_command(*command)
    try:
        return await connection.read_response()
    except NoPermissionError:
        return None


async def _guarded(
    connection: AbstractConnection, where: str, timeout: float, work: Callable[[], Coroutine[Any, Any, T]]
) -> T:
    """Do it in time, or close the connection and raise LedgerAway."""
    try:
        try:
            return await within(timeout, work())
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
    except TimeoutError:
        raise Silent(
            f"Redis at {where} did not answer within {timeout * 1000:.0f} ms. Check that it runs, how busy it is, and "
            "the network."
        ) from None
    except AuthenticationError as refused:
        raise _PasswordWanted(
            f"Redis at {where} does not accept the user name and password of REDIS_URL ({refused}). Correct them."
        ) from None
    except ResponseError as refused:
        raise LedgerAway(f"Redis at {where} refused the connection: {refused}. Correct REDIS_URL or its ACL.") from None
    except (RedisError, OSError) as failed:
        raise LedgerAway(
            f"Redis at {where} is not reachable: {said(failed)}. Check that it runs, and the network."
        ) from None


def _settings(credentials: str, name: str) -> dict[str, Any]:
    user, colon, password = credentials.partition(":")
    return {
        "username": unquote(user) or None,
        "password": unquote(password) if colon and password else None,
        "client_name": name,
        # All waiting is ours, see `within` and the link.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "driver_info": None,
        # With RESP2 there are no maintenance notifications, nor anything else that was not asked for.
        "protocol": 2,
    }


def _split(url: str) -> SplitResult:
    # Not by `urlsplit`: newer Pythons refuse what has more between its `//` and `/` than one address in brackets.
    found = _URL.fullmatch(url.strip())
    if found is None:
        raise ValueError("should be a URL such as redis://host:6379/0")
    scheme, *others = found.groups("")
    return SplitResult(scheme.lower(), *others)


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if options.keys() - set(known):
        allowed = f"no options but {', '.join(known)}" if known else "no options (nothing after a ?)"
        raise ValueError(f"should have {allowed}; write %3F where the password has a ?")
    return options


def _unix_dialer(parts: SplitResult, connect_timeout: float, name: str) -> Dialer:
    credentials, _, host = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if host or not parts.path.strip("/") or options.keys() - {"db"}:
        raise ValueError("should be unix:///path/of/the.sock, or unix://user:password@/path/of/the.sock?db=0")
    database = _database(options.get("db", ""))
    return _UnixDialer(unquote(parts.path), connect_timeout, _settings(credentials, name) | {"db": database})


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError("should end with the number of a database, such as /0, or without a path")
    return int(text or 0)


def _addresses(hosts: str, default: int) -> tuple[Address, ...]:
    found = []
    for part in hosts.split(","):
        try:
            split = urlsplit(f"//{part}")
            host, port = split.hostname, split.port
        except ValueError:
            raise ValueError(
                "should have hosts with ports from 1 to 65535, such as host:6379; write %2F where the password has a /"
            ) from None
        if not host or port == 0:
            raise ValueError("should name a host, such as redis://host:6379/0")
        found.append(Address(unquote(host), port or default))
    return tuple(found)


def _node(entry: list[Any], asked: Address) -> Address:
    """A node of CLUSTER SLOTS. One that does not know its own name is the one that was asked."""
    host = _text(entry[0] or b"")
    return Address(host if host not in ("", "?") else asked.host, int(entry[1]))


def _listed(addresses: tuple[Address, ...]) -> str:
    return ", ".join(map(str, addresses))


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
