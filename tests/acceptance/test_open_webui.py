"""What Open WebUI sends goes in; the person is registered, answered, and charged what OpenRouter charged."""

import json
import uuid
from collections.abc import Callable
from decimal import Decimal

import httpx
import openai
import pytest
from commands import ADMIN_KEY, CONNECTION_KEY, DEADLINE, UPSTREAM_KEY, Gateway, Launch, Simulator
from open_webui import (
    AMINA,
    BJORN,
    MODEL,
    PEOPLE,
    TOOLS,
    ZOE,
    Person,
    plain_headers,
    session_headers,
    signed_headers,
    title_task,
    user_turn,
)

SECRET = "the secret that signs identities in the tests"
OTHER_SECRET = "another secret which signed them before that"


def chat(gateway: Gateway, headers: dict[str, str], body: dict[str, object], *, prefix: str = "/v1") -> httpx.Response:
    return httpx.post(f"{gateway.url}{prefix}/chat/completions", headers=headers, json=body, timeout=DEADLINE)


def chunks(answer: httpx.Response) -> list[dict]:
    """The events of a stream, which should have come to its end."""
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def text_of(answer: httpx.Response) -> str:
    if answer.headers["content-type"].startswith("application/json"):
        return answer.json()["choices"][0]["message"]["content"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks(answer) if chunk["choices"])


def charged(simulator: Simulator, record: dict[str, object]) -> Decimal:
    """What the simulator charged for the generation of a record."""
    (bill,) = [bill for bill in simulator.bills() if bill["id"] == record["generation_id"]]
    return Decimal(str(bill["total"]))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("person", PEOPLE, ids=lambda person: person.email)
def test_a_turn_with_21_kb_of_tools_is_answered_and_charged_to_its_person(
    gateway: Gateway, simulator: Simulator, person: Person, stream: bool
):
    chat_id = str(uuid.uuid4())
    headers = plain_headers(person, CONNECTION_KEY, chat_id=chat_id)
    assert headers["X-Faregate-Task"] == ""

    answer = chat(gateway, headers, user_turn(f"Hello from {person.name}", stream=stream))

    assert answer.status_code == 200, answer.text
    assert text_of(answer)
    (record,) = [record for record in gateway.usage(user=person.email) if record["chat_id"] == chat_id]
    assert (record["model"], record["status"], record["source"]) == (MODEL, "completed", "usage")
    assert (record["stream"], record["task"], record["connection"]) == (stream, None, "tests")
    assert Decimal(record["cost"]) == charged(simulator, record) > 0
    user = gateway.user(person.email)
    assert (user["id"], user["subject"]) == (record["user_id"], person.id)
    assert (user["name"], user["role"]) == (person.name, person.role)
    assert user["groups"] == sorted(person.groups)


def test_the_signed_identity_proves_the_same_person(launch: Launch):
    gateway = launch(IDENTITY="jwt", OPENWEBUI_JWT_SECRETS=f"{OTHER_SECRET.replace(',', '')},{SECRET.replace(',', '')}")
    for secret in (SECRET, OTHER_SECRET):
        headers = signed_headers(AMINA, CONNECTION_KEY, secret, chat_id=str(uuid.uuid4()))
        answer = chat(gateway, headers, user_turn("Hello"))
        assert answer.status_code == 200, answer.text
        assert text_of(answer)
    (user,) = gateway.admin("GET", "/users").json()
    assert (user["subject"], user["email"], user["name"]) == (AMINA.id, AMINA.email, AMINA.name)
    assert user["groups"] == sorted(AMINA.groups)


def test_once_jwt_is_required_plain_headers_and_bad_tokens_are_refused(launch: Launch, simulator: Simulator):
    gateway = launch(IDENTITY="jwt", OPENWEBUI_JWT_SECRETS=SECRET)
    before = simulator.stats()["requests"]
    signed = signed_headers(ZOE, CONNECTION_KEY, SECRET)
    forged = {
        "plain headers": plain_headers(ZOE, CONNECTION_KEY),
        "plain headers beside the token": signed | {"X-OpenWebUI-User-Id": BJORN.id},
        "another secret": signed_headers(ZOE, CONNECTION_KEY, "a secret that the gateway does not know at all"),
        "expired": signed_headers(ZOE, CONNECTION_KEY, SECRET, lifetime=-120),
        "nobody": {name: value for name, value in signed.items() if name != "X-OpenWebUI-User-Jwt"},
    }
    for what, headers in forged.items():
        answer = chat(gateway, headers, user_turn("Hello"))
        assert answer.status_code == 403, what
        assert answer.json()["error"]["type"] == "permission_error", what
    assert gateway.admin("GET", "/users").json() == []
    assert simulator.stats()["requests"] == before


def test_a_session_token_proves_its_person_and_never_goes_upstream(launch: Launch, simulator: Simulator):
    gateway = launch(IDENTITY="session", WEBUI_SECRET_KEY=SECRET)
    headers = session_headers(BJORN, CONNECTION_KEY, SECRET, chat_id=str(uuid.uuid4()))
    assert chat(gateway, headers, user_turn("Hello")).status_code == 200
    assert gateway.user(BJORN.email)["subject"] == BJORN.id
    assert headers["Authorization"] not in json.dumps(simulator.last())


def test_openrouter_sees_our_key_and_a_pseudonym_and_nothing_of_the_person(gateway: Gateway, simulator: Simulator):
    chat(gateway, plain_headers(ZOE, CONNECTION_KEY, chat_id="c-1"), user_turn("Hello", user="zoe@example.com"))
    sent = simulator.last()[-1]
    headers = {name.lower(): value for name, value in sent["headers"].items()}
    assert headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert headers["accept-encoding"] == "identity"
    assert not [name for name in headers if name.startswith(("x-openwebui", "x-faregate"))]
    assert sent["body"]["user"].startswith("fg-")
    assert sent["body"]["tools"] == TOOLS
    for secret in (ZOE.id, ZOE.email.lower(), CONNECTION_KEY):
        assert secret not in json.dumps(sent).lower()


def test_a_background_task_is_recorded_as_one(gateway: Gateway):
    headers = plain_headers(BJORN, CONNECTION_KEY, chat_id="c-2", task="title_generation")
    answer = chat(gateway, headers, title_task("Hello"))
    assert text_of(answer)
    assert gateway.usage(user=BJORN.email)[0]["task"] == "title_generation"


def test_the_openai_client_streams_and_does_not(gateway: Gateway):
    client = openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=CONNECTION_KEY,
        default_headers={"X-OpenWebUI-User-Id": "a-script", "X-OpenWebUI-User-Email": "script@example.com"},
    )
    with client:
        messages = [{"role": "user", "content": "Hello"}]
        whole = client.chat.completions.create(model=MODEL, messages=messages)
        with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert MODEL in [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model=MODEL, input="Hello")


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
def test_the_model_list_needs_the_key_and_nobody(gateway: Gateway, simulator: Simulator, prefix: str):
    key = {"Authorization": f"Bearer {CONNECTION_KEY}"}
    answer = httpx.get(f"{gateway.url}{prefix}/models", headers=key)
    assert answer.status_code == 200
    assert answer.json() == httpx.get(f"{simulator.url}/api/v1/models").json()
    assert httpx.get(f"{gateway.url}{prefix}/models").status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings", "/v1/chat/completions/", "/v1//chat/completions", "/v1/chat%2Fcompletions", "/api/models"],
)
def test_a_path_outside_the_table_is_404_and_goes_nowhere(gateway: Gateway, simulator: Simulator, path: str):
    before = simulator.stats()["requests"]
    answer = httpx.post(f"{gateway.url}{path}", headers=plain_headers(ZOE, CONNECTION_KEY), json=user_turn("Hello"))
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}
    assert simulator.stats()["requests"] == before


def without(headers: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda headers: without(headers, "Authorization"), 401),
        (lambda headers: headers | {"Authorization": "Bearer wrong"}, 401),
        (lambda headers: headers | {"Authorization": f"Bearer {ADMIN_KEY}"}, 401),
        (lambda headers: without(headers, "X-OpenWebUI-User-Id"), 403),
        (lambda headers: headers | {"X-OpenWebUI-User-Id": ""}, 403),
    ],
    ids=["no key", "a wrong key", "the admin key", "nobody", "an empty id"],
)
def test_who_cannot_be_told_does_not_get_in(
    gateway: Gateway, change: Callable[[dict[str, str]], dict[str, str]], status: int
):
    answer = chat(gateway, change(plain_headers(ZOE, CONNECTION_KEY)), user_turn("Hello"))
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


def test_a_person_who_was_deactivated_is_refused_until_reactivated(gateway: Gateway):
    eve = Person("eve-1", "eve@example.com", "Eve")
    headers = plain_headers(eve, CONNECTION_KEY)
    assert chat(gateway, headers, user_turn("Hello")).status_code == 200
    path = f"/users/{gateway.user(eve.email)['id']}"
    gateway.admin("PATCH", path, json={"is_active": False})
    answer = chat(gateway, headers, user_turn("Hello"))
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "user_deactivated"
    gateway.admin("PATCH", path, json={"is_active": True})
    assert chat(gateway, headers, user_turn("Hello"), prefix="/api/v1").status_code == 200
    assert [record["status"] for record in gateway.usage(user=eve.email)] == ["completed", "refused", "completed"]


def test_what_changes_about_a_person_is_followed(gateway: Gateway):
    before = Person("moved-1", "before@example.com", "Before", groups=("students",))
    after = Person("moved-1", "after@example.com", "After", role="admin", groups=("staff",))
    for person in (before, after):
        assert chat(gateway, plain_headers(person, CONNECTION_KEY), user_turn("Hello")).status_code == 200
    user = gateway.user("after@example.com")
    assert (user["name"], user["role"], user["groups"]) == ("After", "admin", ["staff"])
    assert [user for user in gateway.admin("GET", "/users").json() if user["email"] == "before@example.com"] == []
