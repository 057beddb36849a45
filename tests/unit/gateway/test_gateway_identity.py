"""Who is believed to be whom, in each mode, and who is not."""

import time
from urllib.parse import quote

import jwt
import pytest
from pydantic import SecretStr

from faregate.gateway.errors import ApiError, no_person
from faregate.gateway.identity import Gatekeeper, Headers
from faregate.settings import Connection, Settings

KEY = "sk-connection-key-one"
SECRET = "a-secret-of-open-webui-that-is-long-enough-for-HS512-as-well-so-64-bytes"
OLD_SECRET = "the-secret-before-the-rotation-32-b"
Raw = list[tuple[bytes, bytes]]


def gatekeeper(**settings: object) -> Gatekeeper:
    """A gatekeeper of two connections."""
    connections = (Connection("one", SecretStr(KEY)), Connection("two", SecretStr("sk-connection-key-two")))
    return Gatekeeper(Settings(_env_file=None, **settings), connections)  # type: ignore[arg-type, call-arg]


def headers(*pairs: tuple[str, str]) -> Headers:
    """Headers as a server hands them over: names in lower case, values as bytes."""
    raw: Raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
    return Headers(raw)


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    """A token as Open WebUI signs it, changed by `claims`; None removes a claim."""
    now = int(time.time())
    full = {
        "sub": "eff4a134",
        "email": "Zoe@Example.com",
        "name": "Zoë Müller 山田",
        "role": "user",
        "iss": "open-webui",
        "iat": now,
        "exp": now + 300,
    } | claims
    return jwt.encode({k: v for k, v in full.items() if v is not None}, secret, algorithm=algorithm)


def refusal(gate: Gatekeeper, sent: Headers) -> ApiError:
    """The refusal of a spending call."""
    with pytest.raises(ApiError) as refused:
        gate.caller("one", sent)
    assert refused.value.status == 403
    return refused.value


def test_a_connection_is_known_by_its_key() -> None:
    gate = gatekeeper()
    assert gate.connection(headers(("Authorization", f"Bearer {KEY}"))) == "one"
    assert gate.connection(headers(("authorization", "bearer sk-connection-key-two"))) == "two"


def test_a_key_that_is_remembered_is_refused_where_it_stands_twice() -> None:
    gate, key = gatekeeper(), ("Authorization", f"Bearer {KEY}")
    for _ in range(2):
        assert gate.connection(headers(key)) == "one"
        for other in (key, ("Authorization", ""), ("Authorization", "Bearer wrong")):
            with pytest.raises(ApiError):
                gate.connection(headers(other, key))


def test_no_more_spellings_of_a_key_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faregate.gateway.identity.MOST_KNOWN_KEYS", 4)
    gate = gatekeeper()
    for blanks in range(1, 10):
        assert gate.connection(headers(("Authorization", f"Bearer{' ' * blanks}{KEY}"))) == "one"
        assert len(gate._known_keys) <= 4


@pytest.mark.parametrize("first", ["", " ", "u1"])
def test_of_a_header_that_stands_twice_the_last_that_is_not_empty_counts(first: str) -> None:
    sent = headers(("X-OpenWebUI-User-Id", "u"), ("X-Faregate-Task", first), ("X-Faregate-Task", "t"), ("X-A", "b"))
    assert gatekeeper().caller("one", sent).task == "t"
    sent = headers(("X-OpenWebUI-User-Id", "u"), ("X-Faregate-Task", "t"), ("X-Faregate-Task", ""))
    assert gatekeeper().caller("one", sent).task == "t"


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [("Authorization", "")],
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", "Bearer wrong")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("X-Faregate-Key", KEY)],
    ],
)
def test_a_wrong_missing_or_repeated_key_is_401(sent: list[tuple[str, str]]) -> None:
    with pytest.raises(ApiError) as refused:
        gatekeeper().connection(headers(*sent))
    assert refused.value.status == 401


@pytest.mark.parametrize("name", ["Zoë Müller 山田", "محمد", "Анна", "50% + more", "a+b", "日本 太郎"])
def test_names_in_any_script_arrive_as_they_are(name: str) -> None:
    caller = gatekeeper().caller(
        "one",
        headers(
            ("X-OpenWebUI-User-Id", "u1"),
            ("X-OpenWebUI-User-Name", quote(name.strip(), safe=" ")),
            ("X-OpenWebUI-User-Email", " Zoe@Example.COM "),
            ("X-OpenWebUI-User-Role", "user"),
            ("X-OpenWebUI-Chat-Id", "c1"),
            ("X-Faregate-Task", "title_generation"),
            ("X-Faregate-Groups", "Research & D%C3%A9veloppement,students"),
        ),
    )
    person = caller.person
    assert (person.connection, person.subject, person.email, person.name) == ("one", "u1", "zoe@example.com", name)
    assert person.groups == ("Research & Développement", "students")
    assert (caller.chat_id, caller.task) == ("c1", "title_generation")


def test_empty_is_absent() -> None:
    caller = gatekeeper().caller(
        "one",
        headers(
            ("X-OpenWebUI-User-Id", "u1"),
            ("X-OpenWebUI-User-Email", ""),
            ("X-OpenWebUI-User-Name", " "),
            ("X-OpenWebUI-Chat-Id", ""),
            ("X-Faregate-Task", ""),
        ),
    )
    assert (caller.person.email, caller.person.name, caller.chat_id, caller.task) == (None, None, None, None)


def test_an_empty_groups_header_says_none_and_a_missing_one_says_nothing() -> None:
    gate = gatekeeper()
    assert gate.caller("one", headers(("X-OpenWebUI-User-Id", "u"), ("X-Faregate-Groups", ""))).person.groups == ()
    assert gate.caller("one", headers(("X-OpenWebUI-User-Id", "u"))).person.groups is None


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [("X-OpenWebUI-User-Id", "")],
        [("X-OpenWebUI-User-Email", "zoe@example.com")],
        [("X-OpenWebUI-User-Id", "u1"), ("X-OpenWebUI-User-Id", "u2")],
        [("X-OpenWebUI-User-Id", "u1"), ("X-OpenWebUI-User-Email", "a@x"), ("X-OpenWebUI-User-Email", "b@x")],
        [("X-OpenWebUI-User-Id", "u" * 600)],
    ],
)
def test_without_a_provable_person_nothing_is_spent(sent: list[tuple[str, str]]) -> None:
    assert refusal(gatekeeper(), headers(*sent)).message


def test_groups_that_stand_twice_prove_nothing() -> None:
    sent = headers(("X-OpenWebUI-User-Id", "u"), ("X-Faregate-Groups", "students"), ("X-Faregate-Groups", "rich"))
    assert "groups" in refusal(gatekeeper(), sent).message


def test_what_is_told_of_a_person_is_kept_short() -> None:
    sent = headers(("X-OpenWebUI-User-Id", "u"), ("X-OpenWebUI-Chat-Id", "c" * 9_000), ("X-Faregate-Task", "t" * 9_000))
    caller = gatekeeper().caller("one", sent)
    assert (len(caller.chat_id or ""), len(caller.task or "")) == (256, 256)


def jwt_gate() -> Gatekeeper:
    """A gatekeeper in the middle of a rotation of secrets."""
    return gatekeeper(identity="jwt", openwebui_jwt_secrets=f"{SECRET}, {OLD_SECRET}")


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_a_signed_person_is_believed_under_each_secret(secret: str) -> None:
    person = jwt_gate().caller("one", headers(("X-OpenWebUI-User-Jwt", token(secret)))).person
    assert (person.subject, person.email, person.name, person.role) == (
        "eff4a134",
        "zoe@example.com",
        "Zoë Müller 山田",
        "user",
    )


def test_clocks_may_differ_by_a_minute() -> None:
    now = int(time.time())
    assert jwt_gate().caller("one", headers(("X-OpenWebUI-User-Jwt", token(exp=now - 50)))).person.subject
    assert jwt_gate().caller("one", headers(("X-OpenWebUI-User-Jwt", token(iat=now + 50)))).person.subject


def forged() -> dict[str, str]:
    """Tokens that prove nothing."""
    now = int(time.time())
    head, body, signature = token().split(".")
    return {
        "another secret": token("another-secret-of-32-bytes-or-more-!"),
        "expired": token(exp=now - 61),
        "another issuer": token(iss="somebody"),
        "no issuer": token(iss=None),
        "no expiry": token(exp=None),
        "no subject": token(sub=None),
        "an empty subject": token(sub=""),
        "a blank subject": token(sub="  "),
        "a subject that is a number": f"{head}.{jwt.utils.base64url_encode(b'{}').decode()}.{signature}",
        "no signature": f"{head}.{body}.",
        "alg none": jwt.encode({"sub": "x", "iss": "open-webui", "exp": now + 300}, None, algorithm="none"),
        "alg HS512": token(algorithm="HS512"),
        "garbage": "not.a.token",
        "issued tomorrow": token(iat=now + 86_400),
    }


@pytest.mark.parametrize("kind", sorted(forged()))
def test_a_token_that_proves_nothing_is_refused(kind: str) -> None:
    refusal(jwt_gate(), headers(("X-OpenWebUI-User-Jwt", forged()[kind])))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", ["User-Id", "User-Email", "User-Name", "User-Role"])
def test_plain_headers_are_refused_once_a_connection_says_jwt(name: str, signed: bool) -> None:
    sent = [(f"X-OpenWebUI-{name}", "somebody")]
    if signed:
        sent.append(("X-OpenWebUI-User-Jwt", token()))
    assert "plain" in refusal(jwt_gate(), headers(*sent)).message


def test_half_a_character_in_a_token_says_nothing() -> None:
    person = jwt_gate().caller("one", headers(("X-OpenWebUI-User-Jwt", token(name="\ud800", email="a\udfff")))).person
    assert (person.name, person.email) == (None, None)
    refusal(jwt_gate(), headers(("X-OpenWebUI-User-Jwt", token(sub="\ud800"))))


def test_a_token_that_stands_twice_is_refused() -> None:
    refusal(jwt_gate(), headers(("X-OpenWebUI-User-Jwt", token()), ("X-OpenWebUI-User-Jwt", token())))


def test_who_is_remembered_is_told_by_all_that_is_sent_about_them() -> None:
    gate, signed = jwt_gate(), ("X-OpenWebUI-User-Jwt", token())

    def told(connection: str, *more: tuple[str, str]) -> tuple[str, tuple[str, ...] | None]:
        person = gate.caller(connection, headers(signed, *more)).person
        return person.connection, person.groups

    for _ in range(2):
        assert told("one") == ("one", None)
        assert told("two") == ("two", None)
        assert told("one", ("X-Faregate-Groups", "")) == ("one", ())
        assert told("one", ("X-Faregate-Groups", "staff")) == ("one", ("staff",))
        refusal(gate, headers(signed, signed))
        refusal(gate, headers(signed, ("X-OpenWebUI-User-Id", "somebody")))
        refusal(gate, headers(signed, ("X-Faregate-Groups", "a"), ("X-Faregate-Groups", "b")))


def test_who_is_remembered_is_looked_at_again_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, sent = jwt_gate(), headers(("X-OpenWebUI-User-Jwt", token()))
    gate.caller("one", sent)

    def refuse(_: str) -> None:
        raise no_person("It has expired.")

    monkeypatch.setattr(gate._signed, "claims", refuse)
    assert refusal(gate, sent).message == "It has expired."


def test_in_session_mode_the_connection_is_known_by_its_own_header_and_the_person_by_their_token() -> None:
    gate = gatekeeper(identity="session", webui_secret_key=SECRET)
    session = jwt.encode({"id": "u1", "exp": int(time.time()) + 60, "jti": "x"}, SECRET, algorithm="HS256")
    sent = headers(
        ("X-Faregate-Key", KEY),
        ("Authorization", f"Bearer {session}"),
        ("X-OpenWebUI-User-Id", "u1"),
        ("X-OpenWebUI-User-Email", "Zoe@Example.com"),
    )
    assert gate.connection(sent) == "one"
    person = gate.caller("one", sent).person
    assert (person.subject, person.email) == ("u1", "zoe@example.com")


def test_in_session_mode_headers_about_somebody_else_are_not_believed() -> None:
    gate = gatekeeper(identity="session", webui_secret_key=SECRET)
    session = jwt.encode({"id": "u1"}, SECRET, algorithm="HS256")
    person = gate.caller(
        "one",
        headers(
            ("Authorization", f"Bearer {session}"),
            ("X-OpenWebUI-User-Id", "admin"),
            ("X-OpenWebUI-User-Email", "admin@example.com"),
        ),
    ).person
    assert (person.subject, person.email) == ("u1", None)


@pytest.mark.parametrize("bearer", ["", "Bearer sk-raw-api-key", f"Bearer {KEY}"])
def test_in_session_mode_a_key_is_no_person(bearer: str) -> None:
    refusal(gatekeeper(identity="session", webui_secret_key=SECRET), headers(("Authorization", bearer)))


def test_without_identity_the_connection_is_the_person() -> None:
    person = gatekeeper(identity="none").caller("one", headers(("X-OpenWebUI-User-Id", "forged"))).person
    assert (person.connection, person.subject) == ("one", "one")
