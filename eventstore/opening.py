"""Opening the database alone, for what needs no other part of the store, which take longer to load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eventstore.db.embedded import start_embedded
from eventstore.db.engine import Database
from eventstore.db.roles import EMBEDDED_LOGIN, kept_password, with_login
from eventstore.settings import Settings

__all__ = ["app_password_file", "open_database"]


def app_password_file(settings: Settings) -> Path:
    """Where the password of the application's login is kept, of the embedded server's."""
    return settings.resolved_home / "postgres.app.password"


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """The database of the settings: the server they name, or the embedded one, started if need be.

    Raises:
        SetupError: it cannot be started or reached.
    """
    with ExitStack() as stack:
        url, app_url = settings.database_url, settings.app_database_url
        if url is None:
            server = start_embedded(settings.resolved_home)
            stack.callback(server.close)
            url = server.url
            app_url = with_login(url, EMBEDDED_LOGIN, kept_password(app_password_file(settings)))
        database = Database(url, app_url=app_url)
        stack.callback(database.close)
        database.open()
        yield database
