"""Retention as a system: policies with tiers, holds, certificates, tasks with leases, and their journals.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('governance',
    sa.Column('entry_no', sa.BigInteger(), nullable=False),
    sa.Column('at_us', sa.BigInteger(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=True),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('document', postgresql.JSONB(), nullable=False),
    sa.Column('mirrored', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.PrimaryKeyConstraint('entry_no', name=op.f('governance_pk'))
    )
    op.create_table('governor',
    sa.Column('one', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('parallelism', sa.Integer(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('changed_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('felt_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint('one', name=op.f('governor_one_ck')),
    sa.CheckConstraint('parallelism >= 0', name=op.f('governor_parallelism_ck')),
    sa.PrimaryKeyConstraint('one', name=op.f('governor_pk'))
    )
    op.create_table('jobs',
    sa.Column('job', sa.Text(), nullable=False),
    sa.Column('last_started_us', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('job', name=op.f('jobs_pk'))
    )
    op.create_table('pulses',
    sa.Column('process', sa.UUID(), nullable=False),
    sa.Column('at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('appends', sa.Integer(), nullable=False),
    sa.Column('p50_ms', sa.Double(), nullable=False),
    sa.Column('p99_ms', sa.Double(), nullable=False),
    sa.PrimaryKeyConstraint('process', name=op.f('pulses_pk'))
    )
    op.create_table('quarantine',
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('found_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('target', 'key', name=op.f('quarantine_pk'))
    )
    op.create_table('signing_keys',
    sa.Column('key_id', sa.Text(), nullable=False),
    sa.Column('public_key', postgresql.BYTEA(), nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('key_id', name=op.f('signing_keys_pk'))
    )
    op.create_table('certificates',
    sa.Column('tenant_id', sa.Text(), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('window_from', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('first_seq', sa.BigInteger(), nullable=False),
    sa.Column('last_seq', sa.BigInteger(), nullable=False),
    sa.Column('hash_before', postgresql.BYTEA(), nullable=False),
    sa.Column('hash_after', postgresql.BYTEA(), nullable=False),
    sa.Column('payload_sha256', postgresql.BYTEA(), nullable=False),
    sa.Column('envelope', postgresql.BYTEA(), nullable=False),
    sa.Column('issued_us', sa.BigInteger(), nullable=False),
    sa.Column('stored_in', sa.Text(), nullable=True),
    sa.CheckConstraint("kind IN ('expired', 'offboarded')", name=op.f('certificates_kind_ck')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('certificates_tenant_id_fk')),
    sa.PrimaryKeyConstraint('tenant_id', 'number', name=op.f('certificates_pk'))
    )
    op.create_table('holds',
    sa.Column('hold_id', sa.UUID(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('placed_by', sa.Text(), nullable=False),
    sa.Column('placed_us', sa.BigInteger(), nullable=False),
    sa.Column('scope', postgresql.JSONB(), nullable=False),
    sa.Column('released_us', sa.BigInteger(), nullable=True),
    sa.Column('released_by', sa.Text(), nullable=True),
    sa.Column('release_reason', sa.Text(), nullable=True),
    sa.CheckConstraint('(released_us IS NULL) = (released_by IS NULL) AND (released_us IS NULL) = (release_reason IS NULL)', name=op.f('holds_released_ck')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('holds_tenant_id_fk')),
    sa.PrimaryKeyConstraint('hold_id', name=op.f('holds_pk')),
    sa.UniqueConstraint('tenant_id', 'name', name=op.f('holds_tenant_id_uq'))
    )
    op.create_table('policies',
    sa.Column('policy_no', sa.BigInteger(), sa.Identity(always=False), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=True),
    sa.Column('document', postgresql.JSONB(), nullable=False),
    sa.Column('effective_us', sa.BigInteger(), nullable=False),
    sa.Column('created_us', sa.BigInteger(), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('confirmed_events', sa.BigInteger(), nullable=True),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('policies_tenant_id_fk')),
    sa.PrimaryKeyConstraint('policy_no', name=op.f('policies_pk'))
    )
    op.create_index(op.f('policies_tenant_id_ix'), 'policies', ['tenant_id'], unique=False)
    op.create_table('removals',
    sa.Column('target', sa.Text(), nullable=False),
    sa.Column('key', sa.Text(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=False),
    sa.Column('window_from', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('first_seq', sa.BigInteger(), nullable=False),
    sa.Column('last_seq', sa.BigInteger(), nullable=False),
    sa.Column('min_recorded_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('max_recorded_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('size_bytes', sa.BigInteger(), nullable=False),
    sa.Column('sha256', postgresql.BYTEA(), nullable=False),
    sa.Column('entity_filter', postgresql.BYTEA(), nullable=True),
    sa.Column('requested_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('removed_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("reason IN ('moved', 'expired', 'offboarded')", name=op.f('removals_reason_ck')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('removals_tenant_id_fk')),
    sa.PrimaryKeyConstraint('target', 'key', name=op.f('removals_pk'))
    )
    op.create_table('restores',
    sa.Column('restore_id', sa.UUID(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=False),
    sa.Column('window_from', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('place', sa.Text(), nullable=False),
    sa.Column('events', sa.BigInteger(), nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('expires_us', sa.BigInteger(), nullable=False),
    sa.Column('removed_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('restores_tenant_id_fk')),
    sa.PrimaryKeyConstraint('restore_id', name=op.f('restores_pk'))
    )
    op.create_table('tasks',
    sa.Column('task_id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('run_id', sa.UUID(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=False),
    sa.Column('window_from', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('state', sa.Text(), server_default='waiting', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('not_before', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('fence', sa.BigInteger(), server_default='0', nullable=False),
    sa.Column('holder', sa.BigInteger(), nullable=True),
    sa.Column('leased_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.CheckConstraint("(state = 'running') = (holder IS NOT NULL) AND (holder IS NULL) = (leased_until IS NULL)", name=op.f('tasks_lease_ck')),
    sa.CheckConstraint("action IN ('archive', 'move', 'expire')", name=op.f('tasks_action_ck')),
    sa.CheckConstraint("state IN ('waiting', 'running', 'done', 'failed', 'blocked')", name=op.f('tasks_state_ck')),
    sa.ForeignKeyConstraint(['run_id'], ['runs.run_id'], name=op.f('tasks_run_id_fk')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('tasks_tenant_id_fk')),
    sa.PrimaryKeyConstraint('task_id', name=op.f('tasks_pk'))
    )
    op.create_index('tasks_claim_ix', 'tasks', ['task_id'], unique=False, postgresql_where=sa.text("state IN ('waiting', 'running')"))
    op.create_index(op.f('tasks_run_id_ix'), 'tasks', ['run_id'], unique=False)
    op.create_index('tasks_unfinished_uq', 'tasks', ['tenant_id', 'window_from'], unique=True, postgresql_where=sa.text("state IN ('waiting', 'running')"))

    op.execute(
        "INSERT INTO policies (tenant_id, document, effective_us, created_us, actor, reason)"
        " SELECT tenant_id, jsonb_build_object('window', window_unit, 'hot_for',"
        " (hot_for_us / 1000000)::text || 's'), -62135596800000000, us, 'migration',"
        " 'as it was before policies had tiers'"
        " FROM (SELECT *, (extract(epoch FROM created_at) * 1000000)::bigint AS us FROM tenants) t"
        " ORDER BY tenant_no"
    )
    # The record of governance begins with what there is: each tenant, and its policy.
    op.execute(
        "INSERT INTO governance (entry_no, at_us, kind, tenant_id, actor, document)"
        " SELECT 2 * row_number() OVER (ORDER BY t.tenant_no) - 1, p.created_us, 'tenant_created',"
        " t.tenant_id, 'migration', jsonb_build_object('unit', t.window_unit, 'tenant_no', t.tenant_no)"
        " FROM tenants t JOIN policies p USING (tenant_id)"
    )
    op.execute(
        "INSERT INTO governance (entry_no, at_us, kind, tenant_id, actor, document)"
        " SELECT 2 * row_number() OVER (ORDER BY t.tenant_no), p.created_us, 'policy', t.tenant_id,"
        " 'migration', jsonb_build_object('policy_no', p.policy_no, 'policy', p.document,"
        " 'effective', '0001-01-01T00:00:00.000000Z', 'reason', p.reason, 'confirmed_events', NULL)"
        " FROM tenants t JOIN policies p USING (tenant_id)"
    )
    op.drop_constraint(op.f("tenants_hot_for_ck"), "tenants", type_="check")
    op.drop_column("tenants", "hot_for_us")
    op.add_column("tenants", sa.Column("state", sa.Text(), server_default="active", nullable=False))
    op.create_check_constraint(
        op.f("tenants_state_ck"), "tenants", "state IN ('active', 'closing', 'closed')"
    )

    op.add_column("heads", sa.Column("closed", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column(
        "watermarks", sa.Column("catalog_version", sa.BigInteger(), server_default="0", nullable=False)
    )
    op.add_column("windows", sa.Column("expired_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column("windows", sa.Column("listed_us", sa.BigInteger(), nullable=True))
    op.add_column("windows", sa.Column("target", sa.Text(), nullable=True))
    op.add_column(
        "windows", sa.Column("copying_to", sa.ARRAY(sa.Text()), server_default="{}", nullable=False)
    )
    op.add_column("windows", sa.Column("profile", postgresql.JSONB(), nullable=True))
    op.execute("UPDATE windows SET target = 'archive' WHERE state <> 'open'")
    op.drop_constraint(op.f("windows_state_ck"), "windows", type_="check")
    op.create_check_constraint(
        op.f("windows_state_ck"), "windows", "state IN ('open', 'sealed', 'archived', 'dropped', 'expired')"
    )
    op.add_column("segments", sa.Column("target", sa.Text(), server_default="archive", nullable=False))
    op.alter_column("segments", "target", server_default=None)
    op.add_column("segments", sa.Column("scrubbed_at", postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.alter_column("segments", "scrubbed_at", server_default=sa.text("now()"))
    op.drop_constraint(op.f("segments_key_uq"), "segments", type_="unique")
    op.create_unique_constraint(op.f("segments_target_uq"), "segments", ["target", "key"])

    # Runs of before had no tasks: one that is still marked as running will never end by itself.
    op.add_column("runs", sa.Column("kind", sa.Text(), server_default="retention", nullable=False))
    op.alter_column("runs", "kind", server_default=None)
    op.add_column("runs", sa.Column("requested_by", sa.Text(), server_default="unknown", nullable=False))
    op.alter_column("runs", "requested_by", server_default=None)
    op.add_column("runs", sa.Column("holder", sa.BigInteger(), server_default="0", nullable=False))
    op.alter_column("runs", "holder", server_default=None)
    op.drop_constraint(op.f("runs_status_ck"), "runs", type_="check")
    op.create_check_constraint(
        op.f("runs_status_ck"),
        "runs",
        "status IN ('planning', 'running', 'completed', 'failed', 'interrupted')",
    )
    op.execute("UPDATE runs SET status = 'interrupted', finished_at = now() WHERE status = 'running'")
    # Entries are numbered over all runs from now on: several processes write one run's journal.
    op.execute(
        "UPDATE run_entries SET kind = CASE kind WHEN 'tenant_failed' THEN 'warning' ELSE kind END"
    )
    op.alter_column("run_entries", "entry_no", type_=sa.BigInteger(), existing_nullable=False)
    op.execute("ALTER TABLE run_entries ALTER COLUMN entry_no ADD GENERATED ALWAYS AS IDENTITY")
    op.execute(
        "SELECT setval(pg_get_serial_sequence('run_entries', 'entry_no'),"
        " (SELECT coalesce(max(entry_no), 0) + 1 FROM run_entries), false)"
    )
    op.create_index("run_entries_tenant_ix", "run_entries", ["tenant_id", "run_id"])
    op.create_index("run_entries_entry_no_ix", "run_entries", ["entry_no"])


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
