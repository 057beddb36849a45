"""Which proxy is on the way to upstream, from the variables that curl reads too."""

import base64
from pathlib import Path

import pytest

from faregate.proxies import goes_direct, parse_proxy
from faregate.settings import Settings, SettingsError, load_settings

NAMES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without settings, in a folder without a `.env`."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-v1-test")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("openrouter.ai", "", False),
        ("openrouter.ai", "*", True),
        ("openrouter.ai", "example.com, *", True),
        ("openrouter.ai", "openrouter.ai", True),
        ("OpenRouter.AI", "openrouter.ai", True),
        ("openrouter.ai.", "openrouter.ai", True),
        ("openrouter.ai", "OPENROUTER.ai.", True),
        ("openrouter.ai", ".openrouter.ai", True),
        ("api.openrouter.ai", "openrouter.ai", True),
        ("api.openrouter.ai", ".openrouter.ai", True),
        ("api.openrouter.ai", "*.openrouter.ai", True),
        ("notopenrouter.ai", "openrouter.ai", False),
        ("openrouter.ai", "api.openrouter.ai", False),
        ("openrouter.ai.evil.com", "openrouter.ai", False),
        ("openrouter.ai", "a.com,openrouter.ai", True),
        ("openrouter.ai", "a.com openrouter.ai", True),
        ("openrouter.ai", " a.com ,  openrouter.ai , ", True),
        ("openrouter.ai", ",,.,*.", False),
        ("openrouter.ai", "openrouter.ai:443", True),
        ("openrouter.ai", "openrouter.ai:8443", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3:80", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.9.9.9/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/99,nonsense/8", False),
        ("10.1.2.3", "2001:db8::/32", False),
        ("10.1.2.3", "2.3", False),
        ("ten.example", "10.0.0.0/8", False),
        ("2001:db8::1", "2001:db8:0:0::1", True),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("2001:db8::1", "[2001:db8::1]:443", True),
        ("2001:db8::1", "[2001:db8::1]:80", False),
        ("2001:db8::1", "2001:db8::/32", True),
        ("2001:db9::1", "2001:db8::/32", False),
        ("localhost", "", True),
        ("upstream.localhost", "", True),
        ("127.0.0.1", "", True),
        ("127.9.9.9", "", True),
        ("::1", "", True),
    ],
)
def test_no_proxy_says_what_is_reached_directly(host: str, no_proxy: str, direct: bool) -> None:
    assert goes_direct(host, 443, no_proxy) is direct


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://proxy.example/", "http://proxy.example:80"),
        ("https://proxy.example", "https://proxy.example:443"),
        ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
        ("http://user:topsecret@proxy.example:3128", "http://proxy.example:3128"),
    ],
)
def test_a_proxy_is_a_host_a_port_and_how_to_speak_to_it(url: str, shown: str) -> None:
    assert str(parse_proxy(url)) == shown


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [("user:pass", "user:pass"), ("user", "user:"), ("user:", "user:"), ("d%5Cu:p%40s%3A%C3%A9", "d\\u:p@s:é")],
)
def test_user_and_password_are_sent_as_basic_credentials_and_not_shown(userinfo: str, credentials: str) -> None:
    proxy = parse_proxy(f"http://{userinfo}@proxy.example:3128")
    assert proxy.authorization == b"Basic " + base64.b64encode(credentials.encode())
    assert proxy.authorization.decode() not in f"{proxy} {proxy!r}"


def test_without_a_user_there_are_no_credentials() -> None:
    assert parse_proxy("http://proxy.example:3128").authorization is None


@pytest.mark.parametrize(
    "url",
    [
        "socks5://:topsecret@proxy:1080",
        "http://:topsecret@",
        "http://u:topsecret@proxy:0",
        "http://u:topsecret@proxy:99999",
        "http://u:topsecret@[proxy",
        "http://u:topsecret@pro xy",
        "://topsecret",
    ],
)
def test_what_is_no_proxy_is_told_without_repeating_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(SettingsError, match=r"^HTTPS_PROXY should be an http:// or https:// URL") as wrong:
        load_settings()
    assert "topsecret" not in str(wrong.value)
    assert "NO_PROXY" in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "variables", "proxy"),
    [
        ("https://up.test", {}, None),
        ("https://up.test", {"HTTPS_PROXY": "http://upper:1"}, "http://upper:1"),
        ("https://up.test", {"https_proxy": "http://lower:1"}, "http://lower:1"),
        ("https://up.test", {"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:1"}, "http://lower:1"),
        ("https://up.test", {"HTTPS_PROXY": "http://upper:1", "https_proxy": "http://lower:1"}, "http://lower:1"),
        ("https://up.test", {"HTTPS_PROXY": "http://upper:1", "https_proxy": ""}, "http://upper:1"),
        ("https://up.test", {"HTTPS_PROXY": "http://own:1", "ALL_PROXY": "http://all:1"}, "http://own:1"),
        ("https://up.test", {"ALL_PROXY": "http://all:1"}, "http://all:1"),
        ("https://up.test", {"all_proxy": "http://all:1"}, "http://all:1"),
        ("https://up.test", {"http_proxy": "http://plain:1"}, None),
        ("https://up.test", {"HTTPS_PROXY": "http://own:1", "NO_PROXY": "up.test"}, None),
        ("https://up.test", {"HTTPS_PROXY": "http://own:1", "no_proxy": ".test"}, None),
        ("https://up.test:8443", {"HTTPS_PROXY": "http://own:1", "NO_PROXY": "up.test:443"}, "http://own:1"),
        ("https://up.test", {"HTTPS_PROXY": "http://own:1", "NO_PROXY": "up.test:443"}, None),
        ("https://up.test", {"HTTPS_PROXY": "http://own:1", "NO_PROXY": "*", "no_proxy": "a.com"}, "http://own:1"),
        ("https://127.0.0.1:9", {"HTTPS_PROXY": "http://own:1"}, None),
        ("http://up.test", {"HTTPS_PROXY": "http://own:1"}, None),
        ("http://up.test", {"http_proxy": "http://plain:1"}, "http://plain:1"),
        ("http://up.test", {"HTTP_PROXY": "http://anybody:1"}, None),
        ("http://up.test", {"HTTP_PROXY": "http://anybody:1", "ALL_PROXY": "http://all:1"}, "http://all:1"),
        ("https://up.test", {"ALL_PROXY": "socks5://s:1", "HTTPS_PROXY": "http://own:1"}, "http://own:1"),
        ("https://up.test", {"ALL_PROXY": "socks5://s:1", "NO_PROXY": "up.test"}, None),
    ],
)
def test_the_variables_are_read_as_curl_reads_them(
    monkeypatch: pytest.MonkeyPatch, url: str, variables: dict[str, str], proxy: str | None
) -> None:
    monkeypatch.setenv("OPENROUTER_BASE_URL", url)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = load_settings().proxy_for(url)
    assert (None if found is None else str(found)) == proxy


def test_the_file_says_it_in_upper_case_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("HTTPS_PROXY=http://file:1\nHTTP_PROXY=http://plain-file:1\n")
    assert str(load_settings().proxy_for("https://up.test")) == "http://file:1"
    assert str(load_settings().proxy_for("http://up.test")) == "http://plain-file:1"
    monkeypatch.setenv("https_proxy", "http://environment:1")
    assert str(load_settings().proxy_for("https://up.test")) == "http://environment:1"


def test_a_proxy_that_cannot_be_used_is_no_matter_to_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY")
    monkeypatch.setenv("ALL_PROXY", "socks5://s:1")
    assert load_settings().proxy_for("http://127.0.0.1:8081/api/v1") is None


def test_a_proxy_never_shows_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES[:3]:
        monkeypatch.setenv(name, "http://u:topsecret@proxy:1")
    assert "topsecret" not in repr(load_settings())
