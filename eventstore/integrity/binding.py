"""Which archive belongs to which database.

Each database has an identity, and the archive target carries it in a marker object. Without this, a run
with a mistaken archive address would put the next windows somewhere else, and every read after it would
fail; and two databases could share one archive unawares.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

from eventstore.archive.layout import MARKER_KEY
from eventstore.archive.target import ArchiveTarget, put_bytes
from eventstore.db.engine import Database
from eventstore.db.tables import deployment, removals, segments, windows
from eventstore.errors import ArchiveDamageError, SetupError
from eventstore.model.policy import DEFAULT_TARGET

__all__ = ["bind_archive"]


def bind_archive(database: Database, name: str, target: ArchiveTarget) -> None:
    """Check that the target of that name is this database's archive; a new archive is marked as such.

    Raises:
        SetupError: it is another database's archive, or not the one that holds this database's windows.
        TargetUnavailableError: the target did not answer.
    """
    with database.transaction() as conn:
        store_id = str(conn.execute(sa.select(deployment.c.store_id)).scalar_one())
        in_use = conn.execute(
            sa.select(
                sa.exists().where(segments.c.target == name)
                | sa.exists().where(windows.c.target == name, windows.c.state == "archived")
                | sa.exists().where(removals.c.target == name, removals.c.removed_at.is_(None))
            )
        ).scalar_one()
    marked = _read_marker(target)
    if marked is None and in_use:
        raise SetupError(
            f"{target.describe()} is not the target {name!r} that holds this database's windows",
            hint="set EVENTSTORE_ARCHIVE_URL or EVENTSTORE_TARGETS to where they were archived",
        )
    if marked is None:
        marker = json.dumps({"store_id": store_id, "target": name}) + "\n"
        put_bytes(target, MARKER_KEY, marker.encode())  # whoever was first, read what is there now
        marked = _read_marker(target)
    if marked is None or marked[0] != store_id:
        raise SetupError(
            f"{target.describe()} is the archive of another database (store {marked and marked[0]}, "
            f"not {store_id})",
            hint="give each database an archive of its own: set EVENTSTORE_ARCHIVE_URL or EVENTSTORE_TARGETS",
        )
    if marked[1] != name:
        raise SetupError(
            f"{target.describe()} is the target {marked[1]!r}, not {name!r}",
            hint="each name needs a place of its own: a move between two names of one place would destroy it",
        )


def _read_marker(target: ArchiveTarget) -> tuple[str, str] | None:
    """The store and the name in the target's marker; None if it has none. One that was made before targets
    had names is of the default one."""
    try:
        with target.open(MARKER_KEY) as file:
            content = json.loads(file.read())
    except ArchiveDamageError:
        return None
    except ValueError as e:
        raise SetupError(
            f"the marker {MARKER_KEY} in {target.describe()} is damaged", hint="restore it from a backup"
        ) from e
    return str(content["store_id"]), str(content.get("target", DEFAULT_TARGET))
