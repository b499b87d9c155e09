"""API keys: what their text looks like, and when one holds.

A key is `es_<id>_<secret>`. The id is public: it says the role, names the key in lists and in the record, and
finds its row. The secret has 260 random bits, and only the SHA-256 of the whole text is ever stored.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum

from eventstore.model.access import Principal, Role
from eventstore.model.limits import Limits

__all__ = ["ApiKey", "KeyState", "digest_of", "is_key_id", "key_id_of", "new_key_text"]

# Crockford's: no letters that are taken for digits. All of a key is selected by a double click but for '-'.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ID_LENGTH, _SECRET_LENGTH = 10, 52
_ID = rf"(?:{'|'.join(Role)})-[{_ALPHABET}]{{{_ID_LENGTH}}}"
_KEY_ID = re.compile(_ID)
_TEXT = re.compile(rf"es_({_ID})_[{_ALPHABET}]{{{_SECRET_LENGTH}}}".encode())


class KeyState(StrEnum):
    """active → expired or revoked; neither ends."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as stored. `tenant_id` None: of the whole deployment. `label` says in its maker's words what it
    is for. `replaces` names the key that was rotated into this one. Times that are None have not come, or
    never will. `last_used_us` is exact to about half a minute.
    """

    key_id: str
    tenant_id: str | None
    role: Role
    label: str
    created_us: int
    created_by: str
    expires_us: int | None
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    replaces: str | None = None
    revoked_us: int | None = None
    revoked_by: str | None = None
    last_used_us: int | None = None

    def state(self, now_us: int) -> KeyState:
        if self.revoked_us is not None:
            return KeyState.REVOKED
        if self.expires_us is not None and now_us >= self.expires_us:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    @property
    def principal(self) -> Principal:
        """Who calls with it."""
        return Principal(f"key:{self.key_id}", self.role, self.tenant_id, limits=self.limits)


def new_key_text(role: Role) -> tuple[str, str]:
    """A new key's id and its whole text, which is to be shown once and forgotten."""
    key_id = f"{role.value}-{_random(_ID_LENGTH)}"
    return key_id, f"es_{key_id}_{_random(_SECRET_LENGTH)}"


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def is_key_id(text: str) -> bool:
    """Whether a key could have this id."""
    return _KEY_ID.fullmatch(text) is not None


def key_id_of(text: bytes) -> str | None:
    """The id within a key's text; None: this is no key."""
    match = _TEXT.fullmatch(text)
    return None if match is None else match[1].decode()


def digest_of(text: bytes) -> bytes:
    """What is stored of a key: nobody finds 260 random bits by trying, so nothing slower is needed."""
    return hashlib.sha256(text).digest()
