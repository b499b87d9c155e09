"""The tables of subscriptions: what each wants, its slots with their cursors, and its members."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from eventstore.db.tables import metadata

__all__ = ["subscription_members", "subscription_slots", "subscriptions"]

subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("tenant_id", sa.Text, sa.ForeignKey("tenants.tenant_id"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("wanted", JSONB, nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("lease_s", sa.Integer, nullable=False),
    sa.Column("created_at", TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.CheckConstraint("slots BETWEEN 1 AND 64", name="slots"),
    sa.CheckConstraint("lease_s BETWEEN 1 AND 3600", name="lease_s"),
)


def _of_subscription() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", "name"], ["subscriptions.tenant_id", "subscriptions.name"], ondelete="CASCADE"
    )


# `cursor` is the seq up to which everything wanted was acknowledged, `delivered` up to which it was given to
# the member that holds the slot; `generation` rises with each claim.
subscription_slots = sa.Table(
    "subscription_slots",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    sa.Column("cursor", sa.BigInteger, nullable=False),
    sa.Column("delivered", sa.BigInteger, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("member", sa.Text),  # null: nobody's
    sa.Column("leased_until", TIMESTAMP(timezone=True)),
    _of_subscription(),
    sa.CheckConstraint("(member IS NULL) = (leased_until IS NULL)", name="lease"),
    sa.CheckConstraint("delivered >= cursor", name="delivered"),
)

subscription_members = sa.Table(
    "subscription_members",
    metadata,
    sa.Column("tenant_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("member", sa.Text, primary_key=True),
    sa.Column("seen_at", TIMESTAMP(timezone=True), nullable=False),
    _of_subscription(),
)
