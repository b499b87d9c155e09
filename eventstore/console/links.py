"""Addresses of pages that are about something whose name may hold any character."""

from __future__ import annotations

from urllib.parse import urlencode

__all__ = ["entity_address", "event_address", "with_query"]


def with_query(path: str, **values: object) -> str:
    """A path with a query of what is given: nothing for None and for an empty text."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def entity_address(tenant: str, entity_type: str | None, entity_id: str, **more: object) -> str:
    """The page of an entity."""
    path = f"/console/t/{tenant}/entity"
    return with_query(path, entity_type=entity_type, entity_id=entity_id, **more)


def event_address(tenant: str, seq: int) -> str:
    """The page of an event."""
    return f"/console/t/{tenant}/event/{seq}"
