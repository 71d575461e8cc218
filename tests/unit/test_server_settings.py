"""Who may be served, and by which keys."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from agent.exceptions import SettingsError
from server.auth import Keys
from server.settings import LimitSettings, RaySettings, ServerSettings, is_loopback, require_keys_in_public

KEY = "a-key-of-enough-characters"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LOCALHOST", "::1", "[::1]"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    require_keys_in_public(ServerSettings(host=host), has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_any_other_host_without_keys_is_refused_with_what_to_do(host: str) -> None:
    with pytest.raises(SettingsError, match="REWRIGHT_API_KEYS"):
        require_keys_in_public(ServerSettings(host=host), has_keys=False)
    require_keys_in_public(ServerSettings(host=host), has_keys=True)


def test_keys_are_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", f" {KEY} ,, {KEY}2")
    keys = Keys.from_environment()
    assert keys
    assert keys.find(f"Bearer {KEY}")
    assert keys.find(f"bearer {KEY}2")
    assert not keys.find(f"Bearer {KEY[:-1]}")
    assert not keys.find(f"Basic {KEY}")
    assert not keys.find("Bearer ключ")
    assert not keys.find(None)


def test_keys_are_not_kept_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", KEY)
    assert KEY not in repr(vars(Keys.from_environment()))


def test_without_keys_everybody_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWRIGHT_API_KEYS", raising=False)
    keys = Keys.from_environment()
    assert not keys
    assert keys.find(None)


@pytest.mark.parametrize(("value", "said"), [(f"{KEY},short", "key 2"), ("ключ-из-шестнадцати-букв", "ASCII")])
def test_a_key_that_is_no_good_is_named_by_its_place(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setenv("REWRIGHT_API_KEYS", value)
    with pytest.raises(SettingsError, match=said) as raised:
        Keys.from_environment()
    assert "short" not in str(raised.value)


def test_a_request_must_fit_the_house() -> None:
    with pytest.raises(ValidationError, match="queue_rows"):
        LimitSettings(rows=10, queue_rows=9)


def test_the_most_engines_are_not_fewer_than_the_fewest() -> None:
    with pytest.raises(ValidationError, match="engine_max_replicas"):
        RaySettings(engine_replicas=3, engine_max_replicas=2)
    assert RaySettings(engine_replicas=3, engine_max_replicas=3).engine_max_replicas == 3
