"""API keys.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('api_keys',
    sa.Column('key_no', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('key_id', sa.Text(), nullable=False),
    sa.Column('digest', postgresql.BYTEA(), nullable=False),
    sa.Column('tenant_id', sa.Text(), nullable=True),
    sa.Column('role', sa.Text(), nullable=False),
    sa.Column('label', sa.Text(), nullable=False),
    sa.Column('limits', postgresql.JSONB(), nullable=False),
    sa.Column('created_us', sa.BigInteger(), nullable=False),
    sa.Column('created_by', sa.Text(), nullable=False),
    sa.Column('expires_us', sa.BigInteger(), nullable=True),
    sa.Column('replaces', sa.Text(), nullable=True),
    sa.Column('revoked_us', sa.BigInteger(), nullable=True),
    sa.Column('revoked_by', sa.Text(), nullable=True),
    sa.Column('last_used_us', sa.BigInteger(), nullable=True),
    sa.Column('changed_no', sa.BigInteger(), nullable=False),
    sa.CheckConstraint("role IN ('writer', 'reader', 'compliance', 'operator', 'administrator')", name=op.f('api_keys_role_ck')),
    sa.CheckConstraint('octet_length(digest) = 32', name=op.f('api_keys_digest_ck')),
    sa.CheckConstraint('(revoked_us IS NULL) = (revoked_by IS NULL)', name=op.f('api_keys_revoked_ck')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.tenant_id'], name=op.f('api_keys_tenant_id_fk')),
    sa.PrimaryKeyConstraint('key_no', name=op.f('api_keys_pk')),
    sa.UniqueConstraint('key_id', name=op.f('api_keys_key_id_uq'))
    )
    op.create_index(op.f('api_keys_changed_no_ix'), 'api_keys', ['changed_no'], unique=False)
    op.create_index(op.f('api_keys_tenant_id_ix'), 'api_keys', ['tenant_id'], unique=False)
