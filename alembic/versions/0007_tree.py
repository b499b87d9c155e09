"""The Merkle tree of each log, and its checkpoints.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# The application reads its tenant's tree, to prove events; only the owner, who makes checkpoints and destroys
# windows, writes it.
POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON {table} TO eventstore_app
    USING (tenant_id = (SELECT hot.current_tenant()));
GRANT SELECT ON {table} TO eventstore_app;
"""


def _of_tenant(table: str, *columns: str) -> tuple[sa.Constraint, ...]:
    return (
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name=op.f(f"{table}_tenant_id_fk")),
        sa.PrimaryKeyConstraint("tenant_id", *columns, name=op.f(f"{table}_pk")),
    )


def upgrade() -> None:
    op.create_table(
        "trees",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", postgresql.BYTEA(), nullable=True),
        sa.CheckConstraint("size % 256 = 0", name=op.f("trees_blocks_ck")),
        *_of_tenant("trees"),
    )
    op.create_table(
        "tree_tiles",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("tile", sa.BigInteger(), nullable=False),
        sa.Column("hashes", postgresql.BYTEA(), nullable=False),
        sa.CheckConstraint("level >= 0 AND level % 8 = 0", name=op.f("tree_tiles_level_ck")),
        sa.CheckConstraint(
            "length(hashes) BETWEEN 32 AND 8192 AND length(hashes) % 32 = 0",
            name=op.f("tree_tiles_hashes_ck"),
        ),
        *_of_tenant("tree_tiles", "level", "tile"),
    )
    op.create_table(
        "tree_subtrees",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", postgresql.BYTEA(), nullable=False),
        *_of_tenant("tree_subtrees", "level", "number"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("root", postgresql.BYTEA(), nullable=False),
        sa.Column("last_hash", postgresql.BYTEA(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("made_us", sa.BigInteger(), nullable=False),
        sa.Column("published_to", postgresql.BYTEA(), nullable=True),
        sa.CheckConstraint("size > 0", name=op.f("checkpoints_size_ck")),
        *_of_tenant("checkpoints", "size"),
    )
    for table in ("trees", "tree_tiles", "tree_subtrees", "checkpoints"):
        op.execute(POLICY.format(table=table))


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
