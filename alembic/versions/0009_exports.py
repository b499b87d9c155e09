"""Exports that are made in the background.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    moment = postgresql.TIMESTAMP(timezone=True)
    op.create_table(
        "exports",
        sa.Column("export_id", sa.UUID(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("person", sa.Boolean(), nullable=False),
        sa.Column("asker_tenant", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("wanted", postgresql.JSONB(), nullable=False),
        sa.Column("seq_order", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("byte_order_mark", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("asked_at", moment, nullable=False),
        sa.Column("started_at", moment, nullable=True),
        sa.Column("finished_at", moment, nullable=True),
        sa.Column("expires_at", moment, nullable=True),
        sa.Column("leased_until", moment, nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lost", sa.Integer(), server_default="0", nullable=False),
        sa.Column("events", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("looked_at", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("through_seq", sa.BigInteger(), nullable=True),
        sa.Column("gone", postgresql.JSONB(), server_default="[]", nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("sha256", postgresql.BYTEA(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'making', 'ready', 'failed', 'expired', 'cancelled')",
            name=op.f("exports_state_ck"),
        ),
        sa.CheckConstraint("(state = 'making') = (leased_until IS NOT NULL)", name=op.f("exports_lease_ck")),
        sa.CheckConstraint(
            "state <> 'ready' OR (sha256 IS NOT NULL AND expires_at IS NOT NULL)",
            name=op.f("exports_ready_ck"),
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f("exports_tenant_id_fk")),
        sa.PrimaryKeyConstraint("export_id", name=op.f("exports_pk")),
    )
    op.create_index("exports_tenant_id", "exports", ["tenant_id", "export_id"])
    op.create_index(
        "exports_open",
        "exports",
        ["asked_at"],
        postgresql_where=sa.text("state IN ('waiting', 'making', 'ready')"),
    )


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
