"""API keys: made, found, revoked. The database holds their hashes alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from tunewright.errors import BadConfig
from tunewright.jobs.store import Key, Store, new_id

SCOPES = ("read", "write", "admin")


def hashed(key: str) -> str:
    """What is kept of a key. A key is 190 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def add_key(store: Store, owner: str, name: str, scope: str, quotas: Mapping[str, int] | None = None, key: str | None = None) -> str:
    """Make a key (or take `key`) and return it: it cannot be shown again. Raises BadConfig: it is there already, or too short."""
    if scope not in SCOPES:
        raise BadConfig(f"--scope {scope!r} is not known; choose one of {', '.join(SCOPES)}", code="unknown_scope", param="--scope")
    if key is not None and not (16 <= len(key) <= 512 and key.isascii() and key.isprintable() and " " not in key):
        raise BadConfig("A key has 16 to 512 printable ASCII characters without spaces", code="weak_key", param="TUNEWRIGHT_API_KEY")
    key = key or "sk-" + secrets.token_urlsafe(32)
    with store.write() as session:
        if session.scalar(select(Key.id).where(Key.hash == hashed(key))):
            raise BadConfig("This key is known already", code="key_exists", param="key")
        row = Key(
            id=new_id("key_"),
            hash=hashed(key),
            owner=owner,
            name=name,
            scope=scope,
            created_at=store.now(),
            revoked_at=None,
            quotas=dict(quotas or {}),
        )
        session.add(row)
    return key


def first_key(store: Store) -> str | None:
    """See to it that there is an admin key, from TUNEWRIGHT_API_KEY or new. Returns a key that was made here and must be shown, once."""
    given = os.environ.get("TUNEWRIGHT_API_KEY")
    with store.read() as session:
        known = session.scalar(select(func.count()).select_from(Key).where(Key.revoked_at.is_(None)))
        if given and session.scalar(select(Key.id).where(Key.hash == hashed(given))):
            return None
    if given:
        add_key(store, owner="default", name="TUNEWRIGHT_API_KEY", scope="admin", key=given)
        return None
    return None if known else add_key(store, owner="default", name="first", scope="admin")


def find_key(store: Store, key: str) -> Key | None:
    """The key's row, if it is known and not revoked."""
    digest = hashed(key)
    with store.read() as session:
        row = session.scalar(select(Key).where(Key.hash == digest, Key.revoked_at.is_(None)))
    return row if row is not None and hmac.compare_digest(row.hash, digest) else None


def list_keys(store: Store) -> Sequence[Key]:
    """All keys, revoked ones too, oldest first."""
    with store.read() as session:
        return session.scalars(select(Key).order_by(Key.created_at)).all()


def revoke_key(store: Store, id: str) -> None:
    """End a key, by its id. A running server knows within a second. Raises BadConfig: there is none."""
    with store.write() as session:
        row = session.get(Key, id)
        if row is None:
            raise BadConfig(f"There is no key {id!r}; `tunewright keys list` shows them", code="no_such_key", param="id")
        row.revoked_at = row.revoked_at or store.now()
