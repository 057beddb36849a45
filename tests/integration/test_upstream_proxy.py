"""The upstream client through an HTTP proxy: the proxy is real, and so is the TLS inside its tunnels."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from authority import Authority
from both_loops import on_both_loops
from connect_proxy import connect_proxy

from faregate.checking import Finding, check
from faregate.gateway.http1 import NotReached
from faregate.gateway.upstream import Upstream, UpstreamSettings
from faregate.proxies import Proxy, parse_proxy
from faregate.settings import Settings

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

MODELS = b'{"data":[{"id":"a/b","context_length":1000,"pricing":{"prompt":"0.000001","completion":"0.000002"}}]}'
PASSWORD = "top secret"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def believed(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))


@asynccontextmanager
async def echo(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """The port of a server that answers each request with its body, and one without a body with a list of models."""

    async def handle(reader: Reader, writer: Writer) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                lines = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lines[0].split(b":")[1])) if lines else MODELS
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def client_of(url: str, proxy: Proxy | None, timeout: float = 20.0) -> Upstream:
    return Upstream(UpstreamSettings(url, "sk-or-v1-test", None, "T", timeout, 20.0, 20.0, proxy=proxy))


async def post(client: Upstream, body: bytes = b"{}") -> bytes:
    """The answer to a POST."""
    exchange = await client.post(b"/chat/completions", body, stream=True)
    answer = await client.read_all(exchange, 100_000_000)
    client.done(exchange)
    return answer


async def refused(url: str, proxy: Proxy, timeout: float = 20.0) -> str:
    """Why it did not get there."""
    client = client_of(url, proxy, timeout)
    with pytest.raises(NotReached) as failed:
        await post(client)
    assert PASSWORD not in str(failed.value)
    assert base64.b64encode(PASSWORD.encode()).decode().strip("=") not in str(failed.value)
    return str(failed.value)


@on_both_loops
async def test_a_name_that_only_the_proxy_knows_is_reached_and_verified(authority: Authority) -> None:
    async with (
        echo(authority.server("upstream.test")) as port,
        connect_proxy({"upstream.test:443": port}) as proxy,
    ):
        client = client_of("https://upstream.test/api/v1", parse_proxy(f"http://127.0.0.1:{proxy.port}"))
        for at in range(3):
            assert await post(client, b"%d" % at) == b"%d" % at
        client.close()
        assert proxy.asked == [b"CONNECT upstream.test:443 HTTP/1.1"]
        # The key is for upstream, and inside.
        assert b"authorization" not in proxy.heads[0].lower()


@on_both_loops
async def test_large_bodies_pass_through_a_tunnel_in_a_tunnel(authority: Authority) -> None:
    body = bytes(range(256)) * 4096 * 8
    async with (
        echo(authority.server("upstream.test")) as port,
        connect_proxy({"upstream.test:8443": port}, tls=authority.server()) as proxy,
    ):
        client = client_of("https://upstream.test:8443/api/v1", parse_proxy(f"https://127.0.0.1:{proxy.port}"))
        assert await post(client, body) == body
        assert await post(client, b"again") == b"again"
        client.close()
        assert proxy.tunnels == 1


@on_both_loops
async def test_an_upstream_without_tls_is_reached_through_a_tunnel_as_well(authority: Authority) -> None:
    async with echo(None) as port, connect_proxy({"upstream.test:80": port}) as proxy:
        client = client_of("http://upstream.test/api/v1", parse_proxy(f"http://127.0.0.1:{proxy.port}"))
        assert await post(client, b"hello") == b"hello"
        client.close()
        assert proxy.asked == [b"CONNECT upstream.test:80 HTTP/1.1"]


@on_both_loops
async def test_an_address_of_ipv6_is_asked_for_in_brackets(authority: Authority) -> None:
    async with (
        echo(authority.server("2001:db8::1")) as port,
        connect_proxy({"[2001:db8::1]:443": port}) as proxy,
    ):
        client = client_of("https://[2001:db8::1]/api/v1", parse_proxy(f"http://127.0.0.1:{proxy.port}"))
        assert await post(client, b"hello") == b"hello"
        client.close()


@on_both_loops
async def test_user_and_password_of_the_url_are_told_to_the_proxy_alone(authority: Authority) -> None:
    async with (
        echo(authority.server("upstream.test")) as port,
        connect_proxy({"upstream.test:443": port}) as proxy,
    ):
        url = f"http://user:top%20secret@127.0.0.1:{proxy.port}"
        client = client_of("https://upstream.test/api/v1", parse_proxy(url))
        assert await post(client, b"hello") == b"hello"
        client.close()
        credentials = base64.b64encode(b"user:top secret")
        assert b"proxy-authorization: Basic %b\r\n" % credentials in proxy.heads[0]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "does not take the user and the password of its URL"),
        (b"HTTP/1.0 403 Forbidden\r\nContent-Length: 3\r\n\r\n", "refuses to connect (HTTP 403)"),
        (b"HTTP/1.1 502 top secret\r\n\r\n", "refuses to connect (HTTP 502)"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "within 0.1 s"),
        (b"", "within 0.1 s"),
        (b"HTTP/1.1 200 OK\r\n\r\ntop secret", "sends more than its answer"),
        (b"SSH-2.0-top secret\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "sends headers without end"),
    ],
)
@on_both_loops
async def test_a_proxy_that_makes_no_tunnel_is_told_in_a_sentence(
    authority: Authority, answer: bytes, why: str
) -> None:
    async with connect_proxy({}, answer=answer) as proxy:
        via = parse_proxy(f"http://user:top%20secret@127.0.0.1:{proxy.port}")
        said = await refused("https://upstream.test/api/v1", via, 0.1 if "within" in why else 20.0)
    assert said.startswith("no connection to upstream.test:443")
    assert f"the proxy http://127.0.0.1:{proxy.port} " in said
    assert why in said


@on_both_loops
async def test_a_proxy_that_wants_credentials_and_gets_none_says_where_they_belong(authority: Authority) -> None:
    async with connect_proxy({}, answer=b"HTTP/1.1 407 Who\r\n\r\n") as proxy:
        said = await refused("https://upstream.test", parse_proxy(f"http://127.0.0.1:{proxy.port}"))
    assert "wants a user and a password, which its URL should have" in said


@on_both_loops
async def test_a_proxy_that_hangs_up_is_told_in_a_sentence(authority: Authority) -> None:
    # It knows no way there, and leaves.
    async with connect_proxy({}) as proxy:
        said = await refused("https://upstream.test", parse_proxy(f"http://127.0.0.1:{proxy.port}"))
    assert "closed the connection" in said


@on_both_loops
async def test_a_proxy_that_is_not_there_is_told_in_a_sentence(authority: Authority) -> None:
    async with connect_proxy({}) as proxy:
        port = proxy.port
    said = await refused("https://upstream.test", parse_proxy(f"http://user:top%20secret@127.0.0.1:{port}"))
    assert f"the proxy http://127.0.0.1:{port} cannot be reached: Connection refused" in said


@on_both_loops
async def test_a_wrong_certificate_is_the_proxys_or_upstreams(authority: Authority) -> None:
    async with (
        echo(authority.server("other.test")) as port,
        connect_proxy({"upstream.test:443": port}) as plain,
        connect_proxy({"upstream.test:443": port}, tls=authority.server("other.test")) as secured,
    ):
        said = await refused("https://upstream.test", parse_proxy(f"http://127.0.0.1:{plain.port}"))
        assert said.startswith("no connection to upstream.test:443: its certificate is not accepted: Hostname mismatch")
        assert f"(through the proxy http://127.0.0.1:{plain.port})" in said
        said = await refused("https://upstream.test", parse_proxy(f"https://127.0.0.1:{secured.port}"))
        assert "cannot be reached: its certificate is not accepted: " in said
        assert secured.tunnels == 0


@on_both_loops
async def test_check_says_which_proxy_is_on_the_way(authority: Authority, tmp_path: Any) -> None:
    async with (
        echo(authority.server("upstream.test")) as port,
        connect_proxy({"upstream.test:443": port}) as proxy,
    ):
        settings = Settings(
            _env_file=None,
            data_dir=tmp_path,
            openrouter_api_key="sk-or-v1-test",
            openrouter_base_url="https://upstream.test/api/v1",
            https_proxy=f"http://user:top%20secret@127.0.0.1:{proxy.port}",
        )
        findings: list[Finding] = [finding async for finding in check(settings)]
    told = next(finding for finding in findings if finding.name == "OPENROUTER_BASE_URL")
    assert told.ok
    assert told.detail.endswith(f" lists 1 models, through the proxy http://127.0.0.1:{proxy.port}")
    assert not any(secret in finding.detail for finding in findings for secret in (PASSWORD, "top%20secret"))
