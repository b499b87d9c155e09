"""Every table, as SQLAlchemy Core. Migrations make exactly these (a test compares the two).

The partitions of `events` live in the schema `hot`, one table a tenant and one leaf a window; they are
made by `db.partitions`, not by migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP, UUID

__all__ = [
    "deployment",
    "events",
    "heads",
    "imports",
    "metadata",
    "run_entries",
    "runs",
    "segments",
    "tenants",
    "watermarks",
    "windows",
]

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_name)s_uq",
        "ix": "%(table_name)s_%(column_0_N_name)s_ix",
        "ck": "%(table_name)s_%(constraint_name)s_ck",
    }
)


def _tenant_key() -> sa.Column[str]:
    return sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), primary_key=True)


# One row: the identity that this database and its archive share.
deployment = sa.Table(
    "deployment",
    metadata,
    sa.Column("store_id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
)

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("tenant_no", sa.Integer, sa.Identity(always=True), nullable=False, unique=True),
    sa.Column("window_unit", sa.Text, nullable=False),
    sa.Column("hot_for_us", sa.BigInteger, nullable=False),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("tenant_id ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug"),
    sa.CheckConstraint("window_unit IN ('hour', 'day', 'week', 'month')", name="window_unit"),
    sa.CheckConstraint("hot_for_us >= 0", name="hot_for"),
)

# The end of each log. Its row lock orders a tenant's appends; every append updates it in place, so pages
# keep room for the next version (HOT updates).
heads = sa.Table(
    "heads",
    metadata,
    _tenant_key(),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("last_hash", BYTEA, nullable=False),
    sa.Column("last_recorded_us", sa.BigInteger, nullable=False),
    sa.Column("id_lead_us", sa.BigInteger, nullable=False),
    postgresql_with={"fillfactor": "50"},
)

# Up to which seq readers take the archive's word. A table of its own, so that a cutover never waits for
# appends, nor they for it.
watermarks = sa.Table(
    "watermarks",
    metadata,
    _tenant_key(),
    sa.Column("archived_through", sa.BigInteger, nullable=False),
    sa.Column("archived_hash", BYTEA, nullable=False),
)

windows = sa.Table(
    "windows",
    metadata,
    _tenant_key(),
    sa.Column("window_from", TIMESTAMP(timezone=True), primary_key=True),
    sa.Column("window_to", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("leaf", sa.Text, nullable=False, unique=True),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger),
    sa.Column("hash_before", BYTEA),
    sa.Column("hash_after", BYTEA),
    sa.Column("sealed_at", TIMESTAMP(timezone=True)),
    sa.Column("archived_at", TIMESTAMP(timezone=True)),
    sa.Column("dropped_at", TIMESTAMP(timezone=True)),
    sa.CheckConstraint("state IN ('open', 'sealed', 'archived', 'dropped')", name="state"),
    sa.CheckConstraint("window_from < window_to", name="span"),
    sa.CheckConstraint(
        "(state = 'open') = (last_seq IS NULL) AND (last_seq IS NULL) = (hash_before IS NULL)"
        " AND (last_seq IS NULL) = (hash_after IS NULL)",
        name="frozen",
    ),
)

segments = sa.Table(
    "segments",
    metadata,
    _tenant_key(),
    sa.Column("first_seq", sa.BigInteger, primary_key=True),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("window_from", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("part", sa.Integer, nullable=False),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("hash_before", BYTEA, nullable=False),
    sa.Column("hash_after", BYTEA, nullable=False),
    sa.Column("min_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("max_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", BYTEA, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    # a Bloom filter over entity_id (archive.bloom); null: it would not tell them apart
    sa.Column("entity_filter", BYTEA),
    sa.ForeignKeyConstraint(
        ["tenant_id", "window_from"],
        ["windows.tenant_id", "windows.window_from"],
        name="segments_window_fk",
    ),
    sa.CheckConstraint("first_seq <= last_seq", name="range"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", UUID, primary_key=True),
    sa.Column("started_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("finished_at", TIMESTAMP(timezone=True)),
    sa.Column("now_us", sa.BigInteger, nullable=False),
    # running until the run says how it ended; a run whose process died stays so
    sa.Column("status", sa.Text, nullable=False),
    sa.CheckConstraint("status IN ('running', 'completed', 'failed')", name="status"),
)

run_entries = sa.Table(
    "run_entries",
    metadata,
    sa.Column("run_id", UUID, sa.ForeignKey("runs.run_id"), primary_key=True),
    sa.Column("entry_no", sa.Integer, primary_key=True),
    sa.Column("at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("tenant_id", sa.Text),  # null: about the whole run
    sa.Column("window_from", TIMESTAMP(timezone=True)),  # null: about no one window
    sa.Column("detail", JSONB, nullable=False),
)

# How far an import of a file has come, moved in the same transaction as its events.
imports = sa.Table(
    "imports",
    metadata,
    _tenant_key(),
    sa.Column("source_sha256", BYTEA, primary_key=True),
    sa.Column("rows_read", sa.BigInteger, nullable=False),
    sa.Column("rows_stored", sa.BigInteger, nullable=False),
    sa.Column("rows_rejected", sa.BigInteger, nullable=False),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("updated_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
)

# Only a partitioned parent: constraints that need an index are made on each leaf.
events = sa.Table(
    "events",
    metadata,
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("event_id", UUID, nullable=False),
    sa.Column("recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("occurred_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("entity_type", sa.Text, nullable=False),
    sa.Column("entity_id", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("field", sa.Text, nullable=False),
    sa.Column("old_value", sa.Text),
    sa.Column("new_value", sa.Text),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("workspace_id", sa.Text),
    sa.Column("metadata", sa.Text),
    sa.Column("hash", BYTEA, nullable=False),
    postgresql_partition_by="LIST (tenant_id)",
)
