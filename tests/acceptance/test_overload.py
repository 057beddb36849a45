"""More requests at once than a process takes: who is too many is told so at once, and when to come again."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from books import until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch, Simulator
from open_webui import Person, plain_headers, somebody, user_turn


def headers(person: Person) -> dict[str, str]:
    return plain_headers(person, CONNECTION_KEY)


@contextmanager
def waiting(gateway: Gateway) -> Iterator[None]:
    """A stream that has begun, and does not end before its client leaves."""
    body = user_turn("Hello [[stall=2]]", tools=[])
    url = f"{gateway.url}/v1/chat/completions"
    with httpx.stream("POST", url, headers=headers(somebody()), json=body, timeout=DEADLINE) as answer:
        assert answer.status_code == 200
        # As long as it is referred to, the connection is open.
        lines = answer.iter_lines()
        next(lines)
        yield


def ask(gateway: Gateway) -> httpx.Response:
    body = user_turn("Hello", stream=False, tools=[])
    return httpx.post(f"{gateway.url}/v1/chat/completions", headers=headers(somebody()), json=body, timeout=DEADLINE)


@pytest.fixture
def small(launch: Launch) -> Gateway:
    """A gateway that takes two requests at once."""
    return launch(MAX_IN_FLIGHT="2")


def test_who_is_too_many_is_told_when_to_come_again_and_has_a_place_when_one_is_free(small: Gateway):
    assert ask(small).status_code == 200
    with waiting(small):
        assert ask(small).status_code == 200
        with waiting(small):
            refused = ask(small)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "overloaded"
            assert httpx.get(f"{small.url}/readyz").status_code == 200
            models = httpx.get(f"{small.url}/v1/models", headers={"Authorization": f"Bearer {CONNECTION_KEY}"})
            assert models.status_code == 200
            counted = 'faregate_requests_total{outcome="overloaded",worker="0"} 1.0'
            assert counted in httpx.get(f"{small.url}/metrics").text
        until(lambda: ask(small).status_code == 200)


def test_the_body_of_who_is_too_many_is_not_waited_for(small: Gateway, simulator: Simulator):
    with waiting(small), waiting(small):
        before = simulator.stats()["requests"]
        with socket.create_connection(("127.0.0.1", small.process.port), timeout=DEADLINE) as client:
            lines = [f"{name}: {value}" for name, value in headers(somebody()).items()]
            head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "Host: x", *lines, "Content-Length: 9999"])
            client.sendall(head.encode() + b"\r\n\r\n")
            assert client.recv(65_536).startswith(b"HTTP/1.1 503 ")
        assert simulator.stats()["requests"] == before


def test_who_has_no_key_takes_no_place_from_those_who_do_and_hears_nothing_of_the_load(small: Gateway):
    with waiting(small), waiting(small):
        answer = httpx.post(f"{small.url}/v1/chat/completions", content=json.dumps({}))
        assert answer.status_code == 401
