"""The table of the console's sessions."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BYTEA

from eventstore.db.tables import metadata

__all__ = ["sessions"]

# A session is of a key, which is asked at every request, or of a person whom an issuer vouched for: then what
# the token said is kept until the token ends. Nothing here signs anybody in: the cookie's name is hashed.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", BYTEA, primary_key=True),  # SHA-256 of the cookie's name
    sa.Column("key_id", sa.Text, sa.ForeignKey("api_keys.key_id", ondelete="CASCADE")),  # null: a person's
    sa.Column("subject", sa.Text),  # null: a key's; else the principal's own three
    sa.Column("role", sa.Text),
    sa.Column("tenant_id", sa.Text),  # null: of the whole deployment, or a key's
    sa.Column("reason", sa.Text),  # null: none was given
    sa.Column("made_us", sa.BigInteger, nullable=False),
    sa.Column("seen_us", sa.BigInteger, nullable=False),  # exact to about a minute
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.CheckConstraint("octet_length(digest) = 32", name="digest"),
    sa.CheckConstraint(
        "(key_id IS NULL) = (subject IS NOT NULL) AND (subject IS NULL) = (role IS NULL)", name="whose"
    ),
    sa.Index("sessions_key_id", "key_id"),
    sa.Index("sessions_expires_us", "expires_us"),
)
