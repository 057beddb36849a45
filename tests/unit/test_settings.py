"""The settings: what is accepted, and the one sentence that names what is not."""

import os
from datetime import datetime
from pathlib import Path

import pytest

from faregate.keys import load_keys
from faregate.settings import OnOutage, Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without settings, in a folder without a `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PORT": "x"}, "PORT should be a valid integer."),
        ({"PORT": "70000"}, "PORT should be less than or equal to 65535."),
        ({"IDENTITY": "trust"}, "IDENTITY should be 'headers', 'jwt', 'session' or 'none'."),
        ({"MAX_IN_FLIGHT": "0"}, "MAX_IN_FLIGHT should be greater than or equal to 1."),
        ({"TIMEZONE": "Mars/Olympus"}, "TIMEZONE should be an IANA time zone such as Europe/Amsterdam or UTC."),
        ({"TIMEZONE": "../../etc/passwd"}, "TIMEZONE should be"),
        ({"IDENTITY": "jwt"}, "OPENWEBUI_JWT_SECRETS should hold"),
        ({"IDENTITY": "jwt", "OPENWEBUI_JWT_SECRETS": " , "}, "OPENWEBUI_JWT_SECRETS should hold"),
        ({"IDENTITY": "session"}, "WEBUI_SECRET_KEY should hold"),
        ({"WORKERS": "2"}, "WORKERS should be 1: the in-process ledger counts in one process"),
        ({"REDIS_URL": "http://:topsecret@localhost"}, "REDIS_URL should be redis://host:6379/0"),
        ({"REDIS_URL": "topsecret"}, "REDIS_URL should be"),
        ({"REDIS_URL": "redis://"}, "REDIS_URL should be"),
        ({"REDIS_URL": "unix://topsecret"}, "REDIS_URL should be"),
        ({"REDIS_URL": "redis+socket://:topsecret@localhost"}, "REDIS_URL should be"),
        ({"REDIS_URL": "redis://:topsecret@localhost/0 "}, "REDIS_URL should be"),
        ({"REDIS_PREFIX": "{topsecret}"}, "REDIS_PREFIX should be 1 to 64 letters, digits or .:_-"),
        ({"REDIS_PREFIX": "a b"}, "REDIS_PREFIX should be"),
        ({"REDIS_PREFIX": "x" * 65}, "REDIS_PREFIX should be"),
        ({"REDIS_CONNECT_TIMEOUT": "0"}, "REDIS_CONNECT_TIMEOUT should be greater than 0."),
        ({"REDIS_CALL_TIMEOUT": "60"}, "REDIS_CALL_TIMEOUT should be less than or equal to 10."),
        ({"LEDGER_ON_OUTAGE": "ajar"}, "LEDGER_ON_OUTAGE should be 'closed' or 'open'."),
        ({"DATABASE_URL": "mysql://u:topsecret@h/d"}, "DATABASE_URL should be sqlite:///"),
        ({"OPENROUTER_BASE_URL": "http://127.0.0.1:9"}, "OPENROUTER_API_KEY should hold"),
        ({"OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": "ftp://x"}, "OPENROUTER_BASE_URL should be"),
        ({"OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": "http://x:99999"}, "OPENROUTER_BASE_URL should be"),
        ({"OPENROUTER_API_KEY": "topsecret\nx: y"}, "OPENROUTER_API_KEY should be printable ASCII"),
        ({"OPENROUTER_MANAGEMENT_KEY": "topsecret key"}, "OPENROUTER_MANAGEMENT_KEY should be printable ASCII"),
        ({"OPENROUTER_X_TITLE": "a\r\nb"}, "OPENROUTER_X_TITLE should be printable ASCII"),
        ({"GATEWAY_API_KEYS": "a:topsecret,,b"}, "GATEWAY_API_KEYS should be keys"),
        ({"GATEWAY_API_KEYS": "a:topsecret,b:topsecret"}, "GATEWAY_API_KEYS should hold each name and key once"),
        ({"GATEWAY_API_KEYS": "a:one,a:two"}, "GATEWAY_API_KEYS should hold each name and key once"),
        ({"SHUTDOWN_GRACE": "-1"}, "SHUTDOWN_GRACE should be greater than 0."),
        ({"SHUTDOWN_GRACE": "inf"}, "SHUTDOWN_GRACE should be"),
        ({"RECONCILE_DELAYS": "2,x"}, "RECONCILE_DELAYS should be seconds"),
        ({"LOG_MODE": "everything"}, "LOG_MODE should be"),
        ({"CLIENT_LEFT": "abort"}, "CLIENT_LEFT should be 'auto' or 'drain'."),
        ({"USAGE_RETENTION": "13"}, "USAGE_RETENTION should be forever, or 31 days or more such as 400 days"),
        ({"USAGE_RETENTION": "30 days"}, "USAGE_RETENTION should be forever, or 31 days"),
        ({"USAGE_RETENTION": "0 months"}, "USAGE_RETENTION should be"),
        ({"USAGE_RETENTION": "-1 month"}, "USAGE_RETENTION should be"),
        ({"USAGE_RETENTION": "1.5 months"}, "USAGE_RETENTION should be"),
    ],
)
def test_a_wrong_setting_is_named_in_one_sentence_that_shows_no_secret(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as wrong:
        load_settings()
    assert str(wrong.value).startswith(sentence)
    assert "\n" not in str(wrong.value)
    assert "topsecret" not in str(wrong.value)


@pytest.mark.parametrize(
    ("retention", "now", "before"),
    [
        ("", "2026-11-23T13:00:00+00:00", None),
        ("Forever", "2026-11-23T13:00:00+00:00", None),
        ("400 days", "2026-11-23T13:00:00+00:00", "2025-10-19T13:00:00+00:00"),
        ("31 day", "2026-11-23T13:00:00+00:00", "2026-10-23T13:00:00+00:00"),
        (" 13  Months ", "2026-11-23T13:00:00+00:00", "2025-10-23T13:00:00+00:00"),
        ("1 month", "2026-01-31T13:00:00+00:00", "2025-12-31T13:00:00+00:00"),
        ("1 month", "2026-03-31T13:00:00+00:00", "2026-02-28T13:00:00+00:00"),
        ("9999 months", "2026-03-31T13:00:00+00:00", "1192-12-31T13:00:00+00:00"),
    ],
)
def test_retention_says_before_when_records_are_dropped(
    retention: str, now: str, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USAGE_RETENTION", retention)
    kept_since = load_settings().kept_since(datetime.fromisoformat(now).timestamp())
    assert kept_since == (None if before is None else datetime.fromisoformat(before).timestamp())


def test_env_files_are_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PORT=1234\nTIMEZONE=Asia/Bangkok\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "4321")
    settings = load_settings()
    assert (settings.port, settings.timezone) == (4321, "Asia/Bangkok")


def test_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("GATEWAY_API_KEYS", "")
    settings = load_settings()
    assert settings.port == 8080
    assert settings.connections() == ()


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "rediss://name:word@cache.example.com:6380/3",
        "unix:///run/redis/redis.sock?db=1",
        "unix://name:word@/run/redis/redis.sock",
        "valkey://[::1]:6379",
        "valkeys://cache.example.com",
        "redis+sentinel://one:26379,two:26379/main/0",
        "rediss+sentinel://one:26379/main",
        "redis+cluster://one:7000,two:7000",
        "rediss+cluster://one:7000",
        "valkey+sentinel://one:26379/main",
    ],
)
def test_processes_may_be_many_where_they_share_a_ledger(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("WORKERS", "4")
    monkeypatch.setenv("LEDGER_ON_OUTAGE", "Open")
    settings = load_settings()
    assert (settings.workers, settings.ledger_on_outage) == (4, OnOutage.OPEN)
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == url


def test_connections_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_API_KEYS", "school:key-one, key-two ,lab:key:three")
    found = [(c.name, c.key.get_secret_value()) for c in load_settings().connections()]
    assert found == [("school", "key-one"), ("connection-2", "key-two"), ("lab", "key:three")]


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("OPENROUTER_API_KEY", "ADMIN_API_KEY", "GATEWAY_API_KEYS", "OPENWEBUI_JWT_SECRETS", "WEBUI_SECRET_KEY")
    for name in secrets:
        monkeypatch.setenv(name, "topsecret")
    monkeypatch.setenv("REDIS_URL", "redis://:topsecret@localhost")
    assert "topsecret" not in repr(load_settings())


def test_keys_are_made_once_and_only_those_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    first = load_keys(load_settings())
    assert first.new == first.made_here == {"ADMIN_API_KEY", "GATEWAY_API_KEY"}
    assert first.file.stat().st_mode & 0o777 == 0o600
    again = load_keys(load_settings())
    assert again.new == frozenset()
    assert (again.admin, again.connections) == (first.admin, first.connections)
    monkeypatch.setenv("ADMIN_API_KEY", "configured")
    configured = load_keys(load_settings())
    assert configured.admin.get_secret_value() == "configured"
    assert configured.connections == first.connections


def test_keys_that_others_can_read_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    file = load_keys(load_settings()).file
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_keys(load_settings())


def test_a_data_dir_that_cannot_be_written_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "file"))
    assert os.path.isfile(os.environ["DATA_DIR"])
    with pytest.raises(SettingsError, match="DATA_DIR should be"):
        load_keys(load_settings())
