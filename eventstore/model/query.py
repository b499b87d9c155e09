"""What to read of a log: filters, order, and where a page begins and ends."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from eventstore.errors import InputError

__all__ = [
    "FEED_FILTERS",
    "PAGE_LIMIT_MAX",
    "TEXT_CHARACTERS_MAX",
    "EventFilter",
    "Order",
    "decode_cursor",
    "encode_cursor",
]

PAGE_LIMIT_MAX = 10_000
# Of the text that is searched for in values.
TEXT_CHARACTERS_MAX = 128
# What a feed can be filtered by: what the event itself says, for ever.
FEED_FILTERS = ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")


class Order(StrEnum):
    """By seq: asc is oldest first."""

    ASC = "asc"
    DESC = "desc"


_TEXTS = (*FEED_FILTERS, "text")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events. None means no condition; several conditions all hold.

    Times are microseconds since 1970 UTC, from inclusive, to exclusive; seqs are inclusive at both ends.
    `event_id` is the 16 bytes of a UUID. `text` occurs in the old or the new value, in either case and
    however JSON has it written (`query.free_text`).
    """

    entity_type: str | None = None
    entity_id: str | None = None
    actor: str | None = None
    action: str | None = None
    field: str | None = None
    source: str | None = None
    workspace_id: str | None = None
    event_id: bytes | None = None
    recorded_from_us: int | None = None
    recorded_to_us: int | None = None
    occurred_from_us: int | None = None
    occurred_to_us: int | None = None
    seq_from: int | None = None
    seq_to: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a text that no event can have."""
        for name in _TEXTS:
            value: str | None = getattr(self, name)
            if value is not None and ("\0" in value or not _is_unicode(value)):
                raise InputError(f"{name}: has a NUL or is not valid Unicode, as no event's is")
        if self.text is not None and not 1 <= len(self.text) <= TEXT_CHARACTERS_MAX:
            raise InputError(
                f"text: has {len(self.text)} characters",
                hint=f"give 1 to {TEXT_CHARACTERS_MAX}, or leave it out",
            )

    @property
    def is_selective(self) -> bool:
        """Whether indexes and Bloom filters find these events without reading the others."""
        return self.entity_id is not None or self.event_id is not None

    @property
    def is_range(self) -> bool:
        """Whether every event of a seq range is wanted: nothing but seq and order decides."""
        return all(
            getattr(self, f.name) is None for f in fields(self) if f.name not in ("seq_from", "seq_to")
        )


def encode_cursor(seq: int) -> str:
    """The cursor after which the next page goes on: the last seq that was given, in the page's order."""
    return str(seq)


def decode_cursor(text: str) -> int:
    """The seq of a cursor.

    Raises:
        InputError: not a cursor.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InputError(f"{text!r} is not a cursor", hint="take it from next_cursor of the page before")
    return int(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as a byte that is not UTF-8 becomes on a command line
        return False
    return True
