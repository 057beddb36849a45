"""Requests as Open WebUI 0.12 sends them, header by header and body by body."""

import json
import string
import time
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import jwt

MODEL = "openai/gpt-4o-mini"


@dataclass(frozen=True)
class Person:
    """Somebody with an account in Open WebUI."""

    id: str
    email: str
    name: str
    role: str = "user"
    groups: tuple[str, ...] = ()


ZOE = Person("eff4a134-5b1c-4b7e-9d0f-0c1d2e3f4a5b", "Zoe@Example.com", "Zoë Müller 山田", groups=("students",))
AMINA = Person(
    "3b9e7c10-77aa-4a55-8a35-5f3a1c9d2b6e",
    "amina@example.com",
    "أمينة + الصديق 100%",
    groups=("Research & Développement", "students"),
)
BJORN = Person("9f1d2c3b-1111-4222-8333-444455556666", "bjorn@example.com", "Bjørn Дмитриев", role="admin")
PEOPLE = (ZOE, AMINA, BJORN)


def somebody(*groups: str) -> Person:
    """A person whom nobody has met."""
    name = uuid.uuid4().hex[:8]
    return Person(name, f"{name}@example.com", name, groups=groups)


def plain_headers(person: Person, key: str, *, chat_id: str | None = None, task: str = "") -> dict[str, str]:
    """The mode `headers`. Without a `chat_id`, a call of Open WebUI's own API."""
    who = {
        "X-OpenWebUI-User-Name": quote(person.name.strip(), safe=" "),
        "X-OpenWebUI-User-Id": person.id,
        "X-OpenWebUI-User-Email": person.email.strip(),
        "X-OpenWebUI-User-Role": person.role,
    }
    return _headers(who, person, f"Bearer {key}", chat_id, task)


def signed_headers(
    person: Person, key: str, secret: str, *, chat_id: str | None = None, task: str = "", lifetime: int = 300
) -> dict[str, str]:
    """The mode `jwt`; `lifetime` in seconds."""
    now = int(time.time())
    claims = {
        "sub": person.id,
        "email": person.email,
        "name": person.name,
        "role": person.role,
        "iss": "open-webui",
        "iat": now,
        "exp": now + lifetime,
    }
    return _headers(
        {"X-OpenWebUI-User-Jwt": jwt.encode(claims, secret, algorithm="HS256")}, person, f"Bearer {key}", chat_id, task
    )


def session_headers(person: Person, key: str, secret: str, *, chat_id: str | None = None) -> dict[str, str]:
    """The mode `session`: the person's own token, the connection's key beside it."""
    token = jwt.encode({"id": person.id, "exp": int(time.time()) + 3600, "jti": "1"}, secret, algorithm="HS256")
    plain = plain_headers(person, "", chat_id=chat_id)
    return plain | {"Authorization": f"Bearer {token}", "X-Faregate-Key": key}


def user_turn(text: str, *, model: str = MODEL, stream: bool = True, **more: Any) -> dict[str, Any]:
    """What a person's message in the browser becomes: with the built-in tools, 21 kB of them."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    return {"stream": stream, "model": model, "messages": messages, "tools": TOOLS, **more}


def title_task(text: str, *, model: str = MODEL) -> dict[str, Any]:
    """What Open WebUI asks beside the first turn of a chat, to name it."""
    prompt = f"### Task:\nGenerate a concise, 3-5 word title with an emoji.\n### Chat History:\nUSER: {text}"
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": False, "max_tokens": 1000}


def _headers(who: dict[str, str], person: Person, authorization: str, chat_id: str | None, task: str) -> dict[str, str]:
    headers = {
        "Accept": "*/*",
        "Accept-Encoding": "gzip, deflate, br",
        "User-Agent": "Python/3.11 aiohttp/3.14.5",
        "Content-Type": "application/json",
        "Authorization": authorization,
        "X-OpenWebUI-Auth-Type": "jwt" if chat_id else "api_key",
        **who,
        # Templates that have nothing to say leave an empty value, not a missing header.
        "X-Faregate-Task": task,
        "X-Faregate-Groups": quote(",".join(person.groups), safe=string.punctuation + " \t"),
    }
    if chat_id is not None:
        headers["X-OpenWebUI-Chat-Id"] = chat_id
    return headers


def _tool(number: int) -> dict[str, Any]:
    about = (
        "Search, read or change what belongs to the person: notes, memories, chats, channels, files, knowledge bases, "
        "calendars and automations. Use this only when the conversation asks for it, say where what was found is from, "
        "and what was not found."
    )
    properties = {
        "query": {"type": "string", "description": "What to look for, in the words of the person."},
        "count": {"type": "integer", "description": "The maximum number of results to return.", "default": 5},
        "start_timestamp": {"type": "integer", "description": "Only what is newer than this, in Unix time."},
    }
    parameters = {"type": "object", "properties": properties, "required": ["query"]}
    return {
        "type": "function",
        "function": {"name": f"builtin_tool_{number}", "description": about, "parameters": parameters},
    }


TOOLS = [_tool(number) for number in range(30)]
assert 20_500 < len(json.dumps(TOOLS)) < 22_000
