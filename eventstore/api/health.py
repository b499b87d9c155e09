"""Whether the process serves, and whether it can do its work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec
import sqlalchemy as sa
from fastapi import APIRouter, Depends, Request, Response

from eventstore.api import problems
from eventstore.api.parameters import known_parameters
from eventstore.api.schemas import answers
from eventstore.app import Store
from eventstore.db.migrate import check_schema
from eventstore.errors import EventStoreError, SchemaVersionError

__all__ = ["Readiness", "router"]

router = APIRouter(dependencies=[Depends(known_parameters)])

_log = logging.getLogger(__name__)
_ANSWER_S = 5.0
_ENCODER = msgspec.json.Encoder()


class Health(msgspec.Struct, forbid_unknown_fields=True):
    """The process serves."""

    status: Annotated[str, msgspec.Meta(pattern="^ok$")]


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """One thing that was looked at. `needed`: without it the process is not ready. `why` null: it is well."""

    name: str
    ok: bool
    needed: bool
    why: str | None


class Ready(msgspec.Struct, forbid_unknown_fields=True):
    """Every check that is needed is well."""

    status: Annotated[str, msgspec.Meta(pattern="^ready$")]
    checks: list[Check]


class Readiness:
    """Looks at what a process needs, of one event loop.

    Each check has so many seconds, and only one thread at a time: whatever hangs, probes do not pile up
    behind it. Why something failed goes into the log in full, and to whoever asks (which anybody may) only in
    kind.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._checks: tuple[tuple[str, bool, Callable[[], None]], ...] = (
            ("database", True, self._database),
            ("schema", True, self._schema),
            # Appends and reads of the hot tier go on without it.
            ("archive", False, self._archive),
        )
        self._limiters = {name: anyio.CapacityLimiter(1) for name, _, _ in self._checks}

    async def look(self) -> list[Check]:
        found: list[Check] = []

        async def one(name: str, needed: bool, work: Callable[[], None]) -> None:
            why = await self._why_not(name, work)
            found.append(Check(name, why is None, needed, why))

        async with anyio.create_task_group() as tasks:
            for check in self._checks:
                tasks.start_soon(one, *check)
        return sorted(found, key=lambda check: (not check.needed, check.name))

    async def _why_not(self, name: str, work: Callable[[], None]) -> str | None:
        with anyio.move_on_after(_ANSWER_S):
            try:
                await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiters[name])
            except SchemaVersionError as e:
                return e.message
            except (EventStoreError, sa.exc.SQLAlchemyError, OSError) as e:
                _log.warning("not ready: %s: %s", name, e)
                return "it cannot be used; the log of the process says why"
            return None
        _log.warning("not ready: %s did not answer within %s s", name, _ANSWER_S)
        return f"it did not answer within {_ANSWER_S:g} s"

    def _database(self) -> None:
        with self._store.database.transaction() as conn:
            conn.execute(sa.text("SELECT 1"))

    def _schema(self) -> None:
        check_schema(self._store.database)

    def _archive(self) -> None:
        _ = self._store.target


@router.get(
    "/healthz", summary="Whether the process serves", responses=answers(Health, example={"status": "ok"})
)
async def health() -> Response:
    """Asks nobody: it says that this process answers, and no more."""
    return _json(Health("ok"))


_EXAMPLE: dict[str, Any] = {
    "status": "ready",
    "checks": [
        {"name": "database", "ok": True, "needed": True, "why": None},
        {"name": "schema", "ok": True, "needed": True, "why": None},
        {"name": "archive", "ok": True, "needed": False, "why": None},
    ],
}


@router.get("/readyz", summary="Whether it can do its work", responses=answers(Ready, 503, example=_EXAMPLE))
async def ready(request: Request) -> Response:
    """The database answers with the schema of this version; and whether the default archive target is open.

    Without the archive the process is ready all the same: `archive` then says so.
    """
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.look()
    if all(check.ok for check in checks if check.needed):
        return _json(Ready("ready", checks))
    failed = ", ".join(check.name for check in checks if check.needed and not check.ok)
    return problems.problem(
        503,
        "Not ready",
        f"not ready: {failed}",
        code="not-ready",
        checks=msgspec.to_builtins(checks),
        retry_after_s=1,
    )


def _json(value: msgspec.Struct) -> Response:
    return Response(_ENCODER.encode(value), media_type="application/json")
