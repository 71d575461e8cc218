"""API keys that the service keeps: made, listed, revoked, and looked up for a request.

A key is `rw_ID_SECRET`. The id finds its row; the secret is 256 random bits, of which only the SHA-256 is kept. A slow
hash as for passwords would protect secrets that can be guessed; nobody guesses one of 2**256, and a fast hash
keeps the check off the cost of a request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import sqlalchemy as sa

from server.exceptions import UnknownNameError
from server.state import Database
from server.state import keys as table

Scope = Literal["rewrite", "train", "metrics", "admin"]
ENVIRONMENT = "env_"
SCOPES: tuple[Scope, ...] = get_args(Scope)

_KEY = re.compile(r"rw_([0-9a-f]{12})_([\w-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request.

    Attributes:
        id: of the key; one from the environment has `ENVIRONMENT` and a part of its digest; empty where there is none.
        scopes: what it may do; `admin` includes the others.
        account: tells every key from the others, those of the environment too; empty where there is none.
    """

    id: str
    scopes: frozenset[str]
    account: str = ""

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


EVERYTHING = Caller("", frozenset(SCOPES))


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is known of a key. Times in seconds since 1970."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= time.time() else "active"


class KeyStore:
    """The keys in a database. Methods block."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, name: str, scopes: Collection[Scope], *, expires_at: int | None = None) -> tuple[StoredKey, str]:
        """Make a key. Its text is returned here and nowhere else.

        Args:
            name: for whoever reads the list.
            scopes: what it may do.
            expires_at: seconds since 1970, None for never.
        """
        secret = secrets.token_urlsafe(32)
        key = StoredKey(secrets.token_hex(6), name, tuple(sorted(scopes)), int(time.time()), expires_at, None)
        row = {
            "id": key.id,
            "name": name,
            "digest": _digest(secret),
            "scopes": list(key.scopes),
            "created_at": key.created_at,
            "expires_at": expires_at,
        }
        self._database.do(lambda c: c.execute(sa.insert(table).values(row)))
        return key, f"rw_{key.id}_{secret}"

    def all(self) -> list[StoredKey]:
        """All keys, the revoked and expired ones too, oldest first."""
        query = sa.select(table).order_by(table.c.created_at, table.c.id)
        return [_stored(row) for row in self._database.do(lambda c: c.execute(query).all())]

    def revoke(self, key_id: str) -> None:
        """Let the key pass no more, from the next request on.

        Raises:
            UnknownNameError: there is no such key.
        """
        change = (
            sa.update(table)
            .where(table.c.id == key_id)
            .values(revoked_at=sa.func.coalesce(table.c.revoked_at, int(time.time())))
        )
        if not self._database.do(lambda c: c.execute(change).rowcount):
            raise UnknownNameError(f"there is no key {key_id!r}: see `rewright keys list`", code="unknown_key")

    def any(self) -> bool:
        """Whether a key was ever made here; revoking the last one must not open the service to everybody."""
        return self._database.do(lambda c: c.scalar(sa.select(table.c.id).limit(1))) is not None

    def find(self, key: str) -> Caller | None:
        """Who holds `key`; None when it is unknown, expired or revoked."""
        form = _KEY.fullmatch(key)
        if form is None:
            return None
        row = self._database.do(lambda c: c.execute(sa.select(table).where(table.c.id == form[1])).one_or_none())
        if row is None or not hmac.compare_digest(_digest(form[2]), row.digest) or _stored(row).state != "active":
            return None
        return Caller(row.id, frozenset(row.scopes), row.id)


def _stored(row: sa.Row[Any]) -> StoredKey:
    return StoredKey(row.id, row.name, tuple(row.scopes), row.created_at, row.expires_at, row.revoked_at)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
