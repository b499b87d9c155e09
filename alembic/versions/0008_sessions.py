"""Sessions of the console.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("digest", postgresql.BYTEA(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=True),
        sa.Column("tenant_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("made_us", sa.BigInteger(), nullable=False),
        sa.Column("seen_us", sa.BigInteger(), nullable=False),
        sa.Column("expires_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("sessions_digest_ck")),
        sa.CheckConstraint(
            "(key_id IS NULL) = (subject IS NOT NULL) AND (subject IS NULL) = (role IS NULL)",
            name=op.f("sessions_whose_ck"),
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.key_id"], name=op.f("sessions_key_id_fk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("sessions_pk")),
    )
    op.create_index("sessions_key_id", "sessions", ["key_id"])
    op.create_index("sessions_expires_us", "sessions", ["expires_us"])


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
