"""A Postgres of our own, shared by every process that uses the same home folder (POSIX systems only).

Who keeps the server alive is decided by kernel locks alone, so that no way of dying leaves an orphan:

- `postgres.users.lock`: each user of the server holds it shared, from `start_embedded` to `close` or death.
- `postgres.supervisor.lock`: the supervisor holds it for its whole life; its process id stands inside.
- `postgres.start.lock`: held by whoever starts a supervisor, and by that supervisor until the server answers.

The supervisor (`supervisor.py`) starts the server and then waits for the first lock exclusively. The
kernel grants that when the last user is gone; the supervisor stops the server and leaves. A newcomer in that
moment waits for its shared lock, finds no supervisor, and starts the next one.

Fork: a lock belongs to the open file description, which a forked child shares. The child counts as a user
too: the server runs until both have closed it or ended. Programs started by exec do not inherit the lock.

What no lock can cover: if the supervisor and all users are killed with SIGKILL, the server runs on until the
next `start_embedded` of this home, which adopts it and stops it in its turn.
"""

from eventstore.db.embedded.server import EmbeddedServer, start_embedded

__all__ = ["EmbeddedServer", "start_embedded"]
