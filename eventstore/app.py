"""The composition root: the only place where the parts are put together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
import sqlalchemy as sa

from eventstore.archive.cache import SegmentCache
from eventstore.archive.scan import ArchiveScan
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.targets import Targets
from eventstore.catalog.windows import uncataloged
from eventstore.clock import US_PER_S, Clock, SystemClock
from eventstore.db.engine import Database
from eventstore.db.migrate import check_schema, current_version, upgrade
from eventstore.db.roles import EMBEDDED_LOGIN, kept_password, make_login
from eventstore.errors import EventStoreError, IntegrityError, SetupError, TargetUnavailableError
from eventstore.governance.certificates import check_certificates, knows_keys, latest_copy, trusted_keys
from eventstore.governance.export_making import prune_exports
from eventstore.governance.sessions import prune_sessions
from eventstore.governance.signing import MissingKey, SigningKey
from eventstore.hot.append import Appender
from eventstore.integrity.binding import bind_archive
from eventstore.integrity.publishing import (
    Keepers,
    Published,
    checkpoint_and_publish,
    destination_of,
    list_digest,
    tenants_behind,
)
from eventstore.integrity.tree_audit import TreeAudit
from eventstore.integrity.verify import HashAt, VerifyReport, verify_log
from eventstore.model.policy import DEFAULT_TARGET, parse_duration_us
from eventstore.model.run import RunCompleted, RunKind, RunStatus, Warned
from eventstore.model.schedule import parse_schedule
from eventstore.opening import app_password_file, open_database
from eventstore.query.export_files import ExportFolder
from eventstore.query.reader import LogReader
from eventstore.query.tiers import Tiers
from eventstore.repair.adopt import refuse_unfinished_rebuild
from eventstore.repair.restore import Purged, purge_restores
from eventstore.repair.scrub import ScrubReport, anything_due, scrub
from eventstore.retention.compactor import Compactor
from eventstore.retention.daemon import retention_jobs
from eventstore.retention.governor import Governor
from eventstore.retention.journal import Journal
from eventstore.retention.pruning import prune_runs
from eventstore.retention.scheduler import Job, Scheduler
from eventstore.settings import Settings

__all__ = [
    "Store",
    "checkpoint_all",
    "checkpoint_tenant",
    "export_folder",
    "keepers_of",
    "open_store",
    "scheduler_of",
    "scrub_run",
    "tidy_host",
    "verify_tenant",
]

_log = logging.getLogger(__name__)

# A scrub ends after this long, wherever it is; the next one goes on.
_SCRUB_S = 900.0
# A file of which the database knows nothing is kept for so much longer than one that it knows.
_UNKNOWN_MORE_US = 86_400 * US_PER_S
_PRUNE_SCHEDULE = "15 4 * * *"


@dataclass(frozen=True, slots=True)
class Store:
    """Every part of a running store."""

    settings: Settings
    database: Database
    targets: Targets
    cache: SegmentCache
    key: SigningKey
    tiers: Tiers
    reader: LogReader
    appender: Appender
    compactor: Compactor

    @property
    def target(self) -> ArchiveTarget:
        """The default archive target."""
        return self.targets[self.targets.default]


@contextmanager
def open_store(settings: Settings, *, clock: Clock | None = None) -> Iterator[Store]:
    """Open everything. An embedded database that is still empty gets its schema.

    Raises:
        SchemaVersionError: the database's schema is of another version.
        SetupError: something cannot be opened.
    """
    _keep_freed_memory()
    with ExitStack() as stack:
        database = stack.enter_context(open_database(settings))
        if settings.database_url is None and current_version(database) is None:
            upgrade(database)
        check_schema(database)
        _check_app(settings, database)
        refuse_unfinished_rebuild(database)
        targets = Targets(
            settings.target_urls,
            default=DEFAULT_TARGET,
            prepare=lambda name, target: bind_archive(database, name, target),
        )
        stack.callback(targets.close)
        with suppress(TargetUnavailableError):
            # A mistaken address is to be known at once; a target that is away may come back.
            targets[DEFAULT_TARGET]
        key = _signing_key(database, settings.resolved_key_file)
        cache = SegmentCache(settings.resolved_home / "cache", size_bytes_max=settings.cache_bytes_max)
        scan = ArchiveScan(targets, cache)
        stack.callback(scan.close)
        tiers = Tiers(database, scan)
        reader = LogReader(tiers)
        yield Store(
            settings=settings,
            database=database,
            targets=targets,
            cache=cache,
            key=key,
            tiers=tiers,
            reader=reader,
            appender=Appender(database, archived_versions=reader.archived_versions, clock=clock),
            compactor=Compactor(database, targets, key, lease_s=parse_duration_us(settings.lease) / US_PER_S),
        )


def _check_app(settings: Settings, database: Database) -> None:
    """See that the application's connections work, and that row-level security holds them. The embedded
    server's login is made if need be."""
    if settings.database_url is None:
        try:
            database.check_app()
        except SetupError:
            with database.connection() as conn, conn.transaction():
                make_login(conn, EMBEDDED_LOGIN, kept_password(app_password_file(settings)))
        else:
            return
    database.check_app()


def _signing_key(database: Database, path: Path) -> SigningKey:
    """This host's key. The first one of a deployment is made; a second one never silently."""
    if not os.path.lexists(path):
        with database.transaction() as conn:
            if knows_keys(conn):
                return MissingKey(path)
    return SigningKey.load_or_create(path)


def verify_tenant(
    store: Store, tenant_id: str, *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Verify a tenant's whole log, its certificates included: their signatures, their chain, and what they
    and their copies in the default target say of the log's end.

    Raises:
        TenantNotFoundError, TargetUnavailableError
    """

    def certificates(name: str, hash_at: HashAt) -> list[str]:
        try:
            noted = latest_copy(store.target, name)
        except IntegrityError as e:
            return [f"the newest copy of a certificate in {store.target.describe()}: {e.message}"]
        with store.database.transaction() as conn:
            return check_certificates(conn, name, trusted_keys(conn), hash_at=hash_at, noted=noted)

    store.tiers.state(tenant_id)  # there is such a tenant
    tree = TreeAudit(store.database, store.tiers, tenant_id)
    return verify_log(
        store.tiers, store.targets, tenant_id, certificates=certificates, tree=tree, progress=progress
    )


def scheduler_of(store: Store, *, clock: Clock | None = None) -> Scheduler:
    """The scheduler of an open store, with all its jobs.

    Raises:
        InputError: a schedule of the settings makes no sense.
    """
    settings = store.settings
    jobs = retention_jobs(
        store.database,
        store.compactor,
        retention=parse_schedule(settings.retention_schedule),
        expiry=parse_schedule(settings.expiry_schedule),
        precreation=parse_schedule(settings.precreate_schedule),
        notice_us=parse_duration_us(settings.expiry_notice),
        governor=Governor(store.database, store.targets, most=settings.workers_max),
    )

    def scrub_and_purge(now_us: int) -> None:
        tidy_host(store, now_us)
        older_than_us = parse_duration_us(settings.scrub_every)
        if anything_due(store.database, now_us - older_than_us):
            scrub_run(
                store,
                now_us,
                requested_by="scheduler",
                older_than_us=older_than_us,
                bytes_per_s=settings.scrub_bytes_per_s,
                budget_s=_SCRUB_S,
            )

    runs_kept_us = parse_duration_us(settings.runs_kept)

    def prune(now_us: int) -> None:
        prune_runs(store.database, now_us - runs_kept_us)
        prune_exports(store.database, now_us - runs_kept_us)
        # By the real time, by which they were made.
        prune_sessions(store.database, SystemClock().now_us())

    jobs["prune"] = Job(parse_schedule(_PRUNE_SCHEDULE), prune)
    jobs["checkpoint"] = Job(parse_schedule(settings.checkpoint_schedule), lambda _: checkpoint_all(store))
    jobs["scrub"] = Job(parse_schedule(settings.scrub_schedule), scrub_and_purge)
    return Scheduler(store.database, jobs, clock or SystemClock())


def keepers_of(settings: Settings, tenant_id: str, *, to: Sequence[str] | None = None) -> Keepers:
    """Where a tenant's checkpoints are published: the places of the settings (`to`: these, and it is not
    remembered that they have one).

    Raises:
        InputError: a place is none.
    """
    token = None if settings.checkpoint_token is None else settings.checkpoint_token.get_secret_value()
    places = settings.checkpoint_to if to is None else to
    found = tuple(destination_of(place, tenant_id, token=token) for place in places)
    return Keepers(found, list_digest(places) if to is None else None)


def checkpoint_tenant(
    store: Store,
    tenant_id: str,
    *,
    to: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Published:
    """Sign a tenant's log as it is now, and bring that to the places of the settings (`to`: to these).

    Raises:
        IntegrityError: the log is not what was signed or published. Nothing was signed.
        InputError: a place is none.
        SetupError, TenantNotFoundError, TargetUnavailableError
    """
    keepers = keepers_of(store.settings, tenant_id, to=to)
    return checkpoint_and_publish(
        store.database, store.tiers, store.key, tenant_id, keepers, progress=progress
    )


def checkpoint_all(store: Store) -> list[str]:
    """Sign and publish every log that has grown since it was signed; the tenants for which that failed. One
    that fails is logged, and does not keep the others."""
    failed = []
    for tenant_id in tenants_behind(store.database, list_digest(store.settings.checkpoint_to)):
        if store.compactor.stop.is_set():
            break
        try:
            published = checkpoint_tenant(store, tenant_id)
        except (EventStoreError, psycopg.Error, sa.exc.SQLAlchemyError, OSError, ValueError) as e:
            _log.error("checkpoint of %s: no checkpoint: %s", tenant_id, e)
            failed.append(tenant_id)
            continue
        published.log_failures(tenant_id)
        if published.failed:
            failed.append(tenant_id)
    return failed


def export_folder(settings: Settings) -> ExportFolder:
    """Where this machine puts the files of exports that are made in the background."""
    unknown_kept_us = parse_duration_us(settings.exports_kept) + _UNKNOWN_MORE_US
    return ExportFolder(settings.resolved_exports_dir, settings.export_bytes_max, unknown_kept_us)


def tidy_host(store: Store, now_us: int, *, tenant_id: str | None = None) -> list[Purged]:
    """What this machine keeps beside the archive goes when its time has come: restores that have expired (and
    all of a tenant that is offboarded), files of exports likewise, and cache copies of segments that the
    catalog names no more."""
    purged = purge_restores(store.database, now_us, tenant_id=tenant_id)
    export_folder(store.settings).sweep(store.database, tenant_id=tenant_id)
    with store.database.transaction() as conn:
        gone = uncataloged(conn, store.cache.digests())
    store.cache.forget(gone)
    return purged


def scrub_run(
    store: Store,
    now_us: int,
    *,
    requested_by: str,
    older_than_us: int,
    bytes_per_s: int | None = None,
    budget_s: float | None = None,
    tenant_id: str | None = None,
    target: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScrubReport:
    """Scrub what was not read for `older_than_us` (`repair.scrub`), as a run with a journal.

    Raises:
        InputError: there is no such target.
        TenantNotFoundError
    """
    with store.compactor.worker() as presence:  # its lock says that the run's process lives
        journal = Journal.begin(
            store.database,
            kind=RunKind.SCRUB,
            now_us=now_us,
            requested_by=requested_by,
            holder=presence.holder,
        )
        journal.set_running()
        report = scrub(
            store.database,
            store.targets,
            now_us=now_us,
            older_than_us=older_than_us,
            bytes_per_s=bytes_per_s,
            stop=store.compactor.stop,
            budget_s=budget_s,
            tell=journal.record,
            tenant_id=tenant_id,
            target=target,
            progress=progress,
        )
        for name, reason in report.away.items():
            journal.record(Warned(message=f"target {name!r} was left out: {reason}"))
        journal.finish(
            RunCompleted(
                status=RunStatus.COMPLETED if report.ok else RunStatus.FAILED,
                duration_ms=round(report.duration_s * 1000),
                windows=report.segments,
                windows_failed=len(report.lost),
                events=0,
                error=f"no good copy of {report.lost[0][1]}" if report.lost else None,
            )
        )
    return report


def _keep_freed_memory() -> None:
    """Let Arrow reuse what it has freed for a second before it goes back to the system.

    Batches of tens of megabytes come and go; with Arrow's default allocator each one's pages were faulted
    in anew, which took more time than decoding the Parquet that filled them.
    """
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
