"""Subscriptions: a name, what is wanted, and how many slots its members share. Rules without I/O."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from zlib import crc32

import msgspec

from eventstore.errors import InputError
from eventstore.model.query import EventFilter

__all__ = [
    "LEASE_S",
    "LEASE_S_MAX",
    "SLOTS_MAX",
    "Receipt",
    "Subscription",
    "check_member",
    "check_subscription_name",
    "fair_share",
    "slot_of",
]

SLOTS_MAX = 64
LEASE_S = 30
LEASE_S_MAX = 3600
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_RECEIPT_CHARACTERS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscription as it was made. `lease_s` is how many seconds a silent member keeps its slots."""

    tenant_id: str
    name: str
    wanted: EventFilter
    slots: int
    lease_s: int

    def __post_init__(self) -> None:
        """Raises InputError for what cannot be."""
        check_subscription_name(self.name)
        if not 1 <= self.slots <= SLOTS_MAX:
            raise InputError(f"slots: {self.slots} is not within 1 and {SLOTS_MAX}")
        if not 1 <= self.lease_s <= LEASE_S_MAX:
            raise InputError(f"lease_s: {self.lease_s} is not within 1 and {LEASE_S_MAX} seconds")


def check_subscription_name(name: str) -> None:
    """Raises InputError for a text that no subscription's name can be."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name of a subscription",
            hint="a-z, 0-9, '.', '_' and '-', at most 63 characters, beginning with a letter or digit",
        )


def check_member(member: str) -> None:
    """Raises InputError for a text that no member's name can be."""
    if not _MEMBER.fullmatch(member):
        raise InputError(
            f"{member!r} is no name of a member",
            hint="letters, digits, '.', '_', ':' and '-', at most 128 characters, e.g. host and process id",
        )


def slot_of(entity: bytes, slots: int) -> int:
    """The slot of an entity, given as its type, a NUL and its id in UTF-8. The same for ever."""
    return crc32(entity) % slots


def fair_share(slots: int, members: int) -> int:
    """How many slots one of so many members may hold."""
    return -(-slots // max(members, 1))


class _Given(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    slot: int
    generation: int
    through: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a member was given: of each slot its generation, and the seq up to which it was read."""

    slots: dict[int, tuple[int, int]]

    def encode(self) -> str:
        """An opaque text. It is not secret and not signed: who makes one up can only acknowledge its own."""
        given = [_Given(slot, *held) for slot, held in sorted(self.slots.items())]
        return base64.urlsafe_b64encode(msgspec.json.encode(given)).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Receipt:
        """The receipt of a text.

        Raises:
            InputError: it is none.
        """
        try:
            if len(text) > _RECEIPT_CHARACTERS_MAX:
                raise ValueError("too long")
            octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            given = msgspec.json.decode(octets, type=list[_Given])
            if any(
                not (0 <= g.slot < SLOTS_MAX and 0 <= g.generation < 2**63 and 0 <= g.through < 2**63)
                for g in given
            ):
                raise ValueError("out of range")
        except (ValueError, binascii.Error, msgspec.MsgspecError) as e:
            raise InputError("this is no receipt", hint="send back `receipt` of a poll as it was") from e
        return cls({g.slot: (g.generation, g.through) for g in given})
