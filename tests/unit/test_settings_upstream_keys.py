"""OPENROUTER_API_KEYS: what it may be, what it means, and that no mistake in it shows a key."""

from pathlib import Path

import pytest

from faregate.settings import SettingsError, load_settings

SECRET = "sk-or-v1-verysecret"


@pytest.fixture(autouse=True)
def nothing_else_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENROUTER_API_KEY", "OPENROUTER_API_KEYS", "OPENROUTER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def keys(monkeypatch: pytest.MonkeyPatch, value: str) -> list[tuple[str, str, int]]:
    monkeypatch.setenv("OPENROUTER_API_KEYS", value)
    return [(key.name, key.key.get_secret_value(), key.weight) for key in load_settings().upstream_keys()]


def test_names_and_weights_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys(monkeypatch, "main=sk-or-a@3, sk-or-b , spare=sk-or-c") == [
        ("main", "sk-or-a", 3),
        ("key-7f42b69d", "sk-or-b", 1),
        ("spare", "sk-or-c", 1),
    ]


def test_a_name_that_was_not_given_stays_when_the_order_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = keys(monkeypatch, "sk-or-a,sk-or-b")
    assert keys(monkeypatch, "sk-or-b,sk-or-a") == [second, first]


def test_a_single_key_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", SECRET)
    assert [(key.name, key.weight) for key in load_settings().upstream_keys()] == [("default", 1)]


def test_without_any_there_is_none() -> None:
    assert load_settings().upstream_keys() == ()


def test_another_api_is_reached_with_several_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_BASE_URL", "http://127.0.0.1:9/api/v1")
    assert len(keys(monkeypatch, "sk-or-a,sk-or-b")) == 2


@pytest.mark.parametrize(
    ("value", "entry"),
    [
        (f"{SECRET},", "entry 2 is not"),
        (f"{SECRET}@0", "entry 1 is not"),
        (f"{SECRET}@x", "entry 1 is not"),
        (f"a name={SECRET}", "entry 1 is not"),
        # The name would be shown, and it looks like a key.
        (f"{SECRET}=main", "entry 1 is not"),
        (f"{SECRET},other={SECRET}", "entry 2 repeats one"),
        (f"a={SECRET},a=sk-or-other", "entry 2 repeats one"),
        (f"{SECRET}\nx: y", "entry 1 is not"),
    ],
)
def test_a_mistake_is_told_by_its_place_and_not_by_the_key(
    monkeypatch: pytest.MonkeyPatch, value: str, entry: str
) -> None:
    with pytest.raises(SettingsError, match=f"^OPENROUTER_API_KEYS should .*{entry}") as error:
        keys(monkeypatch, value)
    assert "secret" not in str(error.value)


def test_both_settings_at_once_are_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", SECRET)
    with pytest.raises(SettingsError, match="unset one of the two"):
        keys(monkeypatch, "sk-or-a")


@pytest.mark.parametrize("value", ["-1", "601", "soon"])
def test_the_time_in_line_has_bounds(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("UPSTREAM_QUEUE_SECONDS", value)
    with pytest.raises(SettingsError, match=r"^UPSTREAM_QUEUE_SECONDS "):
        load_settings()


def test_nobody_has_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_QUEUE_SECONDS", "0")
    assert load_settings().upstream_queue_seconds == 0
