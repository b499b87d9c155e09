"""Appends of columns (Arrow, Parquet) and of compressed bodies: what they store, and what is refused."""

from __future__ import annotations

import gzip
import json
import struct
import uuid
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eventstore.intake import bulk
from eventstore.intake.bulk import parse_arrow, parse_parquet
from eventstore.intake.ipc import declared_bytes
from tests.integration.apiserver import (
    BODY_BYTES_MAX,
    VALUE_BYTES_MAX,
    Served,
    Tenant,
    event,
    is_problem,
    served_api,
)

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
kinds = pytest.mark.parametrize("kind", [ARROW, PARQUET])
IDS = [uuid.UUID(int=n + 2**100) for n in range(5)]
COLUMNS: dict[str, Any] = {
    "entity_type": ["order"] * 4,
    "entity_id": ["1", "2", "é", "1"],
    "action": ["changed"] * 4,
    "actor": ["ann"] * 4,
    "source": ["web"] * 4,
}


@pytest.fixture(scope="module")
def served(
    server_url: str, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with served_api(server_url, template_database, tmp_path_factory.mktemp("bulk")) as opened:
        yield opened


@pytest.fixture
def tenant(served: Served) -> Tenant:
    return Tenant(served)


def encoded(kind: str, table: pa.Table, batch_rows: int | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    if kind == PARQUET:
        pq.write_table(table, sink, **options)
    else:
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
            for batch in table.to_batches(max_chunksize=batch_rows or (3 if table.num_rows < 10 else None)):
                writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def table(**columns: Any) -> pa.Table:
    return pa.table({**COLUMNS, **columns})


def send(tenant: Tenant, kind: str, content: pa.Table | bytes, **params: Any) -> httpx.Response:
    body = content if isinstance(content, bytes) else encoded(kind, content)
    return tenant.post(body, media_type=kind, **params)


# --- what is stored ---------------------------------------------------------------------------------


@kinds
def test_columns_are_stored_as_the_same_events_in_json_would_be(tenant: Tenant, kind: str) -> None:
    values = ['{"b": 1.50, "a": [null]}', '"text"', "null", None]
    columns = table(
        event_id=[IDS[0].bytes, None, IDS[2].bytes, None],
        occurred_at=pa.array([0, 1, None, 2], pa.timestamp("us", tz="UTC")),
        field=["*", None, "status", "*"],
        new_value=values,
        metadata=['{"ip": "::1"}', None, None, "{}"],
        workspace_id=[None, "w", None, None],
    )
    answer = send(tenant, kind, columns)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["first_seq"], answer.json()["last_seq"], answer.json()["count"]) == (1, 4, 4)
    assert answer.json()["events"][2] == {"seq": 3, "event_id": str(IDS[2])}
    stored = tenant.found("events")["events"]

    other = Tenant(tenant.served)
    rows = columns.to_pylist()
    for row in rows:
        row["event_id"] = None if row["event_id"] is None else str(uuid.UUID(bytes=row["event_id"]))
        row["occurred_at"] = None if row["occurred_at"] is None else row["occurred_at"].isoformat()
        row["new_value"] = None if row["new_value"] is None else json.loads(row["new_value"])
        row["metadata"] = None if row["metadata"] is None else json.loads(row["metadata"])
        row["field"] = row["field"] or "*"
    other.append(*rows)
    expected = other.found("events")["events"]
    given = {1, 3}
    for mine, theirs in zip(stored, expected, strict=True):
        # Ids that the store makes, and the hashes that hold them, are each log's own.
        for name in ("hash",) if mine["seq"] in given else ("hash", "event_id"):
            mine.pop(name), theirs.pop(name)
        assert mine == theirs


@kinds
def test_numbers_truth_values_and_times_are_values_as_they_are(tenant: Tenant, kind: str) -> None:
    assert send(
        tenant, kind, table(new_value=[1, 2, None, 4], old_value=[True, None, False, True])
    ).is_success
    found = tenant.found("events")["events"]
    assert [(e["old_value"], e["new_value"]) for e in found] == [
        (True, 1),
        (None, 2),
        (False, None),
        (True, 4),
    ]


@kinds
def test_a_dictionary_is_text(tenant: Tenant, kind: str) -> None:
    columns = table(new_value=pa.array(['"a"', '"b"', None, '"a"']).dictionary_encode())
    columns = columns.set_column(3, "actor", columns["actor"].combine_chunks().dictionary_encode())
    assert send(tenant, kind, columns).status_code == 201
    assert [e["new_value"] for e in tenant.found("events")["events"]] == ["a", "b", None, "a"]


def test_texts_of_other_arrow_types(tenant: Tenant) -> None:
    types = {"entity_id": pa.string_view(), "actor": pa.large_string(), "new_value": pa.string_view()}
    columns = table(new_value=['"long enough not to be inlined"', None, "1", "[]"])
    for name, kind in types.items():
        index = columns.schema.get_field_index(name)
        columns = columns.set_column(index, name, columns[name].cast(kind))
    assert send(tenant, ARROW, columns).status_code == 201
    assert [e["new_value"] for e in tenant.found("events")["events"]] == [
        "long enough not to be inlined",
        None,
        1,
        [],
    ]


@kinds
def test_a_repeat_is_answered_alike(tenant: Tenant, kind: str) -> None:
    columns = table(event_id=[one.bytes for one in IDS[:4]])
    first = send(tenant, kind, columns).json()
    assert send(tenant, kind, columns).json()["events"] == first["events"]
    # Some known, one twice within the request, one new.
    mixed = table(event_id=[IDS[1].bytes, IDS[4].bytes, IDS[4].bytes, None])
    answer = send(tenant, kind, mixed).json()
    assert (answer["count"], answer["duplicates"]) == (2, 2)
    assert [e["seq"] for e in answer["events"]] == [2, 5, 5, 6]
    assert tenant.last_seq() == 6


def test_columns_and_objects_are_one_chain(tenant: Tenant) -> None:
    from eventstore.app import verify_tenant

    send(tenant, ARROW, table())
    tenant.append(event())
    send(tenant, PARQUET, table())
    assert "events" not in send(tenant, ARROW, table(), events="false").json()
    assert verify_tenant(tenant.served.store, tenant.name).ok


# --- what is refused --------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize(
    ("columns", "status", "field", "index"),
    [
        ({"actor": ["ann", None, "ann", "ann"]}, 422, "actor", 1),
        ({"actor": ["ann", "ann", "ann", ""]}, 422, "actor", 3),
        ({"action": ["x", "x" * 101, "x", "x"]}, 422, "action", 1),
        ({"entity_id": ["1", "2", "a\0b", "3"]}, 422, "entity_id", 2),
        ({"new_value": ["1", "{", "1", "1"]}, 422, "new_value", 1),
        ({"new_value": ["1", "2", "1,2", ""]}, 422, "new_value", 2),
        ({"new_value": ["[1,", "2]", "{}{}", "1"]}, 422, "new_value", 0),
        ({"new_value": ["[1,\n", "2]", "1 2", "1"]}, 422, "new_value", 0),
        ({"new_value": ["1", "[" * 100_000, "1", "1"]}, 413, "new_value", 1),
        ({"new_value": ['"\\u0000"', "1", "1", "1"]}, 422, "new_value", 0),
        ({"new_value": ["1", "1", '"\\ud800"', "1"]}, 422, "new_value", 2),
        ({"new_value": ["1", '"' + "x" * VALUE_BYTES_MAX + '"', "1", "1"]}, 413, "new_value", 1),
        ({"old_value": [1.0, float("nan"), 1.0, 1.0]}, 422, "old_value", 1),
        ({"metadata": ["{}", "[]", "{}", "{}"]}, 422, "metadata", 1),
        ({"event_id": ["1", "2", "3", "4"]}, 422, "event_id", 0),
        ({"occurred_at": ["2024-01-01", "x", "y", "z"]}, 422, "occurred_at", 1),
        ({"new_value": [[1], [2], [3], [4]]}, 422, "new_value", None),
        ({"actor": [1.5, 1.5, 1.5, 1.5]}, 422, None, None),
        ({"seq": [1, 2, 3, 4]}, 422, "seq", None),
        ({"expected_version": [0, 0, 0, 0]}, 422, "expected_version", None),
        ({"colour": ["a", "b", "c", "d"]}, 422, "colour", None),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_stored(
    tenant: Tenant, kind: str, columns: dict[str, Any], status: int, field: str | None, index: int | None
) -> None:
    body = is_problem(send(tenant, kind, table(**columns)), status)
    assert (body.get("field"), body.get("index")) == (field, index)
    assert tenant.last_seq() == 0


@kinds
def test_a_column_that_is_missing_and_a_body_of_no_events(tenant: Tenant, kind: str) -> None:
    assert "source" in is_problem(send(tenant, kind, table().drop(["source"])), 422)["detail"]
    assert "no events" in is_problem(send(tenant, kind, table().slice(0, 0)), 422)["detail"]


@kinds
@pytest.mark.parametrize(
    "spoil", [lambda d: b"", lambda d: b"nonsense", lambda d: d[: len(d) // 2], bytes.upper]
)
def test_what_is_no_arrow_or_parquet(tenant: Tenant, kind: str, spoil: Any) -> None:
    is_problem(send(tenant, kind, spoil(encoded(kind, table()))), 422)
    is_problem(send(tenant, ARROW if kind == PARQUET else PARQUET, encoded(kind, table())), 422)
    assert tenant.last_seq() == 0


def test_offsets_that_lie_are_not_followed(tenant: Tenant) -> None:
    """A stream is data of anybody's: with an offset far outside of its buffer it is refused, not read."""
    offsets = [n.to_bytes(4, "little") for n in (0, 4, 8, 12, 16)]
    body = encoded(ARROW, table(actor=["anna"] * 4), batch_rows=4)
    assert body.count(b"".join(offsets)) == 1
    far = body.replace(b"".join(offsets), b"".join([*offsets[:-1], (2**30).to_bytes(4, "little")]))
    assert is_problem(send(tenant, ARROW, far), 422)["field"] == "actor"
    outside = pa.DictionaryArray.from_arrays(pa.array([0, 1, 7, 2**30]), pa.array(["a", "b"]), safe=False)
    assert is_problem(send(tenant, ARROW, table(source=outside)), 422)["field"] == "source"
    assert tenant.last_seq() == 0


# --- bombs ------------------------------------------------------------------------------------------

LIMIT = BODY_BYTES_MAX * bulk.DECODED_FACTOR


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_compressed_stream_is_as_large_as_it_says(tenant: Tenant, compression: str) -> None:
    large = pa.table({name: ["x" * 200] * 10_000 for name in COLUMNS})
    body = encoded(ARROW, large, compression=compression)
    assert len(body) < BODY_BYTES_MAX < LIMIT < declared_bytes(pa.py_buffer(body))
    # Found out before anything of it is decompressed.
    with patch.object(bulk.pa.ipc, "open_stream", side_effect=AssertionError("decompressed")):
        is_problem(send(tenant, ARROW, body), 413, limit_bytes=LIMIT)


@kinds
def test_a_dictionary_is_counted_as_long_as_it_is_written_out(tenant: Tenant, kind: str) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * 900]))
    one = pa.array(["x"] * 2000).dictionary_encode()
    body = encoded(kind, pa.table({**dict.fromkeys(COLUMNS, one), "entity_id": texts}))
    assert len(body) < 100_000
    assert LIMIT < 2000 * 900
    is_problem(send(tenant, kind, body), 413, limit_bytes=LIMIT)
    assert tenant.last_seq() == 0


@kinds
def test_texts_in_dictionaries_are_no_larger_than_they_may_be(kind: str) -> None:
    columns = table(new_value=pa.array(['"' + "x" * 500 + '"'] * 4).dictionary_encode())
    parse = parse_arrow if kind == ARROW else parse_parquet
    body = encoded(kind, columns)
    assert parse(body, value_bytes_max=1000, decoded_bytes_max=10_000).num_rows == 4


def test_views_that_share_a_text_are_counted_each(tenant: Tenant) -> None:
    view = struct.pack("<i4sii", 900, b"yyyy", 0, 0)  # its length, its beginning, and where it lies
    buffers = [None, pa.py_buffer(view * 2000), pa.py_buffer(b"y" * 900)]
    shared = pa.Array.from_buffers(pa.string_view(), 2000, buffers)
    one = pa.array(["x"] * 2000)
    body = encoded(ARROW, pa.table({**dict.fromkeys(COLUMNS, one), "entity_id": shared}))
    assert len(body) < BODY_BYTES_MAX
    is_problem(send(tenant, ARROW, body), 413, limit_bytes=LIMIT)


def test_events_of_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch, tenant: Tenant) -> None:
    monkeypatch.setattr(bulk, "EVENTS_MAX", 3)
    for kind in (ARROW, PARQUET):
        assert "more than 3 events" in is_problem(send(tenant, kind, table()), 422)["detail"]


def test_rows_without_bytes_are_bounded_too(tenant: Tenant) -> None:
    nothing = pa.table({name: pa.nulls(3_000_000) for name in COLUMNS})
    body = encoded(ARROW, nothing)
    assert len(body) < BODY_BYTES_MAX
    assert "more than 1000000 events" in is_problem(send(tenant, ARROW, body), 422)["detail"]


# --- compressed bodies ------------------------------------------------------------------------------


def compressed(codec: str, data: bytes) -> bytes:
    if codec == "gzip":
        return gzip.compress(data, mtime=0)
    done: bytes = pa.Codec("zstd").compress(data).to_pybytes()
    return done


def post(tenant: Tenant, body: bytes, encoding: str, media_type: str = "application/json") -> httpx.Response:
    headers = {"content-type": media_type, "content-encoding": encoding}
    return tenant.served.client.post(f"{tenant.path}/events", content=body, headers=headers)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_compressed_body_is_what_it_holds(tenant: Tenant, codec: str) -> None:
    body = json.dumps([event(entity_id=str(n)) for n in range(100)]).encode()
    assert post(tenant, compressed(codec, body), codec).json()["count"] == 100
    assert post(tenant, compressed(codec, encoded(ARROW, table())), codec, ARROW).json()["last_seq"] == 104
    record = {"dataset": "d", "count": 1, "actor": "a", "source": "s"}
    answer = tenant.served.client.post(
        f"{tenant.path}/records/ingest",
        content=compressed(codec, json.dumps(record).encode()),
        headers={"content-encoding": codec},
    )
    assert answer.json()["last_seq"] == 105


def test_two_gzip_members_are_one_body(tenant: Tenant) -> None:
    lines = [json.dumps(event(entity_id=str(n))).encode() + b"\n" for n in range(2)]
    body = b"".join(gzip.compress(line, mtime=0) for line in lines)
    assert post(tenant, body, "gzip", "application/x-ndjson").json()["count"] == 2


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_bomb_is_not_blown_up(tenant: Tenant, codec: str) -> None:
    before = pa.total_allocated_bytes()
    body = compressed(codec, b"[" + b" " * (BODY_BYTES_MAX * 200))
    assert len(body) < BODY_BYTES_MAX
    is_problem(post(tenant, body, codec), 413, limit_bytes=BODY_BYTES_MAX)
    assert pa.total_allocated_bytes() - before < 10 * BODY_BYTES_MAX


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("deflate", b"x", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), 415),
        ("gzip", b"{}", 400),
        ("gzip", gzip.compress(b"[]", mtime=0)[:-4], 400),
        ("gzip", gzip.compress(b"[]", mtime=0) + b"rest", 400),
        ("gzip", b"", 422),
        ("identity", b"", 422),
        ("zstd", b"(\xb5/\xfd", 400),
    ],
)
def test_encodings_that_are_not_taken_or_not_right(
    tenant: Tenant, encoding: str, body: bytes, status: int
) -> None:
    is_problem(post(tenant, body, encoding), status)
    assert tenant.last_seq() == 0
