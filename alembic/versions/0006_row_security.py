"""Roles that own nothing, and row-level security.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from eventstore.errors import SetupError

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Roles belong to the whole server: other databases of it, migrated at the same moment, may want the same one.
ROLE = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'eventstore_app') THEN
        CREATE ROLE eventstore_app NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
DO $$ BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_auth_members
         WHERE roleid = 'eventstore_app'::regrole AND member = current_user::regrole
    ) THEN
        EXECUTE format('GRANT eventstore_app TO %I', current_user);
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $$;
"""

# Whose rows a transaction may see. The setting holds the tenant's name and a proof that only who knows the
# key can make, so that SQL which was smuggled in cannot move on to another tenant.
CURRENT_TENANT = """
INSERT INTO scope_key (key)
    VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
CREATE FUNCTION hot.current_tenant() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    given text := current_setting('eventstore.tenant', true);
    name text := split_part(given, ':', 1);
    secret bytea;
BEGIN
    IF given IS NULL OR given = '' THEN
        RETURN NULL;
    END IF;
    SELECT k.key INTO secret FROM public.scope_key k;
    IF split_part(given, ':', 2) = encode(sha256(secret || sha256(secret || convert_to(name, 'UTF8'))), 'hex')
    THEN
        RETURN name;
    END IF;
    RETURN NULL;
END $$;
"""

# The sub-select is worked out once a statement, not once a row.
POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON {table} TO eventstore_app
    USING (tenant_id = (SELECT hot.current_tenant()));
GRANT SELECT ON {table} TO eventstore_app;
"""
TABLES = ("tenants", "heads", "watermarks", "windows", "segments", "certificates", "events")

# A leaf takes INSERT and COPY, which row-level security would refuse; so it has none, and nobody of the
# application may read it. Whose leaf it is, is looked at once a statement, before the first row.
LEAVES = """
CREATE FUNCTION hot.refuse_foreign() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.row_security_active('public.events'::pg_catalog.regclass::pg_catalog.oid)
       AND hot.current_tenant() IS DISTINCT FROM TG_ARGV[0] THEN
        RAISE EXCEPTION 'this partition belongs to another tenant' USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION hot.admit_leaf(tenant text, leaf text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE TRIGGER refuse_foreign BEFORE INSERT ON hot.%I FOR EACH STATEMENT'
        ' EXECUTE FUNCTION hot.refuse_foreign(%L)', leaf, tenant);
    EXECUTE format('ALTER TABLE hot.%I ENABLE ALWAYS TRIGGER refuse_foreign', leaf);
    EXECUTE format('GRANT INSERT ON hot.%I TO eventstore_app', leaf);
END $$;

-- The entity index keys a 64-bit hash instead of the text: 40 % smaller, and still in seq order.
CREATE FUNCTION hot.make_leaf(leaf text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TABLE hot.%I (LIKE public.events)', leaf);
    EXECUTE format('CREATE UNIQUE INDEX ON hot.%I (seq)', leaf);
    EXECUTE format('CREATE UNIQUE INDEX ON hot.%I (event_id)', leaf);
    EXECUTE format('CREATE INDEX ON hot.%I (hashtextextended(entity_id, 0), seq)', leaf);
    EXECUTE format(
        'CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON hot.%I'
        ' FOR EACH STATEMENT EXECUTE FUNCTION public.events_refuse_change()', leaf);
    EXECUTE format('ALTER TABLE hot.%I ENABLE ALWAYS TRIGGER refuse_change', leaf);
END $$;

CREATE FUNCTION hot.add_leaf(number int, leaf text, starts timestamptz, ends timestamptz)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC' AS $$
BEGIN
    IF to_regclass(format('hot.%I', leaf)) IS NULL THEN
        PERFORM hot.make_leaf(leaf);
    END IF;
    PERFORM hot.admit_leaf((SELECT t.tenant_id FROM public.tenants t WHERE t.tenant_no = number), leaf);
    EXECUTE format('ALTER TABLE hot.%I ATTACH PARTITION hot.%I FOR VALUES FROM (%L) TO (%L)',
        'events_' || number, leaf, starts, ends);
END $$;
"""

# What the application's role has to do with rights that it has not: each of them for the transaction's own
# tenant, and for nobody else.
DOORS = """
CREATE FUNCTION hot.add_own_leaf(leaf text, starts timestamptz, ends timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := hot.current_tenant();
    number int;
    seq bigint;
BEGIN
    SELECT t.tenant_no, h.last_seq INTO number, seq
      FROM public.heads h JOIN public.tenants t USING (tenant_id) WHERE h.tenant_id = tenant FOR UPDATE OF h;
    IF number IS NULL OR leaf !~ format('^events_%s_[0-9]{8}t[0-9]{6}$', number)
       OR ends - starts > interval '31 days'
       OR EXISTS (SELECT FROM public.windows w WHERE w.tenant_id = tenant
                     AND (w.window_to > starts OR w.first_seq > seq)) THEN
        RAISE EXCEPTION 'no such window can be begun' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM hot.add_leaf(number, leaf, starts, ends);
    INSERT INTO public.windows (tenant_id, window_from, window_to, state, leaf, first_seq)
        VALUES (tenant, starts, ends, 'open', leaf, seq + 1);
END $$;

-- For leaves that were made before there was this role.
CREATE FUNCTION hot.admit_own_leaf(leaf text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    tenant text := hot.current_tenant();
BEGIN
    IF NOT EXISTS (SELECT FROM public.windows w WHERE w.tenant_id = tenant AND w.state = 'open'
                      AND w.leaf = admit_own_leaf.leaf) THEN
        RAISE EXCEPTION 'no such window is open' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM hot.admit_leaf(tenant, leaf);
END $$;

-- Under row-level security Postgres keeps clear of the entity index: the hash in it is not marked as
-- leakproof, and only a superuser could mark it. The index is asked here instead.
CREATE FUNCTION hot.entity_seqs(
    given_type text, given_id text, first_seq bigint, last_seq bigint, descending boolean, most bigint
) RETURNS SETOF bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT seq FROM public.events WHERE tenant_id = %L AND entity_id = %L'
        ' AND hashtextextended(entity_id, 0) = hashtextextended(%L, 0) AND seq BETWEEN %s AND %s'
        || CASE WHEN given_type IS NULL THEN '' ELSE format(' AND entity_type = %L', given_type) END
        || ' ORDER BY seq %s LIMIT %L',
        hot.current_tenant(), given_id, given_id, first_seq, last_seq,
        CASE WHEN descending THEN 'DESC' ELSE 'ASC' END, most);
END $$;

-- VOLATILE, so that the statement in it plans, and locks the partitions, before it takes its snapshot:
-- watermark and rows then agree, whatever is dropped meanwhile.
CREATE FUNCTION hot.entity_versions(given_types text[], given_ids text[])
RETURNS TABLE (entity_type text, entity_id text, archived_through bigint, seq bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE format(
        'SELECT u.entity_type, u.entity_id, w.archived_through, last.seq'
        '  FROM public.watermarks w, unnest($1, $2) AS u(entity_type, entity_id)'
        '  LEFT JOIN LATERAL ('
        '    SELECT e.seq FROM public.events e'
        '     WHERE e.tenant_id = %1$L AND e.entity_type = u.entity_type AND e.entity_id = u.entity_id'
        '       AND hashtextextended(e.entity_id, 0) = hashtextextended(u.entity_id, 0)'
        '     ORDER BY e.seq DESC LIMIT 1) last ON true'
        ' WHERE w.tenant_id = %1$L', hot.current_tenant()) USING given_types, given_ids;
END $$;
"""

GRANTS = """
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA hot FROM PUBLIC;
GRANT USAGE ON SCHEMA public, hot TO eventstore_app;
GRANT EXECUTE ON FUNCTION hot.current_tenant, hot.add_own_leaf, hot.admit_own_leaf, hot.entity_seqs,
    hot.entity_versions TO eventstore_app;
GRANT UPDATE (last_seq, last_hash, last_recorded_us, id_lead_us) ON heads TO eventstore_app;
"""


def upgrade() -> None:
    try:
        op.execute(ROLE)
    except sa.exc.ProgrammingError as e:
        raise SetupError(
            f"the role eventstore_app cannot be made: {e.orig}",
            hint="as a superuser: CREATE ROLE eventstore_app; GRANT eventstore_app TO <the owner>; then again",
        ) from e
    op.create_table(
        "scope_key",
        sa.Column("one", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("key", postgresql.BYTEA(), nullable=False),
        sa.CheckConstraint("one", name=op.f("scope_key_one_ck")),
        sa.PrimaryKeyConstraint("one", name=op.f("scope_key_pk")),
    )
    op.execute(CURRENT_TENANT)
    for table in TABLES:
        op.execute(POLICY.format(table=table))
    op.execute(LEAVES)
    op.execute(DOORS)
    op.execute(GRANTS)
    # Servers that were upgraded from before Postgres 15 let everybody make tables in it.
    op.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def downgrade() -> None:
    raise NotImplementedError("history is never migrated backwards; restore a backup instead")
