"""What the start says: what is used for what, where it is, and, the first time, the keys with what to do with them."""

import json
import re
import shlex

from faregate import __version__
from faregate.keys import ADMIN, CONNECTION, Keys
from faregate.settings import IdentityMode, Settings

_TEMPLATES = {"X-Faregate-Task": "{{TASK}}", "X-Faregate-Groups": "{{USER_GROUPS}}"}
_KEY = "YOUR-CONNECTION-KEY"
_SIGNING = "YOUR-SIGNING-SECRET"
# The database takes a password that nobody has quoted, so it may have anything in it: it reaches to the last @.
_URL = re.compile(
    r"(?P<scheme>[^:/?#]+://)(?:(?P<name>[^:/?#@]*)(?P<password>:.*)?@)?(?P<where>[^?#]*)([?#].*)?", re.DOTALL
)
_EXAMPLE_MODEL = "openai/gpt-4o-mini"


def banner(
    settings: Settings,
    keys: Keys,
    *,
    port: int,
    database: str,
    upstream: str,
    simulated: bool,
    models: int,
    models_failure: str | None,
    unlimited: bool,
) -> str:
    """The start-up output. Shows a key only if this very start made it."""
    base = f"http://{_reachable(settings.host)}:{port}"
    prices = f"{models} models" if models else "NO MODELS YET"
    lines = [
        f"Faregate {__version__}",
        f"  database   {_without_password(database)}",
        f"  ledger     {_ledger(settings)}",
        f"  upstream   {'BUILT-IN SIMULATOR, ' if simulated else ''}{upstream} ({prices})",
        f"  identity   {_identity(settings.identity)}",
        f"  API        {base}/v1   admin {base}/admin   health {base}/readyz",
    ]
    if settings.workers > 1:
        lines.append(f"  workers    {settings.workers} processes on this port, each a node of its own")
    if models_failure is not None:
        lines.append(f"  ! The model list could not be fetched: {models_failure}. It is tried again in the background.")
    if simulated:
        # Only the process that has it shows its bills: with more than one that is none of those on the port.
        bills = base if settings.workers == 1 else upstream.removesuffix("/api/v1")
        lines += [
            "",
            "  *** OPENROUTER_API_KEY is not set: every answer comes from the SIMULATOR and costs nothing ***",
            f"  *** its bills: {bills}/_simulator/bills ***",
        ]
    if unlimited:
        lines += ["", "  ! The default policy has no limits: everybody may spend without bound. See docs/policies.md."]
    lines += ["", *_open_webui(settings, keys, base), "", *_try_it(settings, keys, base)]
    return "\n".join(lines)


def _open_webui(settings: Settings, keys: Keys, base: str) -> list[str]:
    session = settings.identity is IdentityMode.SESSION
    headers = dict(_TEMPLATES)
    if session:
        headers = {"X-Faregate-Key": _connection_key(keys), **headers}
    config = {"0": {"enable": True, "auth_type": "session" if session else "bearer", "headers": headers}}
    lines = [
        "Open WebUI settings (from a container or another machine: with this machine's address):",
        "  ENABLE_FORWARD_USER_INFO_HEADERS=true",
        f"  OPENAI_API_BASE_URLS={base}/v1",
    ]
    if not session:
        lines.append(f"  OPENAI_API_KEYS={_connection_key(keys)}")
    if settings.identity is IdentityMode.JWT:
        lines.append(f"  FORWARD_USER_INFO_HEADER_JWT_SECRET={_SIGNING}")
    lines += [f"  OPENAI_API_CONFIGS='{json.dumps(config)}'", "  BYPASS_MODEL_ACCESS_CONTROL=true"]
    if CONNECTION not in keys.new:
        made = CONNECTION in keys.made_here
        lines.append(f"  where {_KEY} is {f'{CONNECTION} in {keys.file}' if made else 'one of GATEWAY_API_KEYS'}")
    if settings.identity is IdentityMode.JWT:
        lines.append(f"  where {_SIGNING} is one of OPENWEBUI_JWT_SECRETS")
    return lines


def _try_it(settings: Settings, keys: Keys, base: str) -> list[str]:
    made = bool(keys.made_here - keys.new)
    lines = [f"Keys that are not configured were made at the first start and are in {keys.file}."] if made else []
    if keys.new:
        lines += [f"These keys were made now, are kept in {keys.file}, and are not shown again:"]
        if ADMIN in keys.new:
            lines.append(f"  admin key        {keys.admin.get_secret_value()}")
        if CONNECTION in keys.new:
            lines.append(f"  connection key   {keys.connections[0].key.get_secret_value()}")
        lines.append("")
    if settings.identity in (IdentityMode.HEADERS, IdentityMode.NONE):
        body = {"model": _EXAMPLE_MODEL, "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}
        person = ""
        if settings.identity is IdentityMode.HEADERS:
            person = "    -H 'X-OpenWebUI-User-Id: demo' -H 'X-OpenWebUI-User-Email: demo@example.com' \\\n"
        lines += [
            "Try it:",
            f"  curl -N {base}/v1/chat/completions \\\n"
            f'    -H "Authorization: Bearer {_shell_key(keys, CONNECTION)}" \\\n'
            f"{person}"
            f"    -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        ]
    lines.append(f'  curl -H "x-admin-key: {_shell_key(keys, ADMIN)}" "{base}/admin/usage?limit=5"')
    return lines


def _connection_key(keys: Keys) -> str:
    return keys.connections[0].key.get_secret_value() if CONNECTION in keys.new else _KEY


def _shell_key(keys: Keys, name: str) -> str:
    """A key for a shell command in double quotes: itself the first time, later where to find it."""
    if name in keys.new:
        key = keys.admin if name == ADMIN else keys.connections[0].key
        return key.get_secret_value()
    if name in keys.made_here:
        return f"$(sed -n s/^{name}=//p {shlex.quote(str(keys.file))})"
    return "$ADMIN_API_KEY" if name == ADMIN else "$CONNECTION_KEY"


def _ledger(settings: Settings) -> str:
    if settings.redis_url is None:
        return "in this process (one process, no Redis)"
    return f"{_without_password(settings.redis_url.get_secret_value())} (shared by all nodes that have it)"


def _identity(mode: IdentityMode) -> str:
    return {
        IdentityMode.HEADERS: "headers (believed from whoever has a connection key)",
        IdentityMode.JWT: "jwt (signed by Open WebUI)",
        IdentityMode.SESSION: "session (the person's own Open WebUI token)",
        IdentityMode.NONE: "none (every connection is one person)",
    }[mode]


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _without_password(url: str) -> str:
    """Without its options too, which may hold one. There may be several hosts."""
    if url.startswith("sqlite"):
        return url
    found = _URL.fullmatch(url)
    if found is None:
        return "***"
    who = "" if found["name"] is None else f"{found['name']}{':***' if found['password'] else ''}@"
    return f"{found['scheme']}{who}{found['where']}"
