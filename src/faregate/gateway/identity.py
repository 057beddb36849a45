"""Who sends a request: the connection by its key, the person by what the connection's mode can prove.

The headers are those of Open WebUI 0.8 to 0.12 (contract with Open WebUI, section a). Empty is absent, since
its templates leave an empty value where they have nothing. A header that stands twice proves nothing.
"""

import hashlib
import hmac
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from faregate.directory import Person
from faregate.gateway.errors import bad_key, no_person
from faregate.gateway.tokens import MOST_BELIEVED, Tokens
from faregate.settings import Connection, IdentityMode, Settings

USER_ID = b"x-openwebui-user-id"
USER_EMAIL = b"x-openwebui-user-email"
USER_NAME = b"x-openwebui-user-name"
USER_ROLE = b"x-openwebui-user-role"
USER_JWT = b"x-openwebui-user-jwt"
CHAT_ID = b"x-openwebui-chat-id"
TASK = b"x-faregate-task"
GROUPS = b"x-faregate-groups"
CONNECTION_KEY = b"x-faregate-key"
AUTHORIZATION = b"authorization"

_log = logging.getLogger(__name__)
SHORTEST_SECRET = 32
"""Bytes of an HS256 secret (RFC 7518, section 3.2)."""

_PLAIN = (USER_ID, USER_EMAIL, USER_NAME, USER_ROLE)
_NONE: frozenset[bytes] = frozenset()

ISSUER = "open-webui"
LONGEST = 256
"""Characters of what is told about a person: longer is nobody's name, and records keep it."""
MOST_GROUPS = 100
MOST_KNOWN_KEYS = 256
"""Spellings of connection keys that are remembered: there are as many as there are connections."""


class Caller(msgspec.Struct, frozen=True, gc=False):
    """The person behind a request, and what else Open WebUI said of it."""

    person: Person
    chat_id: str | None
    task: str | None


class _Told(NamedTuple):
    token: str
    claims: dict[str, Any]
    person: Person


class Headers:
    """The headers of a request, by their names in lower case.

    `values` has of each that was sent the last value that is not empty, as bytes: what is the same here is the same by
    `get`. `doubled` are those that stand more than once.
    """

    __slots__ = ("doubled", "values")

    def __init__(self, headers: Collection[tuple[bytes, bytes]]) -> None:
        self.values = dict(headers)
        self.doubled = _NONE
        if len(self.values) < len(headers):
            self._sort_out(headers)

    def get(self, name: bytes) -> str | None:
        """The value of a header; None if it is absent or empty."""
        value = self.values.get(name)
        return None if value is None else _text(value) or None

    def says(self, names: Iterable[bytes]) -> bool:
        """Whether any of `names` has a value."""
        return not self.values.keys().isdisjoint(names) and any(map(self.get, names))

    def _sort_out(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.values = {}
        doubled = set()
        for name, value in headers:
            if name in self.values:
                doubled.add(name)
            if name not in self.values or _text(value):
                self.values[name] = value
        self.doubled = frozenset(doubled)


class Gatekeeper:
    """Tells connections and persons apart, in the one mode that this deployment uses."""

    def __init__(self, settings: Settings, connections: Sequence[Connection]) -> None:
        self._mode = settings.identity
        self._connections = [
            (connection.name, _digest(connection.key.get_secret_value())) for connection in connections
        ]
        self._key_header = CONNECTION_KEY if self._mode is IdentityMode.SESSION else AUTHORIZATION
        self._known_keys: dict[bytes | None, str] = {}
        self._told: dict[tuple[str, bytes | None, bytes | None], _Told] = {}
        signed = settings.jwt_secrets()
        self._signed = Tokens(signed, required=("sub", "iss", "exp"), issuer=ISSUER)
        session = settings.webui_secret_key
        sessions = () if session is None else (session.get_secret_value(),)
        self._sessions = Tokens(sessions, required=("id",), issuer=None)
        if any(len(secret.encode()) < SHORTEST_SECRET for secret in (*signed, *sessions)):
            _log.warning("A secret that signs identities is shorter than %d bytes: it can be guessed.", SHORTEST_SECRET)
        self._person: Callable[[str, Headers], Person] = {
            IdentityMode.HEADERS: self._from_headers,
            IdentityMode.JWT: self._from_jwt,
            IdentityMode.SESSION: self._from_session,
            IdentityMode.NONE: self._from_connection,
        }[self._mode]

    def connection(self, headers: Headers) -> str:
        """The name of the connection whose key came along. Raises `ApiError` (401)."""
        shown = headers.values.get(self._key_header)
        repeated = self._key_header in headers.doubled
        if not repeated and (known := self._known_keys.get(shown)) is not None:
            return known
        if self._mode is IdentityMode.SESSION:
            key, where = headers.get(CONNECTION_KEY), "X-Faregate-Key"
        else:
            key, where = _bearer(headers), "Authorization: Bearer"
        if key is None or repeated:
            raise bad_key(f"This request has no connection key. Send the key of a connection in {where}.")
        digest = _digest(key)
        name: str | None = None
        for candidate, expected in self._connections:
            # No early exit: how long it takes must not tell how far the search went.
            if hmac.compare_digest(digest, expected):
                name = candidate
        if name is None:
            raise bad_key(f"This connection key is not known. Check the key that is sent in {where}.")
        # Only keys that are right get here; but each can be spelled with any number of blanks.
        if len(self._known_keys) >= MOST_KNOWN_KEYS:
            self._known_keys.clear()
        self._known_keys[shown] = name
        return name

    def caller(self, connection: str, headers: Headers) -> Caller:
        """The person behind a spending call. Raises `ApiError` (403) when nobody is proven."""
        if GROUPS in headers.doubled:
            # Groups choose the policy: of two lists of them neither is proven.
            raise no_person("This request names the groups of its person twice, so it cannot be told which are theirs.")
        return Caller(self._person(connection, headers), _short(headers, CHAT_ID), _short(headers, TASK))

    def _from_headers(self, connection: str, headers: Headers) -> Person:
        if not headers.doubled.isdisjoint(_PLAIN):
            raise no_person("This request names its person twice, so it cannot be told who is asking.")
        subject = headers.get(USER_ID)
        if subject is None:
            raise no_person(
                "This request does not say who is asking. In Open WebUI, set ENABLE_FORWARD_USER_INFO_HEADERS=true; "
                "other clients send X-OpenWebUI-User-Id."
            )
        return _person(
            connection,
            subject,
            email=headers.get(USER_EMAIL),
            name=_unquoted(headers.get(USER_NAME)),
            role=headers.get(USER_ROLE),
            groups=_groups(headers),
        )

    def _from_jwt(self, connection: str, headers: Headers) -> Person:
        if USER_JWT in headers.doubled:
            raise no_person("This request carries two signed identities, so it cannot be told who is asking.")
        if headers.says(_PLAIN):
            # Open WebUI falls back to plain headers, silently, when signing fails: they prove nothing here.
            raise no_person(
                "This request carries plain identity headers, which are not trusted here. "
                "In Open WebUI, set FORWARD_USER_INFO_HEADER_JWT_SECRET to the secret that this gateway knows."
            )
        # What a token says is told the same way each time that it is shown, as long as it is believed.
        shown = connection, headers.values.get(USER_JWT), headers.values.get(GROUPS)
        told = self._told.get(shown)
        if told is not None and self._signed.claims(told.token) is told.claims:
            return told.person
        token = headers.get(USER_JWT)
        if token is None:
            raise no_person(
                "This request does not prove who is asking. In Open WebUI, set ENABLE_FORWARD_USER_INFO_HEADERS=true "
                "and FORWARD_USER_INFO_HEADER_JWT_SECRET to the secret that this gateway knows."
            )
        claims = self._signed.claims(token)
        person = _person(
            connection,
            _claim(claims, "sub"),
            email=_claim(claims, "email"),
            name=_claim(claims, "name"),
            role=_claim(claims, "role"),
            groups=_groups(headers),
        )
        if len(self._told) >= MOST_BELIEVED:
            self._told.clear()
        self._told[shown] = _Told(token, claims, person)
        return person

    def _from_session(self, connection: str, headers: Headers) -> Person:
        token = _bearer(headers)
        if token is None or not headers.doubled.isdisjoint((AUTHORIZATION, *_PLAIN)):
            raise no_person(
                "This request does not prove who is asking. In Open WebUI, set the connection's auth type to session."
            )
        if token.startswith("sk-"):
            raise no_person(
                "This request carries an API key of Open WebUI, which proves nobody here. Use a session of Open WebUI, "
                "or ask your administrator for another way."
            )
        claims = self._sessions.claims(token)
        subject = _claim(claims, "id")
        # The token names nobody but the id; the rest is taken from plain headers if they are about the same person.
        same = subject is not None and headers.get(USER_ID) == subject
        return _person(
            connection,
            subject,
            email=headers.get(USER_EMAIL) if same else None,
            name=_unquoted(headers.get(USER_NAME)) if same else None,
            role=headers.get(USER_ROLE) if same else None,
            groups=_groups(headers),
        )

    def _from_connection(self, connection: str, headers: Headers) -> Person:
        return Person(connection=connection, subject=connection, name=connection, groups=_groups(headers))


def _person(
    connection: str,
    subject: str | None,
    *,
    email: str | None,
    name: str | None,
    role: str | None,
    groups: tuple[str, ...] | None,
) -> Person:
    if subject is None or len(subject) > LONGEST or not subject.isprintable():
        raise no_person("The identity that this request carries names nobody.")
    return Person(
        connection=connection,
        subject=subject,
        email=email.lower()[:LONGEST] if email else None,
        name=name[:LONGEST] if name else None,
        role=role[:LONGEST] if role else None,
        groups=groups,
    )


def _claim(claims: dict[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a character, which nothing can keep: it says nothing.
        return None
    return value.strip() or None


def _short(headers: Headers, name: bytes) -> str | None:
    value = headers.values.get(name)
    return None if value is None else _text(value)[:LONGEST] or None


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = (headers.get(AUTHORIZATION) or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _groups(headers: Headers) -> tuple[str, ...] | None:
    """The groups that came along; None when the header is not sent at all, which says nothing about them."""
    if GROUPS not in headers.values:
        return None
    names = (unquote(part).strip() for part in (headers.get(GROUPS) or "").split(","))
    return tuple(name[:LONGEST] for name in names if name)[:MOST_GROUPS]


def _unquoted(value: str | None) -> str | None:
    # `quote(name, safe=' ')` on the other side: a plus is a plus, so not unquote_plus.
    return None if value is None else unquote(value).strip() or None


def _text(value: bytes) -> str:
    try:
        return value.decode().strip()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
