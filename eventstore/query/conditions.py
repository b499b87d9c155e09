"""A filter as SQL, for Postgres and for DuckDB. The two differ only in how a constant is written."""

from __future__ import annotations

from typing import Protocol

from eventstore.clock import to_iso
from eventstore.model.query import EventFilter
from eventstore.query.free_text import longest_plain, pattern

__all__ = ["DuckDialect", "PostgresDialect", "conditions"]

# Where free text is looked for.
_SEARCHED = ("old_value", "new_value")
_HEAD_CHARACTERS = 6
_EQUAL = ("entity_type", "entity_id", "actor", "action", "field", "source", "workspace_id")


class Dialect(Protocol):
    """How one engine writes constants."""

    def text(self, value: str) -> str: ...
    def time(self, us: int) -> str: ...
    def uuid(self, value: bytes) -> str: ...
    def entity(self, entity_id: str) -> list[str]: ...
    def holds(self, column: str, text: str) -> str: ...


class PostgresDialect:
    """Constants for Postgres. Its entity index, over a hash of the id, is looked into apart from them:
    `query.tiers`."""

    def text(self, value: str) -> str:
        # standard_conforming_strings is on: only the quote itself has a meaning inside quotes.
        return "'" + value.replace("'", "''") + "'"

    def time(self, us: int) -> str:
        return f"'{to_iso(us)}'::timestamptz"

    def uuid(self, value: bytes) -> str:
        return f"'{value.hex()}'::uuid"

    def entity(self, entity_id: str) -> list[str]:
        return [f"entity_id = {self.text(entity_id)}"]

    def holds(self, column: str, text: str) -> str:
        # By the collation "C" case is that of ASCII and a character is compared as it is, whatever the
        # database's own does. What a long pattern costs for each value grows with its length, so a cheap
        # look at a part of the text goes first: Postgres keeps the order of conditions that cost it alike.
        exact = f'{column} COLLATE "C" ~ {self.text(pattern(text))}'
        run = longest_plain(text)
        if len(run) == len(text):
            return self._strpos(column, text)
        if len(run) > 1:
            return f"({self._strpos(column, run)} AND {exact})"
        if len(text) > _HEAD_CHARACTERS:
            return f'({column} COLLATE "C" ~ {self.text(pattern(text[:_HEAD_CHARACTERS]))} AND {exact})'
        return exact

    def _strpos(self, column: str, text: str) -> str:
        return f'strpos(lower({column} COLLATE "C"), {self.text(text.lower())}) > 0'


class DuckDialect:
    """Constants for DuckDB, which prunes by statistics and Bloom filters on plain comparisons."""

    def text(self, value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def time(self, us: int) -> str:
        return f"make_timestamptz({us})"

    def uuid(self, value: bytes) -> str:
        return f"'{value.hex()}'::UUID"

    def entity(self, entity_id: str) -> list[str]:
        return [f"entity_id = {self.text(entity_id)}"]

    def holds(self, column: str, text: str) -> str:
        return f"regexp_matches({column}, {self.text(pattern(text))})"


def conditions(wanted: EventFilter, dialect: Dialect, *, seq_from: int, seq_to: int) -> str:
    """The WHERE clause of a filter within a seq range (both ends inclusive)."""
    clauses = [f"seq BETWEEN {int(seq_from)} AND {int(seq_to)}"]
    for name in _EQUAL:
        value: str | None = getattr(wanted, name)
        if value is None:
            continue
        clauses += dialect.entity(value) if name == "entity_id" else [f"{name} = {dialect.text(value)}"]
    if wanted.event_id is not None:
        clauses.append(f"event_id = {dialect.uuid(wanted.event_id)}")
    if wanted.text is not None:
        held = [dialect.holds(column, wanted.text) for column in _SEARCHED]
        clauses.append(f"({' OR '.join(held)})")
    for column, start, end in (
        ("recorded_at", wanted.recorded_from_us, wanted.recorded_to_us),
        ("occurred_at", wanted.occurred_from_us, wanted.occurred_to_us),
    ):
        if start is not None:
            clauses.append(f"{column} >= {dialect.time(start)}")
        if end is not None:
            clauses.append(f"{column} < {dialect.time(end)}")
    return " AND ".join(clauses)
