"""Gathers what is known of a tenant, a window or an event, for `model.explain` to put into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from eventstore.catalog.removals import list_removals
from eventstore.catalog.tenants import get_tenant
from eventstore.catalog.windows import list_entity_filters, list_segments
from eventstore.clock import from_us
from eventstore.db.engine import Database
from eventstore.db.tables import certificates, tasks
from eventstore.errors import EventNotFoundError, EventStoreError, InputError
from eventstore.governance.holds import holds_in_force, may_hold
from eventstore.governance.policies import policy_versions
from eventstore.governance.windows import CountedWindow, counted_windows
from eventstore.model.explain import (
    Explanation,
    HoldOver,
    PolicyFacts,
    TaskFacts,
    WindowFacts,
    at_text,
    explain_facts,
)
from eventstore.model.explain_tenant import TenantFacts, explain_tenant_facts
from eventstore.model.hold import Hold
from eventstore.model.policy import policy_in_force
from eventstore.model.policy_change import in_grace, standing
from eventstore.model.query import EventFilter
from eventstore.model.run import TaskAction, TaskState
from eventstore.model.window import WindowRecord, WindowState
from eventstore.query.reader import LogReader

__all__ = ["explain_event", "explain_tenant", "explain_window", "policy_facts"]

# So many entities of a hold are looked for in the log; beyond, the hold counts as one that may cover.
_ENTITIES_READ_MAX = 50
_HOT = (WindowState.OPEN, WindowState.SEALED)


def policy_facts(conn: sa.Connection, tenant_id: str | None, now_us: int) -> PolicyFacts:
    """What is in force for a tenant, or by default (None), and what is in its grace time."""
    defaults = standing(policy_versions(conn, None))
    own = [] if tenant_id is None else standing(policy_versions(conn, tenant_id))
    in_force = policy_in_force(defaults, own, now_us)
    newest = next((v for v in (*defaults, *own) if v.policy_no == in_force.policy_no), None)
    coming = sorted((*in_grace(defaults, now_us), *in_grace(own, now_us)), key=lambda v: v.effective_us)
    return PolicyFacts(
        in_force,
        newest,
        tuple((v, policy_in_force(defaults, own, v.effective_us).policy) for v in coming),
    )


def explain_tenant(
    database: Database, tenant_id: str, *, now_us: int, known_targets: Collection[str]
) -> Explanation:
    """Where a tenant's windows are and why, what happens to which of them next, and what is in the way.

    Raises:
        TenantNotFoundError
    """
    with database.transaction() as conn:
        tenant = get_tenant(conn, tenant_id)
        policy = policy_facts(conn, tenant_id, now_us)
        found = list(counted_windows(conn, tenant_id))
        newest = _newest_tasks(conn, tenant_id)
        left = Counter(removal.window_from_us for removal in list_removals(conn, tenant_id=tenant_id))
        facts = TenantFacts(
            tenant=tenant,
            windows=tuple(
                WindowFacts(
                    tenant_id,
                    w.record,
                    w.events,
                    policy,
                    now_us,
                    known_targets,
                    task=newest.get(w.record.window.from_us),
                    left=left[w.record.window.from_us],
                )
                for w in found
            ),
            policy=policy,
            holds=tuple(holds_in_force(conn, tenant_id)),
            now_us=now_us,
        )
    return explain_tenant_facts(facts)


def explain_window(
    database: Database,
    tenant_id: str,
    at_us: int,
    *,
    now_us: int,
    known_targets: Collection[str],
    reader: LogReader | None = None,
) -> Explanation:
    """Explain the window in which a moment lies. With a `reader`, holds on entities are looked up in the log;
    without, by times and filters alone.

    Raises:
        InputError: there is no window at that time.
        TenantNotFoundError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        found = list(counted_windows(conn, tenant_id))
    for window in found:
        if window.record.window.from_us <= at_us < window.record.window.to_us:
            return _explain(database, window, found, now_us, known_targets, reader)
    raise InputError(
        f"{tenant_id!r} has no window at {at_text(at_us)}",
        hint="spans in which nothing was recorded have none; eventstore stats shows the windows",
    )


def explain_event(
    database: Database,
    reader: LogReader,
    tenant_id: str,
    *,
    now_us: int,
    known_targets: Collection[str],
    seq: int | None = None,
    event_id: bytes | None = None,
) -> Explanation:
    """Explain an event, by its seq or its event_id: its window is what is moved and destroyed.

    Raises:
        EventNotFoundError: there is none. (An event that was destroyed is known by its seq alone.)
        TenantNotFoundError, ArchiveDamageError, TargetUnavailableError
    """
    with database.transaction() as conn:
        get_tenant(conn, tenant_id)
        found = list(counted_windows(conn, tenant_id))
    if seq is None:
        seq = int(reader.event(tenant_id, event_id=event_id).events.column("seq")[0].as_py())
    for window in found:
        first_seq = window.record.first_seq
        if first_seq <= seq < first_seq + window.events:
            explained = _explain(database, window, found, now_us, known_targets, reader)
            return Explanation(
                f"seq {seq:,} of {tenant_id}, in {explained.subject}",
                explained.place,
                explained.because,
                explained.next,
                explained.blocked_by,
                explained.changes,
            )
    raise EventNotFoundError(f"{tenant_id!r} has no event with seq {seq}")


# --- gathering ----------------------------------------------------------------------------------------


def _explain(
    database: Database,
    window: CountedWindow,
    every: Sequence[CountedWindow],
    now_us: int,
    known_targets: Collection[str],
    reader: LogReader | None,
) -> Explanation:
    tenant_id, record = window.tenant_id, window.record
    with database.transaction() as conn:
        policy = policy_facts(conn, tenant_id, now_us)
        newest = _newest_tasks(conn, tenant_id)
        removals = list_removals(conn, tenant_id=tenant_id, window_from_us=record.window.from_us)
        holds = _possible_holds(conn, tenant_id, record)
        number = conn.execute(
            sa.select(certificates.c.number).where(
                certificates.c.tenant_id == tenant_id,
                certificates.c.window_from == from_us(record.window.from_us),
            )
        ).scalar_one_or_none()
    hot_until_us = now_us - policy.in_force.policy.hot_for_us
    older = [
        w.record
        for w in every
        if w.record.window < record.window
        and w.record.state in _HOT
        and (w.record.window.to_us > hot_until_us or _has_failed(newest.get(w.record.window.from_us)))
    ]
    last_seq = record.first_seq + window.events - 1
    return explain_facts(
        WindowFacts(
            tenant_id,
            record,
            window.events,
            policy,
            now_us,
            known_targets,
            task=newest.get(record.window.from_us),
            holds=[
                over
                for hold in holds
                if (over := _look(reader, hold, tenant_id, record.first_seq, last_seq)) is not None
            ],
            older_hot=older[0] if older else None,
            left=len(removals),
            certificate=number,
        )
    )


def _has_failed(task: TaskFacts | None) -> bool:
    return task is not None and task.error is not None


def _newest_tasks(conn: sa.Connection, tenant_id: str) -> dict[int, TaskFacts]:
    """The newest task of each window of a tenant, by the window's beginning in µs."""
    beginning_us = sa.cast(sa.func.extract("epoch", tasks.c.window_from) * 1_000_000, sa.BigInteger)
    query = (
        sa.select(tasks, beginning_us.label("beginning_us"))
        .where(tasks.c.tenant_id == tenant_id)
        .ext(distinct_on(tasks.c.window_from))
        .order_by(tasks.c.window_from, tasks.c.task_id.desc())
    )
    return {
        row.beginning_us: TaskFacts(TaskAction(row.action), TaskState(row.state), row.attempts, row.error)
        for row in conn.execute(query)
    }


def _possible_holds(conn: sa.Connection, tenant_id: str, record: WindowRecord) -> list[Hold]:
    """The holds that may cover a window, by times and filters."""
    holds = holds_in_force(conn, tenant_id)
    if not holds:
        return []
    if record.state in (WindowState.DROPPED, WindowState.ARCHIVED):
        assert record.last_seq is not None
        bounds = {"seq_from": record.first_seq, "seq_to": record.last_seq}
        filters = list_entity_filters(conn, tenant_id, **bounds)
        parts = [
            (s.min_recorded_at_us, s.max_recorded_at_us, filters.get(s.range.first_seq))
            for s in list_segments(conn, tenant_id, **bounds)
        ]
    elif record.state is WindowState.EXPIRED:
        parts = [
            (r.min_recorded_at_us, r.max_recorded_at_us, r.entity_filter)
            for r in list_removals(conn, tenant_id=tenant_id, window_from_us=record.window.from_us)
        ]
    else:
        parts = [(record.window.from_us, record.window.to_us - 1, None)]
    return [
        hold
        for hold in holds
        if any(may_hold(hold, first_us=a, last_us=b, entity_filter=bits) for a, b, bits in parts)
    ]


def _look(
    reader: LogReader | None, hold: Hold, tenant_id: str, first_seq: int, last_seq: int
) -> HoldOver | None:
    """Whether a hold that may cover a window does; None: it does not."""
    entities = hold.scope.entities
    if not entities:
        return HoldOver(hold, certain=True)
    if reader is None or len(entities) > _ENTITIES_READ_MAX:
        return HoldOver(hold, certain=False)
    try:
        for kind, entity_id in entities:
            wanted = EventFilter(entity_type=kind, entity_id=entity_id, seq_from=first_seq, seq_to=last_seq)
            if reader.page(tenant_id, wanted, limit=1).events.num_rows:
                return HoldOver(hold, certain=True)
    except EventStoreError:
        return HoldOver(hold, certain=False)  # what cannot be read counts as held
    return None
