"""A served process that begins an export and never ends it: `test_background_exports` kills it.

`python -m tests.integration.exporting_child DATABASE_URL HOME ARCHIVE_URL`. When the first bytes of an export
are in its file it writes `making` and goes no further.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from eventstore.api import export_worker
from eventstore.app import open_store
from eventstore.cli.serving import listen, serve_store
from eventstore.query.export import Export, export_events
from eventstore.settings import Settings


def stuck(*args: Any, **options: Any) -> Export:
    begun = export_events(*args, **options)

    def pieces() -> Generator[bytes]:
        while not (piece := next(begun.pieces)):
            yield piece
        yield piece
        yield b""
        print("making", flush=True)
        threading.Event().wait()

    return replace(begun, pieces=pieces())


def main() -> None:
    url, home, archive = sys.argv[1:]
    settings = Settings(database_url=url, home=Path(home), archive_url=archive, lease="1s")
    export_worker.export_events = stuck  # type: ignore[attr-defined]
    with open_store(settings) as store, listen(store, "127.0.0.1", 0) as listener:
        serve_store(store, listener)


if __name__ == "__main__":
    main()
