"""The commands that run unattended: scheduler and worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated

import typer

from eventstore.app import open_store, scheduler_of
from eventstore.cli.beside import end_with
from eventstore.cli.logs import log_for_machines
from eventstore.cli.retention import stopping_on_signals
from eventstore.retention.daemon import work_until_stopped
from eventstore.settings import load_settings

__all__ = ["register"]

_NICENESS = 19


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("scheduler")(scheduler)
    app.command("worker")(worker)


def scheduler(
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Workers within this process; 0: others do the work.")
    ] = 1,
    with_parent: Annotated[
        int | None, typer.Option(hidden=True, help="End when this process does, which started us.")
    ] = None,
) -> None:
    """Run the jobs when their time has come: retention, expiry, scrub, tables made ahead.

    Of any number of schedulers one leads; another takes over within seconds. SIGTERM stops it between steps.
    """
    if with_parent is not None:
        end_with(with_parent)
    log_for_machines()
    os.nice(_NICENESS)
    with open_store(load_settings()) as store, stopping_on_signals(store), ExitStack() as stack:
        for _ in range(workers):
            _start(stack, lambda: work_until_stopped(store.compactor))
        leader = scheduler_of(store)
        leader.run(store.compactor.stop)


def worker(
    threads: Annotated[int, typer.Option(min=1, max=64, help="Windows worked on at once.")] = 1,
) -> None:
    """Work on the tasks of runs, until told to stop (SIGTERM or SIGINT). Any number may run, anywhere."""
    log_for_machines()
    os.nice(_NICENESS)
    with open_store(load_settings()) as store, stopping_on_signals(store), ExitStack() as stack:
        for _ in range(threads - 1):
            _start(stack, lambda: work_until_stopped(store.compactor))
        work_until_stopped(store.compactor)


def _start(stack: ExitStack, work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    stack.callback(thread.join)
