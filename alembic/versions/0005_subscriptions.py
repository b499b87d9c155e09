"""Named subscriptions, their members and cursors.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "subscriptions",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("wanted", postgresql.JSONB(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("lease_s", sa.Integer(), nullable=False),
        sa.Column(
            "created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint("slots BETWEEN 1 AND 64", name=op.f("subscriptions_slots_ck")),
        sa.CheckConstraint("lease_s BETWEEN 1 AND 3600", name=op.f("subscriptions_lease_s_ck")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.tenant_id"], name=op.f("subscriptions_tenant_id_fk")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("subscriptions_pk")),
    )
    op.create_table(
        "subscription_slots",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("delivered", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("member", sa.Text(), nullable=True),
        sa.Column("leased_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(member IS NULL) = (leased_until IS NULL)", name=op.f("subscription_slots_lease_ck")
        ),
        sa.CheckConstraint("delivered >= cursor", name=op.f("subscription_slots_delivered_ck")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "name"],
            ["subscriptions.tenant_id", "subscriptions.name"],
            name=op.f("subscription_slots_tenant_id_fk"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", "slot", name=op.f("subscription_slots_pk")),
    )
    op.create_table(
        "subscription_members",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("member", sa.Text(), nullable=False),
        sa.Column("seen_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "name"],
            ["subscriptions.tenant_id", "subscriptions.name"],
            name=op.f("subscription_members_tenant_id_fk"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "name", "member", name=op.f("subscription_members_pk")),
    )
