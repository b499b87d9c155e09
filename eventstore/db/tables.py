"""Every table, as SQLAlchemy Core. Migrations make exactly these (a test compares the two).

The partitions of `events` live in the schema `hot`, one table a tenant and one leaf a window; they are
made by `db.partitions`, not by migrations.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP, UUID

__all__ = [
    "certificates",
    "deployment",
    "events",
    "governance",
    "governor",
    "heads",
    "holds",
    "imports",
    "jobs",
    "metadata",
    "policies",
    "pulses",
    "quarantine",
    "removals",
    "restores",
    "run_entries",
    "runs",
    "segments",
    "signing_keys",
    "tasks",
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
    # what its next window is aligned to: the policy's unit, brought here when the policy comes into force,
    # because every append looks at it
    sa.Column("window_unit", sa.Text, nullable=False),
    # active, closing (being offboarded: takes no more events) or closed (everything destroyed; the name
    # stays taken, because its certificates do)
    sa.Column("state", sa.Text, nullable=False, server_default="active"),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("tenant_id ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="slug"),
    sa.CheckConstraint("window_unit IN ('hour', 'day', 'week', 'month')", name="window_unit"),
    sa.CheckConstraint("state IN ('active', 'closing', 'closed')", name="state"),
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
    # no more events are taken (the tenant is being offboarded). Here and not with the tenant's state: who
    # has waited for this row's lock sees its latest version, but an old one of other rows
    sa.Column("closed", sa.Boolean, nullable=False, server_default=sa.text("false")),
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
    # counts the changes of what is already archived (moved to another target, repaired, expired), so that
    # readers know when a list of segments that they keep is out of date
    sa.Column("catalog_version", sa.BigInteger, nullable=False, server_default="0"),
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
    sa.Column("expired_at", TIMESTAMP(timezone=True)),
    # when it was first listed as expired; it is destroyed no sooner than a notice time after that
    sa.Column("listed_us", sa.BigInteger),
    # null while open; then the target where it is to go, once archived the one where it is
    sa.Column("target", sa.Text),
    # targets to which a move began to copy it: objects may lie there that nothing else names
    sa.Column("copying_to", sa.ARRAY(sa.Text), nullable=False, server_default="{}"),
    # the shape of its events (model.quality.Profile); null: not taken
    sa.Column("profile", JSONB),
    sa.CheckConstraint("state IN ('open', 'sealed', 'archived', 'dropped', 'expired')", name="state"),
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
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("hash_before", BYTEA, nullable=False),
    sa.Column("hash_after", BYTEA, nullable=False),
    sa.Column("min_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("max_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", BYTEA, nullable=False),
    sa.Column("schema_version", sa.Integer, nullable=False),
    # a Bloom filter over entity_id (archive.bloom); null: it would not tell them apart
    sa.Column("entity_filter", BYTEA),
    # when its bytes were last read whole and found right: when it came here, then by scrubs; null: not known
    sa.Column("scrubbed_at", TIMESTAMP(timezone=True), server_default=sa.func.now()),
    sa.UniqueConstraint("target", "key"),
    sa.ForeignKeyConstraint(
        ["tenant_id", "window_from"],
        ["windows.tenant_id", "windows.window_from"],
        name="segments_window_fk",
    ),
    sa.CheckConstraint("first_seq <= last_seq", name="range"),
)

# Versions of the deployment's default policy (tenant_id null) and of the tenants' own; never changed.
policies = sa.Table(
    "policies",
    metadata,
    sa.Column("policy_no", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), index=True),
    sa.Column("document", JSONB, nullable=False),
    sa.Column("effective_us", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # how many events it destroys sooner, as confirmed; null: no confirmation was needed
    sa.Column("confirmed_events", sa.BigInteger),
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("hold_id", UUID, primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("placed_by", sa.Text, nullable=False),
    sa.Column("placed_us", sa.BigInteger, nullable=False),
    sa.Column("scope", JSONB, nullable=False),
    # null: in force
    sa.Column("released_us", sa.BigInteger),
    sa.Column("released_by", sa.Text),
    sa.Column("release_reason", sa.Text),
    sa.UniqueConstraint("tenant_id", "name"),
    sa.CheckConstraint(
        "(released_us IS NULL) = (released_by IS NULL) AND (released_us IS NULL) = (release_reason IS NULL)",
        name="released",
    ),
)

# Every change of a policy or a hold, in order; each is copied to the default target, so that a catalog
# rebuilt from the targets knows them too.
governance = sa.Table(
    "governance",
    metadata,
    sa.Column("entry_no", sa.BigInteger, primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("tenant_id", sa.Text),  # null: about the deployment
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("document", JSONB, nullable=False),
    sa.Column("mirrored", sa.Boolean, nullable=False, server_default=sa.text("false")),
)

# The public halves of every key that signed something of this store.
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("key_id", sa.Text, primary_key=True),
    sa.Column("public_key", BYTEA, nullable=False),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
)

# What stands for destroyed events: signed, and chained per tenant. `envelope` is the DSSE envelope.
certificates = sa.Table(
    "certificates",
    metadata,
    _tenant_key(),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("window_from", TIMESTAMP(timezone=True)),  # null: the whole log
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("hash_before", BYTEA, nullable=False),
    sa.Column("hash_after", BYTEA, nullable=False),
    sa.Column("payload_sha256", BYTEA, nullable=False),
    sa.Column("envelope", BYTEA, nullable=False),
    sa.Column("issued_us", sa.BigInteger, nullable=False),
    # the target that was given a copy of the envelope; null: none yet
    sa.Column("stored_in", sa.Text),
    sa.CheckConstraint("kind IN ('expired', 'offboarded')", name="kind"),
)

# Objects that the catalog no longer names and that are to be deleted: former copies of moved segments, and
# expired ones. A row stays when it is done: what was once removed is never written again under its key, so
# that a deletion which comes late (a worker that was stopped) can only find nothing.
removals = sa.Table(
    "removals",
    metadata,
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("window_from", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("first_seq", sa.BigInteger, nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("min_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("max_recorded_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", BYTEA, nullable=False),
    sa.Column("entity_filter", BYTEA),
    sa.Column("requested_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("removed_at", TIMESTAMP(timezone=True)),  # null: still to be done
    sa.CheckConstraint("reason IN ('moved', 'expired', 'offboarded')", name="reason"),
)

# Objects in a target that are not what the catalog names: damaged, or unknown. Never deleted, never read.
quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("target", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("tenant_id", sa.Text),  # null: its key names no tenant
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("found_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
)

# Windows that were brought back for a time, apart from the log.
restores = sa.Table(
    "restores",
    metadata,
    sa.Column("restore_id", UUID, primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("window_from", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Column("removed_at", TIMESTAMP(timezone=True)),  # null: still there
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", UUID, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("started_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("finished_at", TIMESTAMP(timezone=True)),
    sa.Column("now_us", sa.BigInteger, nullable=False),
    # who asked for it: a command, the scheduler
    sa.Column("requested_by", sa.Text, nullable=False),
    # the advisory lock of the process that plans it
    sa.Column("holder", sa.BigInteger, nullable=False),
    # planning, then running until its last task has ended; a run whose processes died stays so until
    # others have done its tasks
    sa.Column("status", sa.Text, nullable=False),
    sa.CheckConstraint(
        "status IN ('planning', 'running', 'completed', 'failed', 'interrupted')", name="status"
    ),
)

run_entries = sa.Table(
    "run_entries",
    metadata,
    sa.Column("run_id", UUID, sa.ForeignKey("runs.run_id"), primary_key=True),
    # numbers the entries of all runs; within a run it is their order
    sa.Column("entry_no", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("tenant_id", sa.Text),  # null: about the whole run
    sa.Column("window_from", TIMESTAMP(timezone=True)),  # null: about no one window
    sa.Column("detail", JSONB, nullable=False),
    sa.Index("run_entries_tenant_ix", "tenant_id", "run_id"),
    sa.Index("run_entries_entry_no_ix", "entry_no"),
)

# What a run has to do, a window at a time. Whoever holds the lease works on it; `fence` rises with each
# claim, and every change made under a claim looks first whether its fence still stands.
tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("run_id", UUID, sa.ForeignKey("runs.run_id"), nullable=False, index=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("window_from", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="waiting"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("not_before", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("holder", sa.BigInteger),  # null: nobody; else the worker's advisory lock
    sa.Column("leased_until", TIMESTAMP(timezone=True)),
    sa.Column("error", sa.Text),  # null unless failed
    sa.CheckConstraint("action IN ('archive', 'move', 'expire')", name="action"),
    sa.CheckConstraint("state IN ('waiting', 'running', 'done', 'failed', 'blocked')", name="state"),
    sa.CheckConstraint(
        "(state = 'running') = (holder IS NOT NULL) AND (holder IS NULL) = (leased_until IS NULL)",
        name="lease",
    ),
)

# One unfinished task for a window at any time, and the claim's way to the next one.
sa.Index(
    "tasks_unfinished_uq",
    tasks.c.tenant_id,
    tasks.c.window_from,
    unique=True,
    postgresql_where=tasks.c.state.in_(["waiting", "running"]),
)
sa.Index("tasks_claim_ix", tasks.c.task_id, postgresql_where=tasks.c.state.in_(["waiting", "running"]))

# When the scheduler last began each job, so that what was missed while nobody led is caught up once.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("last_started_us", sa.BigInteger, nullable=False),
)

# How appends feel in each process that serves them; old rows are of processes that have ended.
pulses = sa.Table(
    "pulses",
    metadata,
    sa.Column("process", UUID, primary_key=True),
    sa.Column("at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("appends", sa.Integer, nullable=False),
    sa.Column("p50_ms", sa.Double, nullable=False),
    sa.Column("p99_ms", sa.Double, nullable=False),
)

# One row: how many tasks may be worked on at once in the whole deployment, and why so many.
governor = sa.Table(
    "governor",
    metadata,
    sa.Column("one", sa.Boolean, primary_key=True, server_default=sa.text("true")),
    sa.Column("parallelism", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("changed_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    # when the governor last looked
    sa.Column("felt_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("one", name="one"),
    sa.CheckConstraint("parallelism >= 0", name="parallelism"),
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
