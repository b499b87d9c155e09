"""The table of exports that are made in the background."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB, TIMESTAMP, UUID

from eventstore.db.tables import metadata

__all__ = ["exports"]

# `attempt` rises with each claim: whoever made an earlier one can change nothing any more.
exports = sa.Table(
    "exports",
    metadata,
    sa.Column("export_id", UUID(as_uuid=True), primary_key=True),
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), nullable=False),
    sa.Column("asked_by", sa.Text, nullable=False),  # a principal's subject
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("person", sa.Boolean, nullable=False),
    sa.Column("asker_tenant", sa.Text),  # null: who asked is of the deployment
    sa.Column("reason", sa.Text),  # null: none was given
    sa.Column("wanted", JSONB, nullable=False),
    sa.Column("seq_order", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("byte_order_mark", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("asked_at", TIMESTAMP(timezone=True), nullable=False),
    sa.Column("started_at", TIMESTAMP(timezone=True)),  # null: not begun
    sa.Column("finished_at", TIMESTAMP(timezone=True)),  # null: not ended
    sa.Column("expires_at", TIMESTAMP(timezone=True)),  # null: never was ready
    sa.Column("leased_until", TIMESTAMP(timezone=True)),  # null: nobody makes it
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # how often whoever made it died
    sa.Column("lost", sa.Integer, nullable=False, server_default="0"),
    sa.Column("events", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("looked_at", sa.BigInteger, nullable=False, server_default="0"),  # seqs of the log
    sa.Column("through_seq", sa.BigInteger),  # null: not begun
    sa.Column("gone", JSONB, nullable=False, server_default="[]"),  # destroyed before: [[first, last], …]
    sa.Column("host", sa.Text),  # null: nobody has made it
    sa.Column("sha256", BYTEA),  # null: not ready
    sa.Column("error", sa.Text),  # null: none
    sa.CheckConstraint(
        "state IN ('waiting', 'making', 'ready', 'failed', 'expired', 'cancelled')", name="state"
    ),
    sa.CheckConstraint("(state = 'making') = (leased_until IS NOT NULL)", name="lease"),
    sa.CheckConstraint("state <> 'ready' OR (sha256 IS NOT NULL AND expires_at IS NOT NULL)", name="ready"),
    sa.Index("exports_tenant_id", "tenant_id", "export_id"),
    sa.Index("exports_open", "asked_at", postgresql_where=sa.text("state IN ('waiting', 'making', 'ready')")),
)
