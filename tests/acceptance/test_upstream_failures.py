"""When OpenRouter fails, in each of its ways: what the person reads, and that the books are right afterwards."""

import json
import socket
from decimal import Decimal

import httpx
import pytest
from books import AT_ONCE, DAY, assert_nothing_is_held, settled, until
from commands import CONNECTION_KEY, DEADLINE, Gateway, Launch, Simulator
from open_webui import MODEL, Person, plain_headers, somebody, user_turn

ACCOUNT = ("openrouter.ai", "credits", "Insufficient", "user_", "sk-or", "Key limit")


def ask(
    gateway: Gateway, person: Person, text: str, *, stream: bool = False, timeout: float = DEADLINE, **more: object
) -> httpx.Response:
    return httpx.post(
        f"{gateway.url}/v1/chat/completions",
        headers=plain_headers(person, CONNECTION_KEY),
        json=user_turn(text, stream=stream, tools=[], **more),
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def limited(gateway: Gateway) -> Gateway:
    """A gateway in which everybody has room, and a quota to look at."""
    gateway.set_policy(limits=[DAY, AT_ONCE])
    return gateway


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("400", 400),
        ("401", 502),
        ("402", 402),
        ("402-in-flight", 503),
        ("402-key", 402),
        ("403-key", 403),
        ("403-moderation", 403),
        ("404", 404),
        ("408", 408),
        ("429", 429),
        ("429-upstream", 429),
        ("500", 500),
        ("502-html", 502),
        ("503", 503),
        ("524", 524),
        ("529", 529),
    ],
)
def test_an_error_before_the_answer_is_a_status_and_a_sentence_and_costs_nothing(
    limited: Gateway, error: str, status: int, stream: bool
):
    person = somebody()
    answer = ask(limited, person, f"Hello [[error={error}]]", stream=stream)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    assert body["error"]["message"].strip()
    assert not [word for word in ACCOUNT if word in answer.text]
    (record,) = limited.usage(user=person.email)
    assert (record["status"], record["cost"]) == ("failed", "0")
    assert str(record["reason"]).startswith("upstream ")
    assert_nothing_is_held(limited, person, Decimal(0))


def test_administrators_read_in_full_what_people_do_not(limited: Gateway):
    person = somebody()
    ask(limited, person, "Hello [[error=402]]")
    (record,) = limited.usage(user=person.email)
    assert "credits" in str(record["reason"])


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_inside_a_success_does_not_look_like_one(limited: Gateway, stream: bool):
    person = somebody()
    answer = ask(limited, person, "Hello [[error-200]]", stream=stream)
    assert answer.status_code >= 400
    assert answer.json()["error"]["message"]
    (record,) = limited.usage(user=person.email)
    assert (record["status"], record["cost"]) == ("failed", "0")


def test_white_space_before_an_answer_does_not_hide_its_usage(limited: Gateway, simulator: Simulator):
    person = somebody()
    assert ask(limited, person, "Hello [[whitespace=5]]").json()["choices"]
    (record,) = limited.usage(user=person.email)
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    assert Decimal(str(record["cost"])) == Decimal(str(bill["total"])) > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_ends_without_an_answer_is_settled_on_the_bound_and_not_sent_again(
    limited: Gateway, simulator: Simulator, stream: bool
):
    person = somebody()
    # Leaves an idle connection behind, which the next request is sent on.
    ask(limited, person, "Hello")
    before = {bill["id"] for bill in simulator.bills()}
    answer = ask(limited, person, "Hello [[wait=1]] [[cut=0]]", stream=stream)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_unavailable"
    record, first = settled(limited, person, 2)
    assert (record["status"], record["source"], record["generation_id"]) == ("failed", "estimate", None)
    (bill,) = [bill for bill in simulator.bills() if bill["id"] not in before]
    cost = Decimal(str(record["cost"]))
    assert cost >= Decimal(str(bill["total"]))
    assert_nothing_is_held(limited, person, cost + Decimal(str(first["cost"])))


def test_a_json_answer_that_breaks_off_is_charged_what_openrouter_charged(limited: Gateway, simulator: Simulator):
    person = somebody()
    assert ask(limited, person, "Hello [[cut=20]]").status_code == 502
    (record,) = settled(limited, person)
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    assert Decimal(str(record["cost"])) == Decimal(str(bill["total"])) > 0
    assert record["source"] == "generation"
    assert_nothing_is_held(limited, person, Decimal(str(bill["total"])))


def test_a_json_answer_whose_client_has_left_is_charged_in_full(limited: Gateway, simulator: Simulator):
    person = somebody()
    with pytest.raises(httpx.ReadTimeout):
        ask(limited, person, "Hello [[wait=0.5]]", timeout=0.2)
    until(lambda: limited.usage(user=person.email))
    (record,) = settled(limited, person)
    assert record["status"] == "aborted"
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    assert Decimal(str(record["cost"])) == Decimal(str(bill["total"])) > 0
    assert_nothing_is_held(limited, person, Decimal(str(bill["total"])))


def test_who_leaves_a_stream_that_is_silent_is_noticed_and_upstream_is_left_too(limited: Gateway, simulator: Simulator):
    person = somebody()
    body = user_turn("Hello [[stall=2]]", tools=[])
    url, headers = f"{limited.url}/v1/chat/completions", plain_headers(person, CONNECTION_KEY)
    with httpx.stream("POST", url, headers=headers, json=body, timeout=DEADLINE) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert simulator.stats()["in_flight"] == 1
    until(lambda: simulator.stats()["in_flight"] == 0)
    (record,) = settled(limited, person)
    assert record["status"] == "aborted"
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    assert Decimal(str(record["cost"])) == Decimal(str(bill["total"])) > 0
    assert_nothing_is_held(limited, person, Decimal(str(bill["total"])))


@pytest.mark.parametrize(
    ("stream", "patience"), [(True, "UPSTREAM_FIRST_BYTE_TIMEOUT"), (False, "UPSTREAM_IDLE_TIMEOUT")]
)
def test_a_silent_upstream_is_answered_for_and_its_late_answer_is_charged(
    launch: Launch, simulator: Simulator, stream: bool, patience: str
):
    gateway = launch(**{patience: "0.2"})
    gateway.set_policy(limits=[DAY, AT_ONCE])
    person = somebody()
    answer = ask(gateway, person, "Hello [[wait=1]]", stream=stream, model="openai/gpt-oss-20b")
    assert answer.status_code == 504
    until(lambda: gateway.usage(user=person.email))
    (record,) = settled(gateway, person)
    assert record["status"] == "failed"
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    assert Decimal(str(record["cost"])) == Decimal(str(bill["total"])) > 0
    assert_nothing_is_held(gateway, person, Decimal(str(bill["total"])))


def test_an_upstream_that_is_not_there_is_said_so_and_costs_nothing(launch: Launch):
    gateway = launch()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    gateway.process.stop()
    # The second start has the price list of the first, and nobody to ask.
    again = launch(state="degraded", OPENROUTER_BASE_URL=f"http://127.0.0.1:{port}/api/v1")
    person = somebody()
    answer = ask(again, person, "Hello")
    assert answer.status_code == 502
    (record,) = again.usage(user=person.email)
    assert (record["status"], record["cost"]) == ("failed", "0")
    models = httpx.get(f"{again.url}/v1/models", headers={"Authorization": f"Bearer {CONNECTION_KEY}"})
    assert models.status_code == 200
    assert len(models.json()["data"]) > 20


def test_a_body_larger_than_64_mb_is_413_and_goes_nowhere(limited: Gateway, simulator: Simulator):
    person = somebody()
    before = simulator.stats()["requests"]
    for content in (b"x" * (64 * 1024 * 1024 + 1), (b"x" * 1_048_576 for _ in range(65))):
        answer = httpx.post(
            f"{limited.url}/v1/chat/completions",
            headers=plain_headers(person, CONNECTION_KEY),
            content=content,
            timeout=DEADLINE,
        )
        assert answer.status_code == 413
        assert "64 MB" in answer.json()["error"]["message"]
    assert simulator.stats()["requests"] == before


def test_a_body_of_many_megabytes_passes(limited: Gateway):
    image = "data:image/png;base64," + "A" * 20_000_000
    content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": image}}]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    answer = httpx.post(
        f"{limited.url}/v1/chat/completions",
        headers=plain_headers(somebody(), CONNECTION_KEY),
        content=json.dumps(body),
        timeout=DEADLINE,
    )
    assert answer.status_code == 200, answer.text
