"""The tables of who calls: API keys, and what callers have used up."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA, JSONB

from eventstore.db.tables import metadata

__all__ = ["api_keys", "usage"]

# A key that ended stays: its id is never used again, and lists say what it was.
api_keys = sa.Table(
    "api_keys",
    metadata,
    # orders them as they were made
    sa.Column("key_no", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False, unique=True),
    sa.Column("digest", BYTEA, nullable=False),  # SHA-256 of the key's text
    # null: a key of the deployment
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), index=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("limits", JSONB, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("expires_us", sa.BigInteger),  # null: never
    sa.Column("replaces", sa.Text),  # null: not made by rotation; else the key_id before it
    sa.Column("revoked_us", sa.BigInteger),  # null: not revoked
    sa.Column("revoked_by", sa.Text),
    sa.Column("last_used_us", sa.BigInteger),  # null: not used yet
    # the entry in the record of governance that last changed it: the highest one rises with every change
    sa.Column("changed_no", sa.BigInteger, nullable=False, index=True),
    sa.CheckConstraint(
        "role IN ('writer', 'reader', 'compliance', 'operator', 'administrator')", name="role"
    ),
    sa.CheckConstraint("octet_length(digest) = 32", name="digest"),
    sa.CheckConstraint("(revoked_us IS NULL) = (revoked_by IS NULL)", name="revoked"),
)

# Bytes of the archive that a caller scanned in a day of UTC. `subject` is a principal's: of a key, or of a
# person who has none.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("archive_bytes", sa.BigInteger, nullable=False),
    sa.CheckConstraint("archive_bytes >= 0", name="archive_bytes"),
)
