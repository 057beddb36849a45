"""The start-up output: what is pasted from it works, and keys are shown when they were made, never again."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from faregate.banner import banner
from faregate.keys import ADMIN, CONNECTION, Keys
from faregate.settings import Connection, Settings

MODES = {
    "headers": {},
    "jwt": {"openwebui_jwt_secrets": "signing-secret-of-the-tests"},
    "session": {"webui_secret_key": "session-secret-of-the-tests"},
    "none": {},
}
BOTH = frozenset({ADMIN, CONNECTION})


def shown(
    mode: str,
    *,
    made: frozenset[str] = BOTH,
    new: frozenset[str] = BOTH,
    file: Path = Path("data/keys.env"),
    upstream: str = "https://openrouter.ai/api/v1",
    simulated: bool = False,
    database: str = "postgresql://me:hidden@db:5432/x",
    **more: object,
) -> str:
    """The output of a start in a mode."""
    settings = Settings(_env_file=None, identity=mode, **MODES[mode], **more)  # type: ignore[arg-type, call-arg]
    connections = (Connection("openwebui", SecretStr("connection-key-of-the-tests")),)
    keys = Keys(SecretStr("admin-key-of-the-tests"), connections, file, made, new)
    return banner(
        settings,
        keys,
        port=8080,
        database=database,
        upstream=upstream,
        simulated=simulated,
        models=300,
        models_failure=None,
        unlimited=True,
    )


def pasted(output: str) -> dict[str, str]:
    """The settings for Open WebUI, as a shell reads them."""
    lines = re.findall(r"^  ([A-Z_]+=.*)$", output, re.MULTILINE)
    return dict(word.split("=", 1) for line in lines for word in shlex.split(line))


@pytest.mark.parametrize("new", [BOTH, frozenset()])
@pytest.mark.parametrize("mode", MODES)
def test_what_is_pasted_is_whole_in_every_mode(mode: str, new: frozenset[str]) -> None:
    found = pasted(shown(mode, new=new))
    key = "connection-key-of-the-tests" if new else "YOUR-CONNECTION-KEY"
    (config,) = json.loads(found["OPENAI_API_CONFIGS"]).values()
    assert found["OPENAI_API_BASE_URLS"] == "http://127.0.0.1:8080/v1"
    assert found["ENABLE_FORWARD_USER_INFO_HEADERS"] == found["BYPASS_MODEL_ACCESS_CONTROL"] == "true"
    assert config["headers"]["X-Faregate-Groups"] == "{{USER_GROUPS}}"
    if mode == "session":
        assert (config["auth_type"], config["headers"]["X-Faregate-Key"]) == ("session", key)
        assert "OPENAI_API_KEYS" not in found
    else:
        assert (config["auth_type"], found["OPENAI_API_KEYS"]) == ("bearer", key)
    assert ("FORWARD_USER_INFO_HEADER_JWT_SECRET" in found) == (mode == "jwt")


@pytest.mark.parametrize("mode", MODES)
def test_a_key_is_shown_by_the_start_that_made_it_and_by_no_other(mode: str) -> None:
    assert "connection-key-of-the-tests" in shown(mode)
    assert "admin-key-of-the-tests" in shown(mode)
    for later in (shown(mode, new=frozenset()), shown(mode, made=frozenset(), new=frozenset())):
        assert "of-the-tests" not in later


@pytest.mark.parametrize("mode", MODES)
def test_no_configured_secret_is_ever_shown(mode: str) -> None:
    output = shown(mode)
    assert "secret-of-the-tests" not in output
    assert "hidden" not in output
    assert "postgresql://me:***@db:5432/x" in output


def test_a_key_is_found_again_in_a_folder_with_a_space(tmp_path: Path) -> None:
    file = tmp_path / "my data" / "keys.env"
    file.parent.mkdir()
    file.write_text(f"{ADMIN}=the-admin\n{CONNECTION}=the-connection\n")
    output = shown("headers", new=frozenset(), file=file)
    for name, found in ((ADMIN, "the-admin"), (CONNECTION, "the-connection")):
        (command,) = set(re.findall(rf"\$\(sed -n s/\^{name}=.*?\)", output))
        assert subprocess.run(["sh", "-c", f'printf %s "{command}"'], capture_output=True, text=True).stdout == found


def test_an_unlimited_default_is_said_so() -> None:
    assert "The default policy has no limits" in shown("headers")


def test_a_host_of_its_own_is_the_one_to_paste() -> None:
    assert pasted(shown("headers", host="10.0.0.5"))["OPENAI_API_BASE_URLS"] == "http://10.0.0.5:8080/v1"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:hidden@cache:6379/0", "redis://:***@cache:6379/0"),
        ("rediss://me:hidden@cache/1?ssl_keyfile=hidden", "rediss://me:***@cache/1"),
        ("redis+sentinel://:hidden@one:1,two:2,[::1]:3/main/0", "redis+sentinel://:***@one:1,two:2,[::1]:3/main/0"),
        ("unix:///run/redis.sock?password=hidden", "unix:///run/redis.sock"),
    ],
)
def test_a_shared_ledger_is_named_without_its_password(url: str, expected: str) -> None:
    output = shown("headers", redis_url=url)
    assert f"ledger     {expected} (shared" in output
    assert "hidden" not in output


@pytest.mark.parametrize(("workers", "bills"), [(1, "http://127.0.0.1:8080"), (4, "http://127.0.0.1:9999")])
def test_the_simulators_bills_are_where_they_can_be_seen(workers: int, bills: str) -> None:
    output = shown(
        "headers",
        workers=workers,
        redis_url="redis://cache",
        upstream="http://127.0.0.1:9999/api/v1",
        simulated=True,
    )
    assert f"its bills: {bills}/_simulator/bills" in output
    assert ("4 processes" in output) == (workers == 4)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://db/x", "postgresql://db/x"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("postgresql:///x?host=/run/postgresql&password=hid@den", "postgresql:///x"),
        ("sqlite:////data/some@where.db", "sqlite:////data/some@where.db"),
    ],
)
def test_where_there_is_no_password_the_database_is_named_as_it_is(url: str, expected: str) -> None:
    assert f"  database   {expected}\n" in shown("headers", database=url)


@pytest.mark.parametrize("password", ["hid/den", "hid?den", "hid#den", "hid@den", "hid:den", "hid[den", "hid//den@:@"])
def test_a_database_is_named_without_its_password_even_if_nobody_has_quoted_it(password: str) -> None:
    output = shown("headers", database=f"postgresql://me:{password}@db:5432/x?sslkey=hidden")
    assert "postgresql://me:***@db:5432/x\n" in output
