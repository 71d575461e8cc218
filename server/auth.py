"""Bearer keys: read from the environment, kept as digests, compared in constant time.

Not here: issuing and revoking keys, scopes.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from fastapi import Request

from agent.exceptions import SettingsError
from server.exceptions import AuthenticationError

KEYS_VARIABLE = "REWRIGHT_API_KEYS"
_MIN_KEY_LENGTH = 16


class Keys:
    """The digests of the keys that may use the service. None at all means: open to everybody."""

    def __init__(self, digests: tuple[bytes, ...] = ()) -> None:
        self._digests = digests

    @classmethod
    def from_environment(cls) -> Keys:
        """Read `REWRIGHT_API_KEYS`, comma separated.

        Raises:
            SettingsError: a key is so short that it can be guessed, or cannot travel in a header.
        """
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
        keys = [key for key in keys if key]
        for number, key in enumerate(keys, start=1):
            if len(key) < _MIN_KEY_LENGTH:
                raise SettingsError(
                    f"key {number} of {KEYS_VARIABLE} has {len(key)} characters, fewer than {_MIN_KEY_LENGTH}: "
                    'make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`'
                )
            if not key.isascii() or not key.isprintable() or " " in key:
                raise SettingsError(f"key {number} of {KEYS_VARIABLE} may only have visible ASCII characters")
        return cls(tuple(_digest(key) for key in keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Whether this `Authorization` header may pass. Looks at every key, whichever fits."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        digest = _digest(key.strip())
        fits = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(fits) and scheme.lower() == "bearer"


def authenticate(request: Request) -> None:
    """Let the request pass if its key is known to the application. Raises AuthenticationError."""
    keys: Keys = request.app.state.keys
    authorization = request.headers.get("authorization")
    if not keys.allow(authorization):
        reason = "this key is not known" if authorization else "a key is needed"
        raise AuthenticationError(f"{reason}: send `Authorization: Bearer KEY`", code="invalid_api_key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
