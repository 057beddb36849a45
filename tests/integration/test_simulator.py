"""The simulator over a real socket: what clients see on the wire, and what the books say afterwards."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from faregate.simulator.app import Options, create_app

KEY = {"Authorization": "Bearer sk-or-v1-anything"}
DELAY = 60.0


class Clock:
    """Stands still until it is moved."""

    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    port: int
    http: httpx.AsyncClient
    clock: Clock

    async def get(self, path: str) -> Any:
        return json.loads((await self.http.get(path)).content, parse_float=Decimal)

    async def bill(self) -> dict[str, Any]:
        """The only bill, as soon as it is written."""
        async with asyncio.timeout(10):
            while not (bills := await self.get("/_simulator/bills")):
                continue
        assert len(bills) == 1
        return bills[0]


@asynccontextmanager
async def _served(options: Options) -> AsyncIterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(options), http="httptools", ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def world() -> AsyncIterator[World]:
    clock = Clock()
    async with _served(Options(generation_delay=DELAY, clock=clock)) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=KEY, timeout=10) as http:
            yield World(port, http, clock)


def _chat(text: str, *, stream: bool = False, **fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": "simulator/plain", "messages": messages, "stream": stream, **fields}


async def _post(world: World, text: str, **fields: Any) -> httpx.Response:
    return await world.http.post("/api/v1/chat/completions", json=_chat(text, **fields))


async def _raw(world: World, text: str, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The same request over a bare connection, so that every byte and its end can be seen."""
    body = json.dumps(_chat(text, **fields)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: simulator\r\nAuthorization: Bearer sk-or-v1-anything\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(head.encode() + body)
    return reader, writer


def _events(response: httpx.Response) -> list[str]:
    return [event for event in response.text.split("\n\n") if event]


def _usage(response: httpx.Response) -> dict[str, Any]:
    *_, last, done = _events(response)
    assert done == "data: [DONE]"
    usage: dict[str, Any] = json.loads(last.removeprefix("data: "), parse_float=Decimal)["usage"]
    return usage


async def test_the_openai_client_chats_with_it(world: World) -> None:
    url = f"http://127.0.0.1:{world.port}/api/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-or-v1-anything", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "Which line to the harbour? [[tokens=12]]"}]
        whole = await client.chat.completions.create(model="openai/gpt-4o-mini", messages=messages)
        text = ""
        usage = None
        async for chunk in await client.chat.completions.create(
            model="openai/gpt-4o-mini", messages=messages, stream=True
        ):
            text += chunk.choices[0].delta.content or ""
            usage = chunk.usage or usage
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens == 12


async def test_a_bill_is_what_the_usage_said_to_the_last_digit(world: World) -> None:
    response = await _post(world, "Hello [[cached=2]]", model="openai/gpt-4.1-nano", user="anna")
    body = json.loads(response.content, parse_float=Decimal)
    usage = body["usage"]
    assert await world.bill() == {
        "id": response.headers["x-generation-id"],
        "model": "openai/gpt-4.1-nano",
        "served_model": "openai/gpt-4.1-nano",
        "provider": "OpenAI",
        "streamed": False,
        "cancelled": False,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "reasoning_tokens": 0,
        "cached_tokens": 2,
        "cost": str(usage["cost"]),
        "upstream_cost": str(usage["cost_details"]["upstream_inference_cost"]),
        "is_byok": False,
        "total": str(usage["cost"]),
        "status": "billed",
        "user": "anna",
        "created": world.clock.now,
    }


async def test_under_byok_the_total_is_what_the_provider_asks(world: World) -> None:
    usage = _usage(await _post(world, "[[byok]]", stream=True))
    bill = await world.bill()
    assert (usage["cost"], usage["is_byok"]) == (0, True)
    assert Decimal(bill["total"]) == usage["cost_details"]["upstream_inference_cost"] > 0


async def test_a_fallback_is_billed_as_the_model_that_served(world: World) -> None:
    response = await _post(world, "[[fallback]]", models=["openai/gpt-4o-mini"])
    assert response.json()["model"] == "openai/gpt-4o-mini"
    bill = await world.bill()
    assert (bill["model"], bill["served_model"]) == ("simulator/plain", "openai/gpt-4o-mini")


async def test_models_need_no_key_and_may_be_cached(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.http.base_url) as stranger:
        for path in ("/api/v1/models", "/v1/models"):
            response = await stranger.get(path)
            assert response.headers["cache-control"] == "public, max-age=120, stale-while-revalidate=3600"
            assert len(response.json()["data"]) >= 30


@pytest.mark.parametrize(
    ("authorization", "status", "message"),
    [
        (None, 401, "No cookie auth credentials found"),
        ("Basic c2VjcmV0", 401, "No cookie auth credentials found"),
        ("Bearer sk-or-v1-bad", 401, "User not found."),
        ("Bearer sk-proj-other", 401, "User not found."),
        ("Bearer sk-or-v1-limit", 403, "Key limit exceeded (total limit)."),
    ],
)
async def test_a_key_is_needed(world: World, authorization: str | None, status: int, message: str) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    async with httpx.AsyncClient(base_url=world.http.base_url, headers=headers) as client:
        response = await client.post("/v1/chat/completions", json=_chat("Hello"))
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)
    assert response.headers["x-generation-id"].startswith("gen-1790000000-")
    assert await world.get("/_simulator/bills") == []


async def test_generation_knows_an_id_only_after_a_while(world: World) -> None:
    response = await _post(world, "Hello", stream=True, user="anna")
    generation_id = response.headers["x-generation-id"]
    path = f"/api/v1/generation?id={generation_id}"
    early = await world.http.get(path)
    assert early.status_code == 404
    assert early.json() == {"error": {"message": f"Generation {generation_id} not found", "code": 404}}
    world.clock.now += DELAY
    record = (await world.get(path))["data"]
    usage = _usage(response)
    assert record["id"] == generation_id
    assert record["total_cost"] == record["usage"] == usage["cost"]
    assert record["native_tokens_prompt"] == usage["prompt_tokens"]
    assert record["native_tokens_completion"] == usage["completion_tokens"]
    assert (record["streamed"], record["cancelled"], record["finish_reason"]) == (True, False, "stop")
    assert (record["external_user"], record["created_at"]) == ("anna", "2026-09-21T14:13:20Z")
    assert record["model"] == "simulator/plain-20260101"


@pytest.mark.parametrize("text", ["[[error=502]]", "[[error-200]]", "[[generation-lost]]"])
async def test_some_ids_are_never_known(world: World, text: str) -> None:
    generation_id = (await _post(world, text)).headers["x-generation-id"]
    world.clock.now += 1_000_000
    assert (await world.http.get(f"/v1/generation?id={generation_id}")).status_code == 404


async def test_generation_needs_an_id_and_a_key(world: World) -> None:
    assert (await world.http.get("/v1/generation")).status_code == 400
    async with httpx.AsyncClient(base_url=world.http.base_url) as stranger:
        assert (await stranger.get("/v1/generation?id=gen-1")).status_code == 401
        assert (await stranger.get("/v1/key")).status_code == 401


async def test_the_key_says_what_was_spent(world: World) -> None:
    first = await _post(world, "Hello")
    await _post(world, "Hello [[byok]]")
    data = (await world.get("/api/v1/key"))["data"]
    assert data["usage"] == json.loads(first.content, parse_float=Decimal)["usage"]["cost"]
    assert data["byok_usage"] > 0


async def test_a_provider_that_stops_bills_the_tokens_that_were_sent(world: World) -> None:
    async with world.http.stream("POST", "/v1/chat/completions", json=_chat("[[stall=3]]", stream=True)) as response:
        lines = response.aiter_lines()
        events = 0
        async for line in lines:
            events += line.startswith("data:")
            if events == 3:
                break
    bill = await world.bill()
    assert (bill["cancelled"], bill["completion_tokens"], bill["status"]) == (True, 3, "billed")
    # $1 and $4 per million tokens.
    assert Decimal(bill["cost"]) == (bill["prompt_tokens"] + 3 * 4) * Decimal("0.000001")
    world.clock.now += DELAY
    record = (await world.get(f"/v1/generation?id={bill['id']}"))["data"]
    assert (record["cancelled"], record["finish_reason"]) == (True, None)
    assert record["total_cost"] == Decimal(bill["cost"])


async def test_a_provider_that_runs_on_bills_the_whole_answer(world: World) -> None:
    text = "[[stall=3]][[provider=Groq]][[tokens=500]]"
    async with world.http.stream("POST", "/v1/chat/completions", json=_chat(text, stream=True)) as response:
        await anext(response.aiter_lines())
    bill = await world.bill()
    assert (bill["cancelled"], bill["completion_tokens"]) == (True, 500)


async def test_leaving_a_paced_stream_ends_it(world: World) -> None:
    text = "[[pace=0.01]][[tokens=16000]]"
    async with world.http.stream("POST", "/v1/chat/completions", json=_chat(text, stream=True)) as response:
        await anext(response.aiter_lines())
        assert (await world.get("/_simulator/stats"))["in_flight"] == 1
    bill = await world.bill()
    assert bill["cancelled"]
    assert 0 < bill["completion_tokens"] < 16_000
    assert await world.get("/_simulator/stats") == {"requests": 1, "in_flight": 0, "max_in_flight": 1}


async def test_leaving_is_noticed_in_the_middle_of_a_long_pace(world: World) -> None:
    text = "[[pace=3600]]"
    async with world.http.stream("POST", "/v1/chat/completions", json=_chat(text, stream=True)) as response:
        await anext(response.aiter_lines())
    assert (await world.bill())["completion_tokens"] == 1


@pytest.mark.parametrize(("stream", "tokens"), [(True, 0), (False, 32)])
async def test_leaving_before_any_header_costs_nothing_of_a_stream_and_all_of_a_body(
    world: World, stream: bool, tokens: int
) -> None:
    for_ever = "[[stall]]" if stream else "[[wait=3600]]"
    _, writer = await _raw(world, for_ever, stream=stream)
    async with asyncio.timeout(10):
        while not (await world.get("/_simulator/stats"))["in_flight"]:
            continue
    writer.close()
    bill = await world.bill()
    assert (bill["cancelled"], bill["completion_tokens"]) == (True, tokens)
    assert (Decimal(bill["total"]) > 0) is bool(tokens)


async def test_a_paced_stream_that_is_heard_out_is_whole(world: World) -> None:
    slow = await _post(world, "[[pace=0.001]][[tokens=20]][[comments=2]]", stream=True)
    assert _events(slow)[:2] == [": OPENROUTER PROCESSING"] * 2
    assert len(_events(slow)) == 2 + 20 + 3
    assert (await world.bill())["cancelled"] is False


@pytest.mark.parametrize("stream", [True, False])
async def test_split_changes_the_pieces_and_not_the_bytes(world: World, stream: bool) -> None:
    reader, writer = await _raw(world, "[[split=7]]", stream=stream)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    body = b""
    sizes = set()
    while size := int(await reader.readline(), 16):
        sizes.add(size)
        body += (await reader.readexactly(size + 2))[:-2]
    writer.close()
    assert max(sizes) == 7
    assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)


async def test_a_cut_stream_has_its_events_and_no_end(world: World) -> None:
    reader, writer = await _raw(world, "[[cut=5]]", stream=True)
    seen = await reader.read()
    writer.close()
    assert seen.count(b"data: ") == 5
    assert b"[DONE]" not in seen
    assert not seen.endswith(b"0\r\n\r\n")
    bill = await world.bill()
    assert (bill["completion_tokens"], bill["cancelled"]) == (5, True)


async def test_a_cut_body_is_cut_by_bytes(world: World) -> None:
    reader, writer = await _raw(world, "[[cut=5]]")
    seen = await reader.read()
    writer.close()
    assert seen.endswith(b'\r\n5\r\n{"id"\r\n')
    assert (await world.bill())["completion_tokens"] == 32


@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_can_break_before_any_header(world: World, stream: bool) -> None:
    reader, writer = await _raw(world, "[[cut=0]]", stream=stream)
    assert await reader.read() == b""
    writer.close()
    assert (await world.bill())["cancelled"]


async def test_white_space_keeps_a_json_answer_alive(world: World) -> None:
    response = await _post(world, "[[whitespace]]")
    assert response.content[:1].isspace()
    assert response.json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("text", "stream", "first"),
    [
        ("[[error-200]]", False, b'{"error":'),
        ("[[error-200]]", True, b'{"error":'),
        ("[[error-after=5]]", False, b'{"error":'),
        ("[[whitespace=1]][[error-200]]", False, b"\n         \n{"),
        ("[[error-first]]", True, b'data: {"id":"gen-'),
        ("[[comments=1]][[error-first]]", True, b": OPENROUTER PROCESSING\n\ndata: {"),
        ("[[error-code-string]]", True, b'data: {"id":"gen-'),
    ],
)
async def test_an_answer_can_fail_with_status_200_and_costs_nothing(
    world: World, text: str, stream: bool, first: bytes
) -> None:
    response = await _post(world, text, stream=stream)
    assert response.status_code == 200
    assert response.content.startswith(first)
    assert b'"error":{' in response.content
    assert b"[DONE]" not in response.content
    bill = await world.bill()
    assert (bill["status"], bill["cost"], bill["total"]) == ("failed", "0", "0")


async def test_leaving_before_an_error_comes_is_billed_as_any_other_abort(world: World) -> None:
    text = "[[pace=3600]][[error-after=5]]"
    async with world.http.stream("POST", "/v1/chat/completions", json=_chat(text, stream=True)) as response:
        await anext(response.aiter_lines())
    bill = await world.bill()
    assert (bill["status"], bill["completion_tokens"]) == ("billed", 1)


async def test_an_error_before_the_answer_has_its_status_headers_and_account(world: World) -> None:
    response = await _post(world, "[[error=429-upstream]]", stream=True)
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["user_id"].startswith("user_")
    assert response.headers["x-generation-id"] == (await world.bill())["id"]


async def test_the_edge_answers_in_html(world: World) -> None:
    response = await _post(world, "[[error=502-html]]")
    assert (response.status_code, response.headers["content-type"]) == (502, "text/html; charset=UTF-8")


async def test_what_came_in_can_be_looked_at(world: World) -> None:
    await world.http.post("/v1/chat/completions", content=b"{broken", headers={"X-Test": "yes"})
    await _post(world, "Hello")
    broken, chat = await world.get("/_simulator/last")
    assert (broken["body"], broken["headers"]["x-test"]) == ("{broken", "yes")
    assert (chat["path"], chat["body"]) == ("/api/v1/chat/completions", _chat("Hello"))


async def test_reset_forgets(world: World) -> None:
    await _post(world, "Hello")
    assert (await world.http.post("/_simulator/reset")).status_code == 200
    assert await world.get("/_simulator/bills") == []
    assert await world.get("/_simulator/last") == []
    assert await world.get("/_simulator/stats") == {"requests": 0, "in_flight": 0, "max_in_flight": 0}


@pytest.mark.parametrize("path", ["/", "/v1/chat", "/api/v1/credits", "/v2/models"])
async def test_there_is_nothing_else(world: World, path: str) -> None:
    assert (await world.http.get(path)).json() == {"error": {"message": "Not Found", "code": 404}}
    assert (await world.http.post("/v1/models")).status_code == 404


async def test_many_at_once_have_each_their_own_id_and_bill(world: World) -> None:
    responses = await asyncio.gather(*(_post(world, "Hello", stream=True) for _ in range(40)))
    bills = await world.get("/_simulator/bills")
    assert {bill["id"] for bill in bills} == {response.headers["x-generation-id"] for response in responses}
    assert len(bills) == 40
    assert {bill["cost"] for bill in bills} == {bills[0]["cost"]}


async def test_two_simulators_with_one_seed_say_and_charge_the_same() -> None:
    answers = []
    for _ in range(2):
        async with (
            _served(Options(seed=7, answer_tokens=20, clock=Clock())) as port,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=KEY) as http,
        ):
            answers.append((await http.post("/v1/chat/completions", json=_chat("Hello", stream=True))).content)
    assert answers[0] == answers[1]
