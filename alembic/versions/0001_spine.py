"""The spine: tenants, logs, windows, segments, runs and imports.

Revision ID: 0001
Revises: none
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Retention removes a window by dropping its partition; nothing else ever changes a stored event.
REFUSE_CHANGE = """
CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never modified or deleted: % on %.% refused',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'retention drops whole windows after they were archived and verified';
END $$;
CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change();
ALTER TABLE events ENABLE ALWAYS TRIGGER refuse_change;
"""


def upgrade() -> None:
    op.execute("CREATE SCHEMA hot")
    op.create_table(
        "events",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("event_id", sa.UUID(), nullable=False),
        sa.Column("recorded_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("occurred_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("entity_type", sa.Text(), nullable=False),
        sa.Column("entity_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("old_value", sa.Text(), nullable=True),
        sa.Column("new_value", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("workspace_id", sa.Text(), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=True),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        postgresql_partition_by="LIST (tenant_id)",
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column(
            "started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("finished_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("now_us", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.CheckConstraint("status IN ('running', 'completed', 'failed')", name=op.f("runs_status_ck")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("runs_pk")),
    )
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("tenant_no", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("window_unit", sa.Text(), nullable=False),
        sa.Column("hot_for_us", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.CheckConstraint("tenant_id ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name=op.f("tenants_slug_ck")),
        sa.CheckConstraint(
            "window_unit IN ('hour', 'day', 'week', 'month')", name=op.f("tenants_window_unit_ck")
        ),
        sa.CheckConstraint("hot_for_us >= 0", name=op.f("tenants_hot_for_ck")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("tenants_pk")),
        sa.UniqueConstraint("tenant_no", name=op.f("tenants_tenant_no_uq")),
    )
    op.create_table(
        "heads",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("last_recorded_us", sa.BigInteger(), nullable=False),
        sa.Column("id_lead_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("heads_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("heads_pk")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "imports",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("source_sha256", postgresql.BYTEA(), nullable=False),
        sa.Column("rows_read", sa.BigInteger(), nullable=False),
        sa.Column("rows_stored", sa.BigInteger(), nullable=False),
        sa.Column("rows_rejected", sa.BigInteger(), nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column(
            "updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("imports_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", "source_sha256", name=op.f("imports_pk")),
    )
    op.create_table(
        "run_entries",
        sa.Column("run_id", sa.UUID(), nullable=False),
        sa.Column("entry_no", sa.Integer(), nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=True),
        sa.Column("window_from", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("detail", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.run_id"], name=op.f("run_entries_run_id_fk")),
        sa.PrimaryKeyConstraint("run_id", "entry_no", name=op.f("run_entries_pk")),
    )
    op.create_table(
        "watermarks",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("archived_through", sa.BigInteger(), nullable=False),
        sa.Column("archived_hash", postgresql.BYTEA(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("watermarks_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", name=op.f("watermarks_pk")),
    )
    op.create_table(
        "windows",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("window_from", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("window_to", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("leaf", sa.Text(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=True),
        sa.Column("hash_before", postgresql.BYTEA(), nullable=True),
        sa.Column("hash_after", postgresql.BYTEA(), nullable=True),
        sa.Column("sealed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("dropped_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'open') = (last_seq IS NULL) AND (last_seq IS NULL) = (hash_before IS NULL) AND (last_seq IS NULL) = (hash_after IS NULL)",
            name=op.f("windows_frozen_ck"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'sealed', 'archived', 'dropped')", name=op.f("windows_state_ck")
        ),
        sa.CheckConstraint("window_from < window_to", name=op.f("windows_span_ck")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("windows_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", "window_from", name=op.f("windows_pk")),
        sa.UniqueConstraint("leaf", name=op.f("windows_leaf_uq")),
    )
    op.create_table(
        "segments",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("window_from", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("hash_before", postgresql.BYTEA(), nullable=False),
        sa.Column("hash_after", postgresql.BYTEA(), nullable=False),
        sa.Column("min_recorded_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("max_recorded_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", postgresql.BYTEA(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("entity_filter", postgresql.BYTEA(), nullable=True),
        sa.CheckConstraint("first_seq <= last_seq", name=op.f("segments_range_ck")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "window_from"],
            ["windows.tenant_id", "windows.window_from"],
            name="segments_window_fk",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("segments_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", "first_seq", name=op.f("segments_pk")),
        sa.UniqueConstraint("key", name=op.f("segments_key_uq")),
    )
    op.create_table(
        "deployment",
        sa.Column("store_id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("store_id", name=op.f("deployment_pk")),
    )
    op.execute("INSERT INTO deployment DEFAULT VALUES")
    op.execute(REFUSE_CHANGE)


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
