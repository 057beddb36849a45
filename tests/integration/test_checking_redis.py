"""What `faregate check` says of Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import RedisServer

from faregate.checking import Finding, check
from faregate.settings import Settings


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    server.start()
    yield server
    server.remove()


async def said(folder: Path, **settings: object) -> list[Finding]:
    """What is found of Redis, with OpenRouter left out."""
    found = [finding async for finding in check(Settings(_env_file=None, data_dir=folder, **settings))]
    return [finding for finding in found if finding.name.startswith("REDIS")]


async def test_without_redis_it_says_where_limits_are_counted(tmp_path: Path):
    assert await said(tmp_path) == [Finding(True, "REDIS_URL", "not set: limits are counted in one process")]


async def test_a_redis_that_answers_is_named_with_its_version(tmp_path: Path, server: RedisServer):
    with server.client() as client:
        info = client.info("server")
    (finding,) = await said(tmp_path, redis_url=server.url, redis_connect_timeout=10, redis_call_timeout=10)
    assert finding.ok
    assert f"127.0.0.1:{server.port}" in finding.detail
    assert info.get("valkey_version", info["redis_version"]) in finding.detail


async def test_a_redis_that_may_drop_counters_is_wrong(tmp_path: Path, server: RedisServer):
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        _, finding = await said(tmp_path, redis_url=server.url, redis_connect_timeout=10, redis_call_timeout=10)
        client.config_set("maxmemory-policy", "noeviction")
    assert not finding.ok
    assert "should be noeviction: allkeys-lru may drop counters" in finding.detail


async def test_a_redis_that_is_slower_than_requests_wait_is_wrong(tmp_path: Path, server: RedisServer):
    _, finding = await said(tmp_path, redis_url=server.url, redis_connect_timeout=10, redis_call_timeout=1e-9)
    assert (finding.ok, finding.name) == (False, "REDIS_CALL_TIMEOUT")


async def test_a_redis_that_is_not_there_is_wrong(tmp_path: Path):
    server = RedisServer()
    (finding,) = await said(tmp_path, redis_url=server.url)
    server.remove()
    assert (finding.ok, finding.name) == (False, "REDIS_URL")
    assert f"127.0.0.1:{server.port}" in finding.detail


async def test_a_wrong_password_is_said_without_it(tmp_path: Path):
    server = RedisServer(settings="requirepass right")
    server.start()
    try:
        wrong = f"redis://:topsecret@127.0.0.1:{server.port}/0"
        (finding,) = await said(tmp_path, redis_url=wrong, redis_connect_timeout=10)
    finally:
        server.remove()
    assert not finding.ok
    assert "password" in finding.detail
    assert "topsecret" not in finding.detail


async def test_a_user_who_may_not_ask_for_the_version_gets_on_without(tmp_path: Path, server: RedisServer):
    with server.client() as client:
        client.acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+ping", "+select", "+client"])
        url = f"redis://narrow:word@127.0.0.1:{server.port}/0"
        (finding,) = await said(tmp_path, redis_url=url, redis_connect_timeout=10, redis_call_timeout=10)
    assert finding.ok
    assert "version unknown" in finding.detail


async def test_a_url_that_cannot_work_is_said_in_a_sentence(tmp_path: Path):
    (finding,) = await said(tmp_path, redis_url="redis://localhost/topsecret")
    assert not finding.ok
    assert finding.detail.startswith("should ")
    assert "topsecret" not in finding.detail
