"""The Merkle tree of each log, and its checkpoints.

Revision ID: 0007
Revises: 0006
"""

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
