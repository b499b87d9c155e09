"""Take the type of an entity as a value, whatever characters it has.

The statement that looks into the entity index was put together in two goes, and a % in the type was read in
the second one as a place to put another value at: an error, or, since values can be put there without quotes,
a statement that the caller wrote.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

ENTITY_SEQS = """
CREATE OR REPLACE FUNCTION hot.entity_seqs(
    given_type text, given_id text, first_seq bigint, last_seq bigint, descending boolean, most bigint
) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One format of constant texts: a value that is put in is never read as a format itself.
    RETURN QUERY EXECUTE format(
        'SELECT seq FROM public.events WHERE tenant_id = %1$L AND entity_id = %2$L'
        ' AND hashtextextended(entity_id, 0) = hashtextextended(%2$L, 0) AND seq BETWEEN %3$s AND %4$s'
        || CASE WHEN given_type IS NULL THEN '' ELSE ' AND entity_type = %7$L' END
        || ' ORDER BY seq %5$s LIMIT %6$L',
        hot.current_tenant(), given_id, first_seq, last_seq,
        CASE WHEN descending THEN 'DESC' ELSE 'ASC' END, most, given_type);
END $$;
"""


def upgrade() -> None:
    op.execute(ENTITY_SEQS)


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
