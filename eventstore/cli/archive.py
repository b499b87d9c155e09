"""Commands about what lies in the archive targets: listing, checking, repairing, bringing back."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from eventstore.app import open_store, scrub_run, tidy_host
from eventstore.archive.targets import Targets
from eventstore.cli import rebuilding
from eventstore.cli.output import bytes_text, console, errors, plural
from eventstore.cli.rebuilding import progress_bar
from eventstore.cli.retention import stopping_on_signals
from eventstore.clock import US_PER_S, SystemClock, parse_time_us, to_iso
from eventstore.model.policy import parse_duration_us
from eventstore.repair.check import check_archive
from eventstore.repair.listing import ListedSegment, chosen_targets, list_archive
from eventstore.repair.restore import Restored, list_restores, restore_window
from eventstore.repair.scrub import ScrubReport
from eventstore.settings import load_settings

__all__ = ["app", "register"]

app = typer.Typer(help="The archive: what lies where, and its repair.", no_args_is_help=True)
rebuilding.register(app)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="archive")


TenantOption = Annotated[str | None, typer.Option(help="Only this tenant; default all.")]
TargetOption = Annotated[str | None, typer.Option(help="Only this archive target; default all.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON lines, for programs.")]

_ROWS_SHOWN = 500


def _counting() -> tuple[ProgressColumn, ...]:
    return (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed:,} objects"))


def _count_into(bar: Progress) -> Callable[[str, int], None]:
    tasks: dict[str, int] = {}

    def progress(target: str, count: int) -> None:
        if target not in tasks:
            tasks[target] = bar.add_task(target, total=None)
        bar.update(tasks[target], completed=count)  # type: ignore[arg-type]

    return progress


def _bytes_bar() -> tuple[ProgressColumn, ...]:
    return (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())


# --- ls, check --------------------------------------------------------------------------------------------


@app.command("ls")
def ls(
    tenant: TenantOption = None,
    target: TargetOption = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="What the targets themselves list, whatever it is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the segments as the catalog knows them: which events, where, how large, when last read."""
    with open_store(load_settings()) as store:
        names = chosen_targets(store.targets, target)
        if objects:
            prefix = "" if tenant is None else f"tenant_id={tenant}/"
            _list_objects(store.targets, names, prefix, as_json=as_json)
            return
        found = list_archive(store.database, tenant_id=tenant, target=target)
        if as_json:
            for one in found:
                typer.echo(json.dumps(_segment_json(one)))
            return
        count = size_bytes = events = 0
        table = _segment_table()
        for count, one in enumerate(found, start=1):
            segment = one.segment
            size_bytes, events = size_bytes + segment.size_bytes, events + segment.range.event_count
            table.add_row(*_segment_row(one))
            if count % _ROWS_SHOWN == 0:  # a long list shows at once, and is not kept
                console.print(table)
                table = _segment_table(header=False)
        read_only = store.targets.read_only()
    if table.row_count:
        console.print(table)
    console.print(
        f"{plural(count, 'segment')}, {plural(events, 'event')}, {bytes_text(size_bytes)}.", highlight=False
    )
    for name, reason in read_only.items():
        errors.print(
            f"[yellow]read only:[/] {escape(name)} takes no writes: {escape(reason)}", highlight=False
        )


def _list_objects(targets: Targets, names: tuple[str, ...], prefix: str, *, as_json: bool) -> None:
    for name in names:
        for found in targets[name].list(prefix):
            if as_json:
                typer.echo(json.dumps({"target": name, "key": found.key, "size_bytes": found.size_bytes}))
            else:
                typer.echo(f"{found.size_bytes:>14,}  {name}  {found.key}")


def _segment_table(*, header: bool = True) -> Table:
    table = Table("tenant", "window", "part", "seq", "events", "size", "target", "last scrubbed")
    table.box, table.pad_edge, table.show_header = None, False, header
    for index in (2, 4, 5):
        table.columns[index].justify = "right"
    return table


def _segment_row(found: ListedSegment) -> list[str]:
    s, r = found.segment, found.segment.range
    return [
        r.tenant_id,
        f"{_day(r.window.from_us)} … {_day(r.window.to_us)}",
        str(r.part),
        f"{r.first_seq:,} … {r.last_seq:,}",
        f"{r.event_count:,}",
        bytes_text(s.size_bytes),
        s.target,
        "never" if found.scrubbed_us is None else to_iso(found.scrubbed_us)[:10],
    ]


def _segment_json(found: ListedSegment) -> dict[str, object]:
    s, r = found.segment, found.segment.range
    return {
        "tenant": r.tenant_id,
        "window_from": to_iso(r.window.from_us),
        "window_to": to_iso(r.window.to_us),
        "part": r.part,
        "first_seq": r.first_seq,
        "last_seq": r.last_seq,
        "events": r.event_count,
        "size_bytes": s.size_bytes,
        "target": s.target,
        "key": s.key,
        "sha256": s.sha256.hex(),
        "scrubbed": None if found.scrubbed_us is None else to_iso(found.scrubbed_us),
    }


def _day(us: int) -> str:
    text = to_iso(us)
    return text[:10] if text[11:19] == "00:00:00" else text[:16].replace("T", " ")


@app.command("check")
def check(tenant: TenantOption = None, target: TargetOption = None, as_json: JsonOption = False) -> None:
    """Hold the catalog and the targets' listings against each other, without reading contents.

    Exit status 1 when something is wrong; unfinished work, pending removals, quarantine
    and a target that is read only are not.
    """
    wrong = count = 0
    with open_store(load_settings()) as store, progress_bar(*_counting()) as bar:
        for found in check_archive(
            store.database, store.targets, tenant_id=tenant, target=target, progress=_count_into(bar)
        ):
            count += 1
            wrong += found.kind.is_wrong
            if as_json:
                members = {
                    "kind": found.kind.value,
                    "wrong": found.kind.is_wrong,
                    "target": found.target,
                    "key": found.key,
                    "tenant": found.tenant_id,
                    "message": found.message,
                }
                typer.echo(json.dumps(members, ensure_ascii=False))
                continue
            color = "red" if found.kind.is_wrong else "yellow"
            console.print(
                f"[{color}]{found.kind.value}:[/] {escape(found.key or found.target)}"
                + (f" in {found.target!r}" if found.key else "")
                + f": {escape(found.message)}",
                highlight=False,
                soft_wrap=True,
            )
    if not as_json:
        others = "" if count == wrong else f", {plural(count - wrong, 'notice')}"
        console.print(
            f"{plural(wrong, 'problem')}{others}." if count else "Nothing is wrong.", highlight=False
        )
    if wrong:
        raise typer.Exit(1)


# --- scrub ------------------------------------------------------------------------------------------------


@app.command("scrub")
def scrub_(
    tenant: TenantOption = None,
    target: TargetOption = None,
    limit_bytes_per_s: Annotated[
        int | None, typer.Option(min=1, help="Read no faster, in bytes a second; default no limit.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option(help="Only what was not read for so long, e.g. 90d; default everything.")
    ] = None,
    max_duration: Annotated[
        str | None, typer.Option(help="Stop after this time, e.g. 2h; the next scrub goes on.")
    ] = None,
) -> None:
    """Read segments again and compare them with the catalog; repair what is damaged from a good copy.

    Nothing is deleted or overwritten. Exit status 1 when something is damaged for good, or a target was away.
    """
    older_us = 0 if older_than is None else parse_duration_us(older_than)
    budget_s = None if max_duration is None else parse_duration_us(max_duration) / US_PER_S
    with (
        open_store(load_settings()) as store,
        stopping_on_signals(store),
        progress_bar(*_bytes_bar()) as bar,
    ):
        task = bar.add_task("scrub", total=None)
        report = scrub_run(
            store,
            SystemClock().now_us(),
            requested_by=f"{getpass.getuser()} on the command line",
            older_than_us=older_us,
            bytes_per_s=limit_bytes_per_s,
            budget_s=budget_s,
            progress=lambda read, due: bar.update(task, completed=read, total=max(read, due)),
            tenant_id=tenant,
            target=target,
        )
    _show_scrub(report)
    if not report.ok:
        raise typer.Exit(1)


def _show_scrub(report: ScrubReport) -> None:
    for name, key in report.mended:
        console.print(f"[green]mended:[/] {escape(key)} in {name!r}", highlight=False, soft_wrap=True)
    for label, color, found in (("damaged", "red", report.lost), ("waiting", "yellow", report.waiting)):
        for name, key, message in found:
            text = f"[{color}]{label}:[/] {escape(key)} in {name!r}: {escape(message)}"
            errors.print(text, highlight=False, soft_wrap=True)
    for orphan in report.quarantined:
        name = f"{escape(orphan.key or '')} in {orphan.target!r}"
        text = f"[yellow]quarantined:[/] {name}: {escape(orphan.message)}"
        console.print(text, highlight=False, soft_wrap=True)
    for name, message in report.away.items():
        errors.print(f"[red]away:[/] {name!r}: {escape(message)}", highlight=False, soft_wrap=True)
    for name in report.busy:
        console.print(f"[yellow]left out:[/] {name!r}: another scrub is at it", highlight=False)
    rate = report.size_bytes / report.duration_s if report.duration_s > 0 else 0.0
    console.print(
        f"{plural(report.segments, 'segment')} read, "
        f"{bytes_text(report.size_bytes)} at {bytes_text(rate)}/s; "
        f"{len(report.mended):,} mended, {len(report.lost):,} damaged for good, {report.due:,} still due.",
        highlight=False,
    )
    if report.stopped:
        console.print("Stopped before the end; the next scrub goes on.", highlight=False)


# --- restore ----------------------------------------------------------------------------------------------


@app.command("restore")
def restore(
    tenant: Annotated[str | None, typer.Argument(help="The tenant's name.")] = None,
    window: Annotated[str | None, typer.Option(help="A time in the window that is meant.")] = None,
    to: Annotated[Path | None, typer.Option(help="A new folder; default one under the home.")] = None,
    expires: Annotated[str, typer.Option(help="When it is removed again.")] = "7d",
    purge: Annotated[
        bool, typer.Option("--purge", help="Only remove what has expired on this machine.")
    ] = False,
) -> None:
    """Bring one archived window back as files, verified, apart from the log, for a time."""
    now_us, settings = SystemClock().now_us(), load_settings()
    if purge:
        with open_store(settings) as store:
            purged = tidy_host(store, now_us)
        console.print(f"{plural(len(purged), 'restore')} removed.", highlight=False)
        return
    if tenant is None or window is None:
        raise typer.BadParameter("say which: TENANT --window TIME, or --purge")
    at_us = parse_time_us(window)
    with open_store(settings) as store, progress_bar(*_bytes_bar()) as bar:
        tidy_host(store, now_us)
        task = bar.add_task("restore", total=None)
        found = restore_window(
            store.database,
            store.targets,
            tenant,
            at_us,
            to,
            home=settings.resolved_home,
            now_us=now_us,
            expires_us=now_us + parse_duration_us(expires),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{plural(found.events, 'event')} of {tenant}, verified, are in {escape(str(found.place))} until "
        f"{to_iso(found.expires_us)[:16].replace('T', ' ')} UTC.",
        highlight=False,
        soft_wrap=True,
    )


@app.command("restores")
def restores(
    tenant: TenantOption = None,
    all_: Annotated[bool, typer.Option("--all", help="Those that were removed, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show windows that were brought back."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        found = list_restores(conn, tenant_id=tenant, every=all_)
    if as_json:
        for one in found:
            typer.echo(json.dumps(_restore_json(one), ensure_ascii=False))
        return
    if not found:
        console.print("No restores.")
        return
    table = Table("tenant", "window from", "events", "expires (UTC)", "place", box=None, pad_edge=False)
    table.columns[2].justify = "right"
    for one in found:
        until = to_iso(one.expires_us)[:16].replace("T", " ")
        gone = one.removed_us is not None
        table.add_row(
            one.tenant_id,
            _day(one.window_from_us),
            f"{one.events:,}",
            "removed" if gone else until,
            escape(f"{one.host}:{one.place}"),
        )
    console.print(table)


def _restore_json(found: Restored) -> dict[str, object]:
    return {
        "restore_id": str(found.restore_id),
        "tenant": found.tenant_id,
        "window_from": to_iso(found.window_from_us),
        "events": found.events,
        "host": found.host,
        "place": str(found.place),
        "created": to_iso(found.created_us),
        "expires": to_iso(found.expires_us),
        "removed": None if found.removed_us is None else to_iso(found.removed_us),
    }
