"""Every call of the API as a value: the request, and how its answer is read. No input or output here.

`Client` and `AsyncClient` carry the same calls out, each in its way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from eventstore.client.answers import Appended, EntityState, Flushed, OneEvent, Page, Stats, Stored
from eventstore.client.events import Event, EventIds, NewEvent, Recordable, encode_event
from eventstore.errors import InputError, InvalidEventError
from eventstore.model.records import Change, RecordIngest, RecordInsert, RecordUpdate

__all__ = ["Call", "Calls", "ExportFormat", "Moment", "common_fields", "parameters", "raw_json", "update_of"]

T = TypeVar("T")
Moment: TypeAlias = datetime | str  # RFC 3339, or an aware datetime
ExportFormat: TypeAlias = Literal["ndjson", "csv", "parquet", "arrow"]

NDJSON = "application/x-ndjson"
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and `read`, which makes its value of the body of a successful answer.

    All of them may be sent again when it is not known what became of them: reads change nothing, and what is
    stored has its event_ids.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(kind).decode


_APPENDED, _PAGE, _STATS, _ONE, _STORED, _ENTITY, _FLUSHED = (
    _reader(Appended),
    _reader(Page),
    _reader(Stats),
    _reader(OneEvent),
    _reader(Stored),
    _reader(EntityState),
    _reader(Flushed),
)


def _event(body: bytes) -> Event:
    return _ONE(body).event


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InputError(f"{value} has no time zone", hint="give an aware datetime")
        return value.isoformat()
    return str(value)


def _segment(text: str) -> str:
    """An id as a part of a path. Alone, a dot or two would mean a folder."""
    return text.replace(".", "%2E") if text in (".", "..") else quote(text, safe="")


def parameters(**values: object) -> dict[str, str]:
    """Query parameters, without those that are None."""
    return {name: _text(value) for name, value in values.items() if value is not None}


class Calls:
    """The calls of one tenant."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.ids = EventIds()
        self._base = f"/v1/tenants/{quote(tenant, safe='')}"

    def path(self, rest: str) -> str:
        return f"{self._base}/{rest}"

    # --- appending --------------------------------------------------------------------------------------

    def append(self, events: Recordable | Iterable[Recordable]) -> Call[Appended]:
        """One event goes as JSON, many as a stream of lines."""
        if isinstance(events, NewEvent | Mapping):
            return self._append(encode_event(events, self.ids), "application/json")
        lines = [encode_event(event, self.ids, index=index) for index, event in enumerate(events)]
        if not lines:
            raise InvalidEventError("there is no event to append", hint="give one event at least")
        return self._append(b"\n".join(lines), NDJSON)

    def append_lines(self, lines: bytes) -> Call[Appended]:
        """Lines of JSON that have their event_ids; the answer does not list them."""
        return self._append(lines, NDJSON, events="false")

    def _append(self, content: bytes, media_type: str, **params: str) -> Call[Appended]:
        headers = {"content-type": media_type}
        return Call("POST", self.path("events"), _APPENDED, params, content, headers)

    def read_appended(self, body: bytes) -> Appended:
        return _APPENDED(body)

    def _record(self, name: str, record: RecordInsert | RecordUpdate | RecordIngest) -> Call[Appended]:
        headers = {"content-type": "application/json"}
        content = _ENCODER.encode(record)
        return Call("POST", self.path(f"records/{name}"), _APPENDED, {}, content, headers)

    def insert(
        self, entity_type: str, entity_id: str, fields: Mapping[str, Any], **common: Any
    ) -> Call[Appended]:
        made = RecordInsert(
            entity_type=entity_type,
            entity_id=entity_id,
            fields=raw_json(fields),
            **common_fields(common, self.ids),
        )
        return self._record("insert", made)

    def update(
        self, entity_type: str, entity_id: str, changes: Mapping[str, tuple[Any, Any]], **common: Any
    ) -> Call[Appended]:
        made = update_of(entity_type, entity_id, changes, **common_fields(common, self.ids))
        return self._record("update", made)

    def ingest(self, dataset: str, count: int, **common: Any) -> Call[Appended]:
        return self._record(
            "ingest", RecordIngest(dataset=dataset, count=count, **common_fields(common, self.ids))
        )

    # --- reading ----------------------------------------------------------------------------------------

    def page(self, rest: str, **params: object) -> Call[Page]:
        return Call("GET", self.path(rest), _PAGE, parameters(**params))

    def history_path(self, entity_id: str) -> str:
        return f"history/{_segment(entity_id)}"

    def event(self, seq_or_event_id: int | str | uuid.UUID) -> Call[Event]:
        return Call("GET", self.path(f"events/{quote(str(seq_or_event_id), safe='')}"), _event)

    def stored(self, event_id: uuid.UUID) -> Call[Stored]:
        """Whether an event is stored; for those who append, and may not read."""
        return Call("GET", self.path(f"event-ids/{event_id}"), _STORED)

    def read_stored(self, body: bytes) -> Stored:
        return _STORED(body)

    def as_of(
        self, entity_id: str, moment: Moment | None, entity_type: str | None, partial: bool
    ) -> Call[EntityState]:
        params = parameters(as_of=moment, entity_type=entity_type, partial=partial or None)
        return Call("GET", self.path(f"entities/{_segment(entity_id)}"), _ENTITY, params)

    def export(self, format: ExportFormat, **filters: object) -> Call[bytes]:  # noqa: A002
        """Its answer is streamed, and not read as one."""
        return Call("GET", self.path("export"), bytes, parameters(format=format, **filters))

    def stats(self) -> Call[Stats]:
        return Call("GET", self.path("stats"), _STATS)

    def flush(self) -> Call[Flushed]:
        return Call("POST", self.path("flush"), _FLUSHED)


def common_fields(given: Mapping[str, Any], ids: EventIds) -> dict[str, Any]:
    """What was given of the members that every record has, with an event_id, and the metadata as JSON."""
    common = {name: value for name, value in given.items() if value is not None}
    common.setdefault("event_id", ids.next())
    if "metadata" in common:
        common["metadata"] = raw_json(common["metadata"])
    return common


def raw_json(value: Any) -> msgspec.Raw:
    """A value as JSON."""
    try:
        return msgspec.Raw(_ENCODER.encode(value))
    except (TypeError, ValueError, RecursionError, OverflowError) as e:
        raise InvalidEventError(f"is no JSON: {e}", hint="values are what JSON can hold") from e


def update_of(
    entity_type: str, entity_id: str, changes: Mapping[str, tuple[Any, Any]], **common: Any
) -> RecordUpdate:
    """An update of fields, each given as (old, new)."""
    made = {name: Change(old=raw_json(old), new=raw_json(new)) for name, (old, new) in changes.items()}
    return RecordUpdate(entity_type=entity_type, entity_id=entity_id, changes=made, **common)
