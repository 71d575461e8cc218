"""Who sends a request: bearer keys from the environment and from the service's database.

Not here: making and revoking keys (`server.keys`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastapi import Request

from agent.exceptions import SettingsError
from server.exceptions import AuthenticationError, ForbiddenError
from server.keys import ENVIRONMENT, EVERYTHING, Caller, KeyStore, Scope

KEYS_VARIABLE = "REWRIGHT_API_KEYS"
_MIN_KEY_LENGTH = 16


@dataclass(frozen=True)
class Keys:
    """The keys that may use the service. None at all means: open to everybody.

    Attributes:
        digests: of the keys of the environment, which may do everything.
        store: further keys.
    """

    digests: tuple[bytes, ...] = ()
    store: KeyStore | None = None

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

    def with_store(self, store: KeyStore) -> Keys:
        """These keys and those in `store`."""
        return replace(self, store=store)

    def __bool__(self) -> bool:
        """Whether a key is needed. Blocks where there is a store."""
        return bool(self.digests) or (self.store is not None and self.store.any())

    def find(self, authorization: str | None) -> Caller | None:
        """Whose `Authorization` header this is, None for nobody's. Blocks where there is a store.

        Looks at every key of the environment, whichever fits.
        """
        scheme, _, key = (authorization or "").partition(" ")
        caller = self._find_key(key.strip()) if scheme.lower() == "bearer" else None
        return caller or (None if self else EVERYTHING)

    def _find_key(self, key: str) -> Caller | None:
        digest = _digest(key)
        fits = [hmac.compare_digest(digest, known) for known in self.digests]
        if any(fits):
            owner = f"{ENVIRONMENT}{digest.hex()[:12]}"  # the same wherever it stands among the others
            return replace(EVERYTHING, id=owner, account=f"environment-{fits.index(True) + 1}")
        return self.store.find(key) if self.store else None


async def authenticate(request: Request, scopes: Sequence[Scope]) -> Caller:
    """Whose request this is, if its key is known to the application and has one of the scopes.

    Raises:
        AuthenticationError: there is no key, or an unknown one.
        ForbiddenError: the key has none of the scopes.
    """
    keys: Keys = request.app.state.keys
    authorization = request.headers.get("authorization")
    caller = await asyncio.to_thread(keys.find, authorization)
    if caller is None:
        reason = "this key is not known" if authorization else "a key is needed"
        raise AuthenticationError(f"{reason}: send `Authorization: Bearer KEY`", code="invalid_api_key")
    require_scope(caller, scopes)
    return caller


def require_scope(caller: Caller, scopes: Sequence[Scope]) -> None:
    """Raises ForbiddenError where the caller has none of the scopes."""
    if not any(map(caller.may, scopes)):
        raise ForbiddenError(f"this key has no scope {' or '.join(map(repr, scopes))}", code="insufficient_scope")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
