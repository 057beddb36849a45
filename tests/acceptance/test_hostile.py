"""What a hostile neighbour does to it, on either side: it stays up, right, and silent about what is private."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from books import until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch, Simulator
from open_webui import Person, plain_headers, somebody
from stand_in import StandIn, chunk, completion, head, usage, whole

DAY = {"meter": "usd", "window": "day", "amount": "100"}
AT_ONCE = {"meter": "concurrent", "amount": 50}
STREAM = head(X_Generation_Id="gen-1")
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def upstream() -> Iterator[StandIn]:
    """An upstream that answers a chat in one piece, until the test writes another answer down."""

    async def plain(body, writer, _):
        writer.write(whole(completion(usage=usage(0.01))))

    running = StandIn(plain)
    yield running
    running.stop()


@pytest.fixture
def own(launch: Launch, upstream: StandIn) -> Gateway:
    """A gateway in front of it, in which everybody has room."""
    return limited(launch, upstream)


def limited(launch: Launch, upstream: StandIn, **settings: str) -> Gateway:
    gateway = launch(OPENROUTER_BASE_URL=upstream.url, **settings)
    gateway.set_policy(limits=[DAY, AT_ONCE])
    return gateway


def ask(gateway: Gateway, person: Person, model: str = "acme/one", **more: object) -> httpx.Response:
    body = {"model": model, "stream": False, "messages": [{"role": "user", "content": "Hello"}]} | more
    headers = plain_headers(person, CONNECTION_KEY)
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=DEADLINE)


def record_of(gateway: Gateway, person: Person) -> dict:
    until(lambda: [r for r in gateway.usage(user=person.email) if r["status"] != "pending"])
    (record,) = gateway.usage(user=person.email)
    return record


def test_a_limit_on_a_model_is_about_the_model_under_its_other_names_too(launch: Launch, simulator: Simulator):
    gateway = launch()
    limit = {"meter": "requests", "window": "day", "amount": 1, "models": ["openai/gpt-4o-mini"]}
    gateway.set_policy(limits=[limit])
    person = somebody()
    assert ask(gateway, person, "openai/gpt-4o-mini").status_code == 200
    assert ask(gateway, person, "openai/gpt-4o-mini").status_code == 429
    slugs = httpx.get(f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {CONNECTION_KEY}"}).json()["data"]
    slug = next(m["canonical_slug"] for m in slugs if m["id"] == "openai/gpt-4o-mini")
    assert ask(gateway, person, slug).status_code == 429, slug
    assert ask(gateway, person, "~openai/gpt-mini-latest").status_code == 429


def test_a_limit_that_goes_and_comes_back_counts_what_was_spent_meanwhile(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    gateway.set_policy()
    assert ask(gateway, person).status_code == 200

    async def slow(body, writer, _):
        await asyncio.sleep(1)
        writer.write(whole(completion(usage=usage(0.01))))

    upstream.chat = slow
    limits = [{"meter": "requests", "window": "day", "amount": 2}]
    gateway.set_policy(limits=limits)
    running = threading.Thread(target=ask, args=(gateway, person))
    running.start()
    until(lambda: len(upstream.chats) == 2)
    gateway.set_policy()
    running.join()
    gateway.set_policy(limits=limits)

    (quota,) = gateway.quota(person.email)
    assert (quota["used"], quota["held"]) == (2, 0)
    assert ask(gateway, person).status_code == 429


def test_headers_that_break_off_after_the_generation_id_are_asked_about(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    upstream.generations["gen-9"] = {"total_cost": 0.5, "native_tokens_prompt": 3, "native_tokens_completion": 4}

    async def cut(body, writer, _):
        writer.write(b"HTTP/1.1 200 OK\r\nX-Generation-Id: gen-9\r\nContent-Ty")
        await writer.drain()
        writer.close()

    upstream.chat = cut
    assert ask(gateway, person).status_code == 502
    record = record_of(gateway, person)
    assert (record["generation_id"], record["cost"], record["source"]) == ("gen-9", "0.5", "generation")


def test_a_request_that_upstream_has_worked_on_is_not_sent_a_second_time(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    assert ask(gateway, somebody()).status_code == 200  # leaves a connection in the pool

    async def works_then_dies(body, writer, _):
        await asyncio.sleep(0.8)
        writer.close()

    upstream.chat = works_then_dies
    before = len(upstream.chats)
    ask(gateway, person)
    assert len(upstream.chats) - before == 1


def test_a_stream_that_begins_too_late_is_still_read_for_its_cost(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream, UPSTREAM_FIRST_BYTE_TIMEOUT="1"), somebody()

    async def late(body, writer, _):
        await asyncio.sleep(1.5)
        writer.write(STREAM + chunk())
        await writer.drain()
        await asyncio.sleep(0.3)
        writer.write(chunk(usage=usage(0.25)) + DONE)
        await writer.drain()
        writer.close()

    upstream.chat = late
    assert ask(gateway, person, stream=True).status_code == 504
    record = record_of(gateway, person)
    assert (record["source"], record["cost"]) == ("usage", "0.25")
    assert "Traceback" not in gateway.process.output


@pytest.mark.parametrize("status", ["400 Bad Request", "502 Bad Gateway", "201 Created"])
def test_an_answer_that_says_its_cost_is_charged_it_whatever_its_status(launch: Launch, upstream: StandIn, status: str):
    gateway, person = limited(launch, upstream), somebody()

    async def fails(body, writer, _):
        more = {} if status.startswith("2") else {"error": {"message": "the search was done, then it failed"}}
        writer.write(whole(completion(usage=usage(0.007), **more), status, X_Generation_Id="gen-1"))

    upstream.chat = fails
    ask(gateway, person)
    assert record_of(gateway, person)["cost"] == "0.007"


def test_usage_in_the_middle_of_a_stream_that_is_cut_is_not_the_whole_cost(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    upstream.generations["gen-1"] = {"total_cost": 0.9, "native_tokens_prompt": 3, "native_tokens_completion": 400}

    async def cut(body, writer, _):
        writer.write(STREAM + chunk("a", usage=usage(0.0001)) + chunk("b", usage=usage(0.0002)) + chunk("c"))
        await writer.drain()
        writer.transport.abort()

    upstream.chat = cut
    answer = ask(gateway, person, stream=True)
    record = record_of(gateway, person)
    assert (record["status"], record["cost"], record["source"]) == ("failed", "0.9", "generation")
    assert "error" in json.loads(answer.text.strip().split("data: ")[-1])


def test_an_absurd_number_of_tokens_does_not_stop_the_gateway(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()

    async def absurd(body, writer, _):
        writer.write(whole(b'{"id":"gen-1","choices":[],"usage":{"prompt_tokens":1e99999999,"completion_tokens":1}}'))

    upstream.chat = absurd
    threading.Thread(target=lambda: _quietly(ask, gateway, person), daemon=True).start()
    until(lambda: upstream.chats)
    time.sleep(0.5)
    assert httpx.get(f"{gateway.url}/healthz", timeout=3).status_code == 200


@pytest.mark.parametrize("field", ["model", "models", "chat"])
def test_what_a_caller_writes_does_not_fill_the_disk_of_the_books(launch: Launch, upstream: StandIn, field: str):
    gateway, person = limited(launch, upstream), somebody()

    def size() -> int:
        return sum(path.stat().st_size for path in gateway.data_dir.iterdir())

    ask(gateway, person)
    gateway.usage()
    before = size()
    if field == "chat":
        headers = plain_headers(person, CONNECTION_KEY) | {"X-OpenWebUI-Chat-Id": "c" * 1_000_000}
        body = {"model": "acme/one", "messages": [{"role": "user", "content": "Hello"}]}
        httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body, timeout=DEADLINE)
    else:
        long = {"model": "x" * 1_000_000} if field == "model" else {"models": [f"x/{n}" for n in range(100_000)]}
        assert ask(gateway, person, **long).status_code in (400, 404)
    gateway.usage()
    time.sleep(0.5)
    assert size() - before < 100_000


@pytest.mark.parametrize("kind", ["media", "nested", "models"])
def test_one_body_does_not_stop_everybody_else_for_seconds(launch: Launch, upstream: StandIn, kind: str):
    gateway, person = limited(launch, upstream), somebody()
    body: dict[str, object] = {"model": "acme/one", "messages": [{"role": "user", "content": "Hello"}]}
    if kind == "media":
        body["messages"] = [{"role": "user", "content": [{"image_url": {"url": "a"}} for _ in range(1_500_000)]}]
    elif kind == "nested":
        body["messages"] = [{"role": "user", "content": [[]] * 15_000_000, "image_url": 1}]
    else:
        body["models"] = [f"acme/{number}" for number in range(2_000_000)]
    content = json.dumps(body, separators=(",", ":")).encode()
    assert len(content) < 64 * 1024 * 1024
    headers = plain_headers(person, CONNECTION_KEY)
    url = f"{gateway.url}/v1/chat/completions"
    sending = threading.Thread(
        target=lambda: _quietly(httpx.post, url, headers=headers, content=content, timeout=60), daemon=True
    )
    worst = 0.0
    with httpx.Client(timeout=60) as probe:
        probe.get(f"{gateway.url}/healthz")
        sending.start()
        while sending.is_alive():
            began = time.monotonic()
            probe.get(f"{gateway.url}/healthz")
            worst = max(worst, time.monotonic() - began)
            time.sleep(0.02)
    assert worst < 2, f"everybody waited {worst:.1f} s"


def test_a_path_cannot_write_lines_of_its_own_into_the_log(launch: Launch, upstream: StandIn):
    gateway = limited(launch, upstream)
    httpx.get(f"{gateway.url}/v1/a%0AFORGED%20LINE")
    time.sleep(0.3)
    assert not [line for line in gateway.process.output.splitlines() if line.startswith("FORGED")]


def test_a_client_that_never_reads_does_not_keep_its_slot_for_ever(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream, UPSTREAM_IDLE_TIMEOUT="2"), somebody()

    async def long(body, writer, _):
        writer.write(STREAM)
        for _ in range(4000):
            writer.write(chunk("x" * 4000))
            await writer.drain()
        writer.write(chunk(usage=usage(0.02)) + DONE)
        await writer.drain()
        writer.close()

    upstream.chat = long
    body = json.dumps({"model": "acme/one", "stream": True, "messages": [{"role": "user", "content": "Hi"}]})
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        *(f"{name}: {value}" for name, value in plain_headers(person, CONNECTION_KEY).items()),
        f"Content-Length: {len(body)}",
    ]
    with socket.create_connection(("127.0.0.1", gateway.process.port)) as client:
        client.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
        until(lambda: upstream.chats)

        def slots() -> int:
            return next(quota["held"] for quota in gateway.quota(person.email) if quota["meter"] == "concurrent")

        until(lambda: slots() == 0)


def test_packed_bytes_that_nobody_asked_for_do_not_reach_the_client(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()

    async def packed(body, writer, _):
        data = gzip.compress(chunk() + chunk(usage=usage()) + DONE)
        writer.write(whole(data, kind="text/event-stream", Content_Encoding="gzip", X_Generation_Id="gen-1"))

    upstream.chat = packed
    answer = ask(gateway, person, stream=True)
    assert b"\x1f\x8b" not in answer.content


def test_groups_that_stand_twice_prove_nothing(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    gateway.set_policy("rich", limits=[])
    gateway.set_policy(models={"deny": ["*"]})
    gateway.admin("POST", "/group-policies", json={"group_name": "rich", "policy_id": "rich", "priority": 1})
    headers = [*plain_headers(person, CONNECTION_KEY).items(), ("X-Faregate-Groups", "rich")]
    body = {"model": "acme/one", "messages": [{"role": "user", "content": "Hello"}]}
    answer = httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers, json=body)
    assert answer.status_code == 403


@pytest.mark.parametrize("price", ["cheap", 7, [1], True])
def test_a_body_that_cannot_leave_is_refused_before_anything_is_held(own: Gateway, upstream: StandIn, price: object):
    person = somebody()
    assert ask(own, person).status_code == 200
    assert ask(own, person, provider={"max_price": price}).status_code == 400
    assert not [entry for entry in own.quota(person.email) if entry["held"] not in (0, "0")]
    assert len(upstream.chats) == 1


def test_a_prompt_beside_the_messages_is_not_sent_unpaid(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()
    answer = ask(gateway, person, prompt="a" * 100_000)
    assert answer.status_code == 400 or "prompt" not in upstream.chats[-1]


def test_a_prompt_that_upstream_quotes_in_its_error_is_not_kept(launch: Launch, upstream: StandIn):
    gateway, person = limited(launch, upstream), somebody()

    async def quotes(body, writer, _):
        text = f"Invalid input: {body['messages'][0]['content']}"
        writer.write(whole({"error": {"message": text, "code": 400}}, "400 Bad Request"))

    upstream.chat = quotes
    assert ask(gateway, person, messages=[{"role": "user", "content": "my-secret-prompt"}]).status_code == 400
    gateway.usage()
    assert not [path.name for path in gateway.data_dir.iterdir() if b"my-secret-prompt" in path.read_bytes()]


def test_the_simulator_beside_the_gateway_shows_prompts_to_nobody_without_a_key(launch):
    gateway = launch(OPENROUTER_API_KEY="", OPENROUTER_BASE_URL="")
    ask(gateway, somebody(), "openai/gpt-4o-mini", messages=[{"role": "user", "content": "my-secret-prompt"}])
    assert "my-secret-prompt" not in httpx.get(f"{gateway.url}/_simulator/last").text


def _quietly(call: Callable[..., object], *arguments: object, **more: object) -> None:
    with contextlib.suppress(httpx.HTTPError):
        call(*arguments, **more)
