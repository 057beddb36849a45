"""The link to Redis against real servers: what a call may expect when all is well, and when it is not."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis
from redis_proxy import RedisProxy
from redis_server import RedisCluster, RedisSentinel, RedisServer, programs

from faregate.ledger.port import LedgerAway
from faregate.ledger.redis import link as link_module
from faregate.ledger.redis.channel import Channel
from faregate.ledger.redis.dialer import Dialer, dialer_for
from faregate.ledger.redis.link import CallTimeout, ConnectionLost, Link, NotSent, Opening
from faregate.ledger.redis.scripts import Script

SECONDS = 10.0
"""How long a test waits for what must come."""


def script(source: str) -> Script:
    return Script("test", source, hashlib.sha1(source.encode()).hexdigest())


APPEND = script("return redis.call('RPUSH', KEYS[1], ARGV[1])")
ECHO = script("return ARGV[1]")
SET = script("return redis.call('SET', KEYS[1], ARGV[1])")
KEY = b"{faregate}list"

Opener = Callable[..., Awaitable[Link]]


@pytest.fixture(params=programs())
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """Each Redis and Valkey that there is."""
    server = RedisServer(programs()[request.param])
    server.start()
    yield server
    server.remove()


@pytest.fixture
def one() -> Iterator[RedisServer]:
    """Any Redis, where all do the same."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def proxy(one: RedisServer) -> Iterator[RedisProxy]:
    proxy = RedisProxy(one.port)
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens links that are closed after the test."""
    links: list[Link] = []

    async def opened(
        url: str,
        *,
        call_timeout: float = 0.2,
        connect_timeout: float = 1.0,
        watch: Callable[[Link], None] | None = None,
    ) -> Link:
        link = Link(
            dialer(url, connect_timeout),
            call_timeout=call_timeout,
            connect_timeout=connect_timeout,
            probe_every=0.05,
            load=[APPEND, ECHO, SET],
        )
        links.append(link)
        if watch is not None:
            watch(link)
        link.start()
        await done(link.command("PING"))
        return link

    yield opened
    for link in links:
        await link.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "a closed link leaves nothing behind"


def dialer(url: str, connect_timeout: float = 1.0) -> Dialer:
    return dialer_for(url, slot_key=b"{faregate}", connect_timeout=connect_timeout, name="faregate")


async def done(future: "asyncio.Future[Any]") -> Any:
    return await asyncio.wait_for(future, SECONDS)


async def failures(*futures: "asyncio.Future[Any]") -> list[type]:
    outcomes = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), SECONDS)
    return [type(outcome) for outcome in outcomes]


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not happened():  # noqa: ASYNC110 - what happens in a server sets no event
            await asyncio.sleep(0.01)


def returning(link: Link) -> asyncio.Event:
    """Set each time Redis is back."""
    back = asyncio.Event()
    link.on_return(back.set)
    return back


async def test_calls_of_one_turn_leave_in_one_write_and_are_answered_in_their_order(
    server: RedisServer, opened: Opener
) -> None:
    link = await opened(server.url, call_timeout=5.0)
    writes = link.writes

    lengths = await asyncio.gather(*(link.call(APPEND, [KEY], [number]) for number in range(500)))

    assert link.writes == writes + 1
    assert lengths == list(range(1, 501))
    with server.client() as client:
        assert client.lrange(KEY, 0, -1) == [str(number) for number in range(500)]


async def test_each_caller_gets_its_own_reply_while_others_cancel(one: RedisServer, opened: Opener) -> None:
    link = await opened(one.url, call_timeout=5.0)

    futures = [link.call(ECHO, [], [number]) for number in range(10)]
    futures[2].cancel()
    await asyncio.sleep(0)
    futures[5].cancel()
    kept = [future for future in futures if not future.cancelled()]

    assert await asyncio.gather(*kept) == [b"0", b"1", b"3", b"4", b"6", b"7", b"8", b"9"]


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer, opened: Opener) -> None:
    link = await opened(server.url, call_timeout=5.0)
    with server.client() as client:
        client.script_flush()

    assert await asyncio.gather(*(link.call(ECHO, [], [number]) for number in range(3))) == [b"0", b"1", b"2"]
    with server.client() as client:
        assert client.script_exists(ECHO.sha) == [True]
    assert link.losses == link.timeouts == 0


async def test_calls_that_were_opened_before_are_those_that_they_would_be_in_full(
    server: RedisServer, opened: Opener
) -> None:
    link = await opened(server.url, call_timeout=5.0)
    told = script("return {KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4], #ARGV}")
    opening = Opening(told, [KEY, b"{faregate}other"], ["first", 2])
    endings = [(b"", b"\r\n", b"last"), (b"x" * 70_000, b"$3\r\n", "ü".encode())]

    # The server does not know the script at first; later it does.
    for _ in range(2):
        futures = [link.send(opening, *ending) for ending in endings]
        full = [link.call(told, [KEY, b"{faregate}other"], ["first", 2, *ending]) for ending in endings]
        assert await asyncio.gather(*futures) == await asyncio.gather(*full)
    assert (await link.send(opening, *endings[0]))[2:] == [b"first", b"2", b"", b"\r\n", 5]


async def test_a_mistake_of_ours_is_raised_as_what_the_server_said(one: RedisServer, opened: Opener) -> None:
    link = await opened(one.url)

    wrong = script("return redis.error_reply('ERR this is a bug')")

    with pytest.raises(redis.ResponseError, match="this is a bug"):
        await done(link.call(wrong, [], []))
    assert await done(link.call(ECHO, [], ["on"])) == b"on"
    with pytest.raises(TypeError):
        link.call(ECHO, [], [None])


async def test_a_silent_server_fails_its_calls_and_is_used_again_when_it_answers(
    server: RedisServer, opened: Opener
) -> None:
    link = await opened(server.url, call_timeout=0.05)
    link._connect_timeout = 0.1
    link._dialer = dialer(server.url, connect_timeout=0.1)
    back = returning(link)
    server.pause()

    assert await failures(link.call(ECHO, [], ["a"]), link.call(ECHO, [], ["b"])) == [CallTimeout, CallTimeout]
    assert link.failure is None, "once may be chance"
    assert await failures(link.call(ECHO, [], ["c"])) == [NotSent]
    assert "did not answer within 100 ms" in link.failure
    assert f"127.0.0.1:{server.port}" in link.failure
    refused = link.call(ECHO, [], ["d"])
    assert refused.done(), "nobody waits for a server that is known to be away"
    assert isinstance(refused.exception(), NotSent)

    server.resume()
    await asyncio.wait_for(back.wait(), SECONDS)

    assert link.failure is None
    assert await done(link.call(ECHO, [], ["e"])) == b"e"
    assert (link.timeouts, link.connects) == (1, 2)


async def test_the_third_silence_in_a_row_opens_the_breaker(one: RedisServer, opened: Opener) -> None:
    link = await opened(one.url, call_timeout=0.05)
    back = returning(link)
    # It greets everybody and answers nothing that takes a while.
    stuck = ("BLPOP", "{faregate}nothing", "0")

    assert await failures(link.command(*stuck)) == [CallTimeout]
    await done(link.command("PING"))
    assert await failures(link.command(*stuck)) == [CallTimeout]
    assert await failures(link.command(*stuck)) == [CallTimeout]
    assert link.failure is None
    assert await failures(link.command(*stuck)) == [CallTimeout]
    assert "did not answer within 50 ms" in link.failure

    await asyncio.wait_for(back.wait(), SECONDS)
    assert await done(link.command("PING")) == b"PONG"
    # A silent connection is closed, not kept: what it still waits for ends with it.
    with one.client() as client:
        await until(lambda: sum(entry["name"] == "faregate" for entry in client.client_list()) == 1)


async def test_a_server_that_is_silent_to_a_new_connection_is_asked_again_before_that_is_an_outage(
    proxy: RedisProxy, opened: Opener
) -> None:
    link = await opened(proxy.url, connect_timeout=0.2)
    proxy.mute(2)
    proxy.drop_all()
    await until(lambda: link.losses == 1)
    assert await done(link.call(ECHO, [], ["here"])) == b"here"
    assert proxy.connections == 4
    assert link.outages == 0

    proxy.mute(3)
    proxy.drop_all()
    await until(lambda: link.losses == 2)
    assert await failures(link.call(ECHO, [], ["not here"])) == [NotSent]
    assert link.outages == 1


async def test_a_process_that_is_late_itself_does_not_take_redis_for_silent(one: RedisServer, opened: Opener) -> None:
    link = await opened(one.url, call_timeout=0.05)

    future = link.call(ECHO, [], ["here"])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # Blocks the loop for longer than Redis may take.
    with one.client() as client:
        assert client.blpop("nothing", timeout=0.2) is None

    assert await done(future) == b"here"
    assert link.timeouts == 0


async def test_a_killed_server_is_noticed_and_a_new_one_gets_none_of_the_old_calls(
    server: RedisServer, opened: Opener
) -> None:
    runs: list[str] = []
    link = await opened(server.url, watch=lambda link: link.on_connect(runs.append))
    back = returning(link)
    server.kill()
    await until(lambda: link.losses == 1)

    assert await failures(link.call(ECHO, [], ["a"])) == [NotSent]
    assert "is not reachable" in link.failure
    server.start()
    await asyncio.wait_for(back.wait(), SECONDS)

    assert await done(link.call(ECHO, [], ["b"])) == b"b"
    assert len(runs) == 2
    assert runs[0] != runs[1]


async def test_calls_that_waited_for_a_server_that_turns_out_to_be_new_are_not_sent(
    one: RedisServer, opened: Opener
) -> None:
    marks: list[Any] = []
    link = await opened(one.url)
    link.on_connect(lambda run: marks.append(link.call(APPEND, [KEY], ["of the callback"])))
    one.kill()
    await until(lambda: link.losses == 1)
    one.start()

    early = link.call(APPEND, [KEY], ["meant for the old one"])

    assert await failures(early) == [NotSent]
    assert "restarted or replaced" in str(early.exception())
    assert await done(marks[0]) == 1
    with one.client() as client:
        assert client.lrange(KEY, 0, -1) == ["of the callback"]


async def test_calls_that_waited_for_the_same_server_are_sent(proxy: RedisProxy, opened: Opener) -> None:
    link = await opened(proxy.url)
    proxy.drop_all()
    await until(lambda: link.losses == 1)

    assert await done(link.call(ECHO, [], ["a"])) == b"a"
    assert (link.connects, link.failure) == (2, None)


async def test_a_connection_lost_in_mid_call_leaves_the_outcome_open(
    one: RedisServer, proxy: RedisProxy, opened: Opener
) -> None:
    link = await opened(proxy.url, call_timeout=5.0)
    proxy.delay(60.0)
    future = link.call(APPEND, [KEY], ["once"])
    with one.client() as client:
        await until(lambda: client.llen(KEY) == 1)

    proxy.drop_all()

    assert await failures(future) == [ConnectionLost]
    assert link.losses == 1


async def test_a_call_made_in_the_turn_in_which_the_connection_is_lost_is_answered_on_the_next_one(
    one: RedisServer, opened: Opener
) -> None:
    link = await opened(one.url)
    (pipe,) = link._pipes
    before = link.command("ECHO", "before")
    # In one turn of the loop: the writer is woken, the reader finds the connection lost, and somebody calls.
    pipe.end(ConnectionLost, "lost")
    after = link.command("ECHO", "after")
    assert await failures(before) == [NotSent]
    assert await done(after) == b"after"


async def test_no_call_is_answered_with_the_reply_of_another_while_connections_break(
    one: RedisServer, opened: Opener
) -> None:
    proxy = RedisProxy(one.port, seed=7)
    proxy.start()
    link = await opened(proxy.url, call_timeout=1.0)
    proxy.loss(0.1)
    answered = lost = 0
    for number in range(300):
        try:
            assert await done(link.call(ECHO, [], [number])) == str(number).encode()
            answered += 1
        except LedgerAway:
            lost += 1
            await until(lambda: link.failure is None)
    await link.close()
    proxy.stop()

    assert answered > 200, f"seed {proxy.seed}"
    assert lost > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("maxmemory 100kb\nmaxmemory-policy noeviction", "OOM"),
        ("min-replicas-to-write 1", "NOREPLICAS"),
        ("user default on nopass ~* &* +@all -set", "script"),
        ("user default on nopass ~other:* &* +@all", "NOPERM"),
    ],
)
@pytest.mark.parametrize("program", programs())
async def test_a_server_that_cannot_serve_says_why(program: str, settings: str, said: str, opened: Opener) -> None:
    server = RedisServer(programs()[program], settings=settings)
    server.start()
    try:
        link = await opened(server.url)

        with pytest.raises(LedgerAway, match=said):
            await done(link.call(SET, [KEY], ["a"]))
        assert link.failure is None
    finally:
        server.remove()


async def test_a_server_that_became_a_replica_is_left_without_losing_track(server: RedisServer, opened: Opener) -> None:
    link = await opened(server.url)
    back = returning(link)
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)

        answered = [link.call(ECHO, [], ["before"]), link.call(APPEND, [KEY], ["a"]), link.call(ECHO, [], ["after"])]
        assert await failures(*answered) == [bytes, NotSent, bytes]
        assert "READONLY" in str(answered[1].exception())
        assert await failures(link.call(APPEND, [KEY], ["b"])) == [NotSent]
        assert "is a replica" in link.failure

        client.replicaof("NO", "ONE")
    await asyncio.wait_for(back.wait(), SECONDS)
    assert await done(link.call(APPEND, [KEY], ["c"])) == 1


async def test_a_cluster_reached_by_the_wrong_kind_of_url_says_so(opened: Opener) -> None:
    cluster = RedisCluster()
    cluster.start()
    try:
        with cluster.client() as client:
            client.execute_command("CLUSTER DELSLOTS", client.execute_command("CLUSTER KEYSLOT", "{faregate}"))
        link = await opened(f"redis://127.0.0.1:{cluster.port}")

        refused = link.call(SET, [KEY], ["a"])

        assert await failures(refused) == [NotSent]
        assert "CLUSTERDOWN" in str(refused.exception())
    finally:
        cluster.remove()


async def test_no_more_calls_wait_than_fit(one: RedisServer, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MOST_WAITING", 3)
    link = await opened(one.url, call_timeout=5.0)

    outcomes = await failures(*(link.call(ECHO, [], ["a"]) for _ in range(4)))

    assert outcomes == [bytes, bytes, bytes, NotSent]
    assert await done(link.call(ECHO, [], ["again"])) == b"again"


async def test_a_closed_link_fails_what_waits_and_sends_nothing_more(one: RedisServer, opened: Opener) -> None:
    link = await opened(one.url, call_timeout=5.0)
    one.pause()
    sent = link.call(APPEND, [KEY], ["a"])
    await until(lambda: link.writes == 2)
    unsent = link.call(APPEND, [KEY], ["b"])

    await link.close()
    one.resume()

    assert await failures(sent, unsent, link.command("PING")) == [ConnectionLost, NotSent, NotSent]


@pytest.mark.parametrize("program", programs())
async def test_after_a_fail_over_the_link_finds_the_new_master(program: str, opened: Opener) -> None:
    group = RedisSentinel(programs()[program])
    group.start()
    try:
        runs: list[str] = []
        link = await opened(group.url, watch=lambda link: link.on_connect(runs.append))
        assert await done(link.call(APPEND, [KEY], ["a"])) == 1

        new = await asyncio.to_thread(group.fail_over)

        # The link may be away until then, and answers again when it is not.
        async with asyncio.timeout(SECONDS):
            while len(runs) < 2:
                await failures(link.call(ECHO, [], ["a"]))
                await asyncio.sleep(0.01)
        await done(link.call(APPEND, [b"{faregate}new"], ["b"]))
        with new.client() as client:
            assert client.lrange("{faregate}new", 0, -1) == ["b"]
    finally:
        group.remove()


async def test_news_are_heard_and_every_subscription_says_that_some_may_have_been_missed(server: RedisServer) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    channel = Channel(dialer(server.url), b"faregate:news", heard.put_nowait)
    channel.start()
    try:
        assert await asyncio.wait_for(heard.get(), SECONDS) == b""
        with server.client() as client:
            client.publish("faregate:news", "rules")
            client.publish("other:news", "others")
            client.publish("faregate:news", "people")
        assert await asyncio.wait_for(heard.get(), SECONDS) == b"rules"
        assert await asyncio.wait_for(heard.get(), SECONDS) == b"people"

        server.restart()
        assert await asyncio.wait_for(heard.get(), SECONDS) == b""
        with server.client() as client:
            client.publish("faregate:news", "again")
        assert await asyncio.wait_for(heard.get(), SECONDS) == b"again"
    finally:
        await channel.stop()


async def test_a_channel_notices_a_connection_that_has_died_in_silence(
    proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("faregate.ledger.redis.channel._PING_EVERY", 0.05)
    monkeypatch.setattr("faregate.ledger.redis.channel._ANSWER_WITHIN", 0.2)
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    channel = Channel(dialer(proxy.url), b"faregate:news", heard.put_nowait)
    channel.start()
    try:
        await asyncio.wait_for(heard.get(), SECONDS)
        proxy.delay(60.0)
        await until(lambda: proxy.connections > 1)
        proxy.delay(0.0)
        assert await asyncio.wait_for(heard.get(), SECONDS) == b""
    finally:
        await channel.stop()
