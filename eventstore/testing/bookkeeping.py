"""For the checker: runs, their tasks and their journals."""

from __future__ import annotations

import psycopg

from eventstore.testing.findings import Report
from eventstore.testing.reference import Row

__all__ = ["check_bookkeeping"]

# What must not be, in words and in SQL: each row found has a column `place`.
_RULES = {
    "more than one unfinished task for a window": """
        SELECT format('%L: %s', tenant_id, window_from) AS place FROM tasks
         WHERE state IN ('waiting', 'running') GROUP BY tenant_id, window_from HAVING count(*) > 1
    """,
    "an unfinished task for a window that the catalog does not have": """
        SELECT format('%L: %s', tenant_id, window_from) AS place FROM tasks t
         WHERE state IN ('waiting', 'running') AND NOT EXISTS (
            SELECT FROM windows w WHERE (w.tenant_id, w.window_from) = (t.tenant_id, t.window_from))
    """,
    "a run has ended before its tasks": """
        SELECT format('%L: %s, run %s', t.tenant_id, t.window_from, run_id) AS place
          FROM tasks t JOIN runs r USING (run_id)
         WHERE t.state IN ('waiting', 'running') AND r.status NOT IN ('planning', 'running')
    """,
    "a run's end is not told once, as it was": """
        SELECT format('run %s: %s, told %s times', r.run_id, r.status, count(e.entry_no)) AS place
          FROM runs r LEFT JOIN run_entries e ON e.run_id = r.run_id AND e.kind = 'run_completed'
         GROUP BY r.run_id
        HAVING count(e.entry_no) <> CASE WHEN r.status IN ('planning', 'running') THEN 0 ELSE 1 END
            OR (r.finished_at IS NULL) <> (r.status IN ('planning', 'running'))
            OR bool_or(e.detail ->> 'status' <> r.status)
    """,
    "a task is done, and its run does not tell so": """
        SELECT format('%L: %s of %s, run %s', t.tenant_id, t.action, t.window_from, t.run_id) AS place
          FROM tasks t WHERE t.state = 'done' AND NOT EXISTS (
            SELECT FROM run_entries e
             WHERE (e.run_id, e.tenant_id, e.window_from) = (t.run_id, t.tenant_id, t.window_from)
               AND e.kind = 'window_completed' AND e.detail ->> 'action' = t.action)
    """,
    "a window is told to be completed more often than tasks were done": """
        SELECT format('%L: %s of %s, run %s', tenant_id, action, window_from, run_id) AS place
          FROM (SELECT run_id, tenant_id, window_from, detail ->> 'action' AS action, count(*) AS told
                  FROM run_entries WHERE kind = 'window_completed' GROUP BY 1, 2, 3, 4) e
         WHERE told > (
            SELECT count(*) FROM tasks t WHERE t.state = 'done' AND (t.run_id, t.tenant_id, t.window_from,
                   t.action) = (e.run_id, e.tenant_id, e.window_from, e.action))
    """,
}


def check_bookkeeping(conn: psycopg.Connection[Row], report: Report) -> None:
    """Tasks, runs and journals agree with one another."""
    for words, query in _RULES.items():
        for row in conn.execute(query.encode()):
            report.add("run", f"{words}: {row['place']}")
