"""The proxy between us and upstream: from HTTPS_PROXY and its relatives, unless NO_PROXY excepts upstream."""

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that makes tunnels (CONNECT)."""

    host: str
    port: int
    tls: bool
    authorization: bytes | None = field(default=None, repr=False)
    """The value of Proxy-Authorization: never shown, like the password in it."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def proxy_for(url: str, named: Mapping[str, str], no_proxy: str) -> Proxy | None:
    """The proxy by which `url` is reached; None where there is none, or NO_PROXY excepts it.

    `named` has the values of https_proxy, http_proxy and all_proxy, as far as they are set. Raises ValueError, naming
    the variable, for one that cannot be used. The one for other URLs may be of any kind.
    """
    parts = urlsplit(url)
    name = next((name for name in (f"{parts.scheme}_proxy", "all_proxy") if name in named), None)
    host = parts.hostname or ""
    if name is None or goes_direct(host, parts.port or DEFAULT_PORTS[parts.scheme], no_proxy):
        return None
    try:
        return parse_proxy(named[name])
    except ValueError as error:
        raise ValueError(f"{name.upper()} {error}; to reach {host} without a proxy, put it into NO_PROXY") from None


def parse_proxy(text: str) -> Proxy:
    """The proxy of `http://user:password@host:port`, where all but the host may be missing.

    Raises ValueError for anything else, in a sentence that begins with "should" and repeats nothing of it.
    """
    sentence = "should be an http:// or https:// URL such as http://user:password@proxy.example.com:3128"
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        # `.port` is parsed on access, and raises on its own.
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(sentence) from None
    if parts.scheme not in DEFAULT_PORTS or not host or port == 0 or not host.isprintable() or " " in host:
        raise ValueError(sentence)
    authorization = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        authorization = b"Basic " + base64.b64encode(credentials)
    return Proxy(host, port or DEFAULT_PORTS[parts.scheme], parts.scheme == "https", authorization)


def goes_direct(host: str, port: int, no_proxy: str) -> bool:
    """Whether `host` is reached without a proxy: this machine itself, and what the list NO_PROXY excepts.

    The list has, between commas or spaces: `*` for every host; a domain, with or without a dot or `*.` before it, for
    itself and all below it; an address; a network such as 10.0.0.0/8, for hosts that are given as an address. Each but
    the network may have a `:port`, and is then for that port alone.
    """
    host = host.rstrip(".").lower()
    address = _address(host)
    if host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback):
        return True
    return any(_excepts(entry, host, address, port) for entry in no_proxy.lower().replace(",", " ").split())


def _excepts(entry: str, host: str, address: IpAddress | None, port: int) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, only_port = _split_port(entry)
    if only_port and only_port != str(port):
        return False
    if address is not None:
        return _address(name) == address
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        return name, rest.removeprefix(":")
    if entry.count(":") > 1:
        return entry, ""
    name, _, only_port = entry.partition(":")
    return name, only_port


def _address(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
