"""The crash points: before and after every step of append, plan, claim, seal, write, put, verify, cutover,
drop, move, expiry and journal, and in the middle of every commit (sent, but not answered). See
`tests.crash.injection` for the form.

A point of retention goes with the state in which it leaves the first tenant's first window: so that a point
which comes to lie elsewhere is noticed. What was sent is carried out, though nobody is left to hear of it.

`nth` above 1 is chosen so that the process has done the thing before: the crash then meets a warm process.
"""

from __future__ import annotations

__all__ = ["APPEND_POINTS", "EXPIRY_POINTS", "MOVE_POINTS", "RETENTION_POINTS", "TASK_POINTS", "UNIT_POINTS"]

_LOG = "eventstore.hot.log/LogTransaction"
_FILE = "eventstore.archive.file"
_RUN = "eventstore.retention.archiving"
_STEPS = "eventstore.retention.steps"
_TASKS = "eventstore.retention.tasks/Tasks"
_COMPACTOR = "eventstore.retention.compactor"
_MOVE = "eventstore.retention.moving"
_EXPIRE = "eventstore.retention.expiring"
_REMOVE = "eventstore.retention.removing/_remove"
_COMMIT = "psycopg/Connection.commit"
_WAIT = "psycopg/Connection.wait"
_TOGETHER = "eventstore.hot.log/run_together"

# One append: the head's lock, a leaf if the window is new, the rows, the head's new values and COMMIT. A few
# rows go in one query with the last two; many by COPY (header, rows, trailer), which the child is made to
# use for the points that lie in it.
APPEND_POINTS = {
    "append-before": "eventstore.hot.append/Appender.append:before:5",
    "append-lock-sent": f"contextlib/_GeneratorContextManager.__enter__>{_TOGETHER}:sent:5",
    "append-locked": f"{_LOG}.__init__:after:5",
    "append-leaf-before": "eventstore.hot.log/create_leaf:before:3",
    "append-leaf-after": "eventstore.hot.log/create_leaf:after:3",
    "append-few-written": f"{_LOG}.write_few:after:5",
    "append-copy-first-write": f"{_LOG}._copy>psycopg/Copy.write:before:13",
    "append-copy-header-after": f"{_LOG}._copy>psycopg/Copy.write:after:13",
    "append-copy-rows-after": f"{_LOG}._copy>psycopg/Copy.write:after:14",
    "append-copy-last-write": f"{_LOG}._copy>psycopg/Copy.write:after:15",
    "append-copied": f"{_LOG}._copy:after:5",
    "append-commit-before": f"{_LOG}._commit:before:5",
    "append-commit-sent": f"{_LOG}._commit>{_TOGETHER}:sent:5",
    "append-commit-after": f"{_LOG}._commit:after:5",
    "append-returned": "eventstore.hot.append/Appender.append:after:5",
}

# point, state afterwards
RETENTION_POINTS = {
    # seal
    "seal-before": (f"{_RUN}/seal_window:before:1", "open"),
    "seal-commit-before": (f"{_RUN}/seal_window>{_COMMIT}:before:1", "open"),
    "seal-commit-sent": (f"{_RUN}/seal_window>{_COMMIT}>{_WAIT}:sent:1", "sealed"),
    "seal-after": (f"{_RUN}/seal_window:after:1", "sealed"),
    "seal-open-window-commit-sent": (f"{_RUN}/seal_window>{_COMMIT}>{_WAIT}:sent:3", "dropped"),
    # write
    "write-stage-before": (f"{_RUN}/archive_window>{_FILE}/FileTarget.stage:before:1", "sealed"),
    "write-stage-after": (f"{_RUN}/archive_window>{_FILE}/FileTarget.stage:after:1", "sealed"),
    "write-first-row-group": ("eventstore.archive.parquet/SegmentWriter.write:after:1", "sealed"),
    "write-close-before": ("pyarrow.parquet/ParquetWriter.close:before:1", "sealed"),
    "write-finish-after": ("eventstore.archive.parquet/SegmentWriter.finish:after:1", "sealed"),
    # put
    "put-before": (f"{_RUN}/archive_window>{_FILE}/FileTarget.put:before:1", "sealed"),
    "put-fsync-before": (f"{_RUN}/archive_window>{_FILE}/FileTarget.put>os/fsync:before:1", "sealed"),
    "put-fsync-after": (f"{_RUN}/archive_window>{_FILE}/FileTarget.put>os/fsync:after:1", "sealed"),
    "put-link-before": (f"{_RUN}/archive_window>os/link:before:1", "sealed"),
    "put-linked-not-unlinked": (f"{_RUN}/archive_window>os/link:after:1", "sealed"),
    "put-folder-sync-before": (
        f"{_RUN}/archive_window>{_FILE}/FileTarget.put>{_FILE}/_sync_folder:before:1",
        "sealed",
    ),
    "put-after": (f"{_RUN}/archive_window>{_FILE}/FileTarget.put:after:1", "sealed"),
    "put-second-part-after": (f"{_RUN}/archive_window>{_FILE}/FileTarget.put:after:2", "sealed"),
    # verify
    "verify-before": (f"{_STEPS}/verify_segment:before:1", "sealed"),
    "verify-after": (f"{_STEPS}/verify_segment:after:1", "sealed"),
    "verify-second-part-before": (f"{_STEPS}/verify_segment:before:2", "sealed"),
    "archive-window-after": (f"{_RUN}/archive_window:after:1", "sealed"),
    # cutover
    "cutover-before": (f"{_RUN}/cut_over_window:before:1", "sealed"),
    "cutover-commit-before": (f"{_RUN}/cut_over_window>{_COMMIT}:before:1", "sealed"),
    "cutover-commit-sent": (f"{_RUN}/cut_over_window>{_COMMIT}>{_WAIT}:sent:1", "archived"),
    "cutover-after": (f"{_RUN}/cut_over_window:after:1", "archived"),
    "cutover-second-window-after": (f"{_RUN}/cut_over_window:after:2", "dropped"),
    # drop
    "drop-before": (f"{_RUN}/drop_window:before:1", "archived"),
    "drop-commit-before": (f"{_RUN}/drop_window>{_COMMIT}:before:1", "archived"),
    "drop-commit-sent": (f"{_RUN}/drop_window>{_COMMIT}>{_WAIT}:sent:1", "dropped"),
    "drop-after": (f"{_RUN}/drop_window:after:1", "dropped"),
    "drop-second-window-commit-before": (f"{_RUN}/drop_window>{_COMMIT}:before:2", "dropped"),
    # journal
    "journal-finish-before": ("eventstore.retention.journal/Journal.finish:before:1", "dropped"),
    "journal-entry-written": (f"eventstore.retention.journal/Journal.finish>{_COMMIT}:after:1", "dropped"),
    "journal-finish-after": ("eventstore.retention.journal/Journal.finish:after:1", "dropped"),
}

# What concerns the tasks alone: point, state afterwards (None: that depends, for a claim is renewed at any
# moment)
TASK_POINTS = {
    # plan
    "plan-begun": ("eventstore.retention.journal/Journal.begin:after:1", "open"),
    "plan-adopt-after": (f"{_TASKS}.adopt:after:1", "open"),
    "plan-add-commit-before": (f"{_COMPACTOR}/Compactor._add>{_COMMIT}:before:1", "open"),
    "plan-add-commit-sent": (f"{_COMPACTOR}/Compactor._add>{_COMMIT}>{_WAIT}:sent:1", "open"),
    "plan-second-tenant-before": (f"{_COMPACTOR}/Compactor._add:before:2", "open"),
    "plan-running-before": ("eventstore.retention.journal/Journal.set_running:before:1", "open"),
    # claim, renew
    "claim-before": (f"{_TASKS}.claim:before:1", "open"),
    "claim-commit-before": (f"{_TASKS}.claim>{_COMMIT}:before:1", "open"),
    "claim-commit-sent": (f"{_TASKS}.claim>{_COMMIT}>{_WAIT}:sent:1", "open"),
    "claim-after": (f"{_TASKS}.claim:after:1", "open"),
    "renew-commit-before": (f"{_TASKS}.renew>{_COMMIT}:before:1", None),
    "renew-commit-sent": (f"{_TASKS}.renew>{_COMMIT}>{_WAIT}:sent:1", None),
    "renew-after": (f"{_TASKS}.renew:after:1", None),
    # done
    "done-before": (f"{_TASKS}.done:before:1", "dropped"),
    "done-commit-before": (f"{_TASKS}.done>{_COMMIT}:before:1", "dropped"),
    "done-commit-sent": (f"{_TASKS}.done>{_COMMIT}>{_WAIT}:sent:1", "dropped"),
    "done-after": (f"{_TASKS}.done:after:1", "dropped"),
}

# point, target afterwards
MOVE_POINTS = {
    "copy-put-before": (f"{_STEPS}/copy_segment>{_FILE}/FileTarget.put:before:1", "archive"),
    "copy-put-after": (f"{_STEPS}/copy_segment>{_FILE}/FileTarget.put:after:1", "archive"),
    "copy-after": (f"{_STEPS}/copy_segment:after:1", "archive"),
    "copy-second-part-after": (f"{_STEPS}/copy_segment:after:2", "archive"),
    "move-commit-before": (f"{_MOVE}/cut_over_move>{_COMMIT}:before:1", "archive"),
    "move-commit-sent": (f"{_MOVE}/cut_over_move>{_COMMIT}>{_WAIT}:sent:1", "near"),
    "move-after": (f"{_MOVE}/cut_over_move:after:1", "near"),
    "remove-delete-before": (f"{_REMOVE}>{_FILE}/FileTarget.delete:before:1", "near"),
    "remove-delete-after": (f"{_REMOVE}>{_FILE}/FileTarget.delete:after:1", "near"),
    "remove-commit-sent": (f"{_REMOVE}>{_COMMIT}>{_WAIT}:sent:1", "near"),
}

# point, state afterwards
EXPIRY_POINTS = {
    "expire-before": (f"{_EXPIRE}/_take_out:before:1", "dropped"),
    "expire-signed": (f"{_EXPIRE}/_certify:after:1", "dropped"),
    "expire-commit-before": (f"{_EXPIRE}/_certify_unless_held>{_COMMIT}:before:2", "dropped"),
    "expire-commit-sent": (f"{_EXPIRE}/_certify_unless_held>{_COMMIT}>{_WAIT}:sent:2", "expired"),
    "expire-after": (f"{_EXPIRE}/_take_out:after:1", "expired"),
    "certificate-put-before": ("eventstore.governance.certificates/put_certificate:before:1", "expired"),
    "certificate-put-after": ("eventstore.governance.certificates/put_certificate:after:1", "expired"),
    "destroy-delete-before": (f"{_REMOVE}>{_FILE}/FileTarget.delete:before:1", "expired"),
    "destroy-delete-after": (f"{_REMOVE}>{_FILE}/FileTarget.delete:after:1", "expired"),
    "destroy-commit-sent": (f"{_REMOVE}>{_COMMIT}>{_WAIT}:sent:1", "expired"),
    "destroy-second-part-before": (f"{_REMOVE}>{_FILE}/FileTarget.delete:before:2", "expired"),
    "destroy-after": (f"{_REMOVE}:after:2", "expired"),
}

# A policy with other windows comes into force with a run: point, the unit afterwards
_LOOK = f"{_COMPACTOR}/Compactor._look"
UNIT_POINTS = {
    "unit-before": (f"{_COMPACTOR}/bring_units_into_force:before:1", "hour"),
    "unit-commit-before": (f"{_COMPACTOR}/bring_units_into_force:after:1", "hour"),
    "unit-commit-sent": (f"{_LOOK}>{_COMMIT}>{_WAIT}:sent:1", "day"),
    "unit-commit-after": (f"{_LOOK}>{_COMMIT}:after:1", "day"),
}
