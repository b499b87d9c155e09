"""What each caller has scanned of the archive in a day.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("archive_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("archive_bytes >= 0", name=op.f("usage_archive_bytes_ck")),
        sa.PrimaryKeyConstraint("subject", "day", name=op.f("usage_pk")),
    )
