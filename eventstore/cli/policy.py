"""Commands about policies: what is in force, what a change would do, and the change."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from eventstore.app import Store, open_store
from eventstore.catalog.tenants import get_tenant
from eventstore.cli.output import console, errors, plural
from eventstore.clock import to_iso
from eventstore.errors import InputError
from eventstore.governance.policies import apply_change, policy_versions, preview_change
from eventstore.governance.record import mirror_or_warn
from eventstore.model.explain import at_text, policy_lines
from eventstore.model.policy import (
    ArchiveTier,
    Ending,
    PolicyOverride,
    PolicyVersion,
    format_duration,
    parse_duration_us,
)
from eventstore.model.policy_change import Effect, PolicyChange, standing
from eventstore.model.quality import QualityAction, QualityRule
from eventstore.model.window import WindowUnit
from eventstore.query.explain import policy_facts
from eventstore.settings import load_settings

__all__ = ["ByOption", "app", "change_from", "mirror_change", "register", "user_name"]

app = typer.Typer(help="Policies: how long what is kept where, and what then.", no_args_is_help=True)


def register(to: typer.Typer) -> None:
    """Add the group."""
    to.add_typer(app, name="policy")


# Of a change of the default, so many tenants are shown; those where something is destroyed come first.
_TENANTS_SHOWN = 20


def user_name() -> str:
    """Whoever runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "unknown"


TenantOrDefault = Annotated[
    str | None, typer.Argument(metavar="TENANT", help="The tenant's name; none: the deployment's default.")
]
ByOption = Annotated[
    str,
    typer.Option("--by", help="Who asks for it.", default_factory=user_name, show_default="your user name"),
]
WindowOption = Annotated[WindowUnit | None, typer.Option(help="What windows are aligned to.")]
HotForOption = Annotated[
    str | None, typer.Option(help="How long a window stays in Postgres after its end, e.g. 90d or 12h.")
]
TierOption = Annotated[
    list[str] | None,
    typer.Option("--tier", help="TARGET=DURATION, in order; the last may be TARGET alone. Repeatable."),
]
ThenOption = Annotated[Ending | None, typer.Option(help="What follows the last tier: keep or expire.")]
QualityOption = Annotated[
    list[str] | None, typer.Option("--quality", help="RULE=off, warn or stop. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
ReasonOption = Annotated[str, typer.Option(help="Why it is changed.")]
ConfirmOption = Annotated[
    int | None, typer.Option(min=0, help="How many events it destroys sooner, as the explanation says.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Explain the change, and do not make it.")]


def change_from(
    *,
    window: WindowUnit | None,
    hot_for: str | None,
    tiers: Sequence[str] | None,
    then: Ending | None,
    quality: Sequence[str] | None = None,
) -> PolicyOverride:
    """What the options say of a policy.

    Raises:
        InputError: one cannot be read.
    """
    return PolicyOverride(
        unit=window,
        hot_for_us=None if hot_for is None else parse_duration_us(hot_for),
        tiers=tuple(_tier(text) for text in tiers) if tiers else None,
        ending=then,
        quality=dict(_rule(text) for text in quality) if quality else None,
    )


def _tier(text: str) -> ArchiveTier:
    target, given, stay = text.partition("=")
    if not target or (given and not stay):
        raise InputError(f"--tier {text!r} is not a tier", hint="write it like near=1y, or deep")
    return ArchiveTier(target, parse_duration_us(stay) if given else None)


def _rule(text: str) -> tuple[QualityRule, QualityAction]:
    rule, _, action = text.partition("=")
    try:
        return QualityRule(rule), QualityAction(action)
    except ValueError:
        raise InputError(
            f"--quality {text!r} is not a rule with an action",
            hint=f"write RULE=ACTION; rules: {', '.join(QualityRule)}; actions: {', '.join(QualityAction)}",
        ) from None


def mirror_change(store: Store) -> None:
    """Copy what was just recorded into the default target; a warning if it cannot be now."""
    warning = mirror_or_warn(store.database, store.targets)
    if warning is not None:
        errors.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


# --- show ---------------------------------------------------------------------------------------------


@app.command("show")
def show(tenant: TenantOrDefault = None, as_json: JsonOption = False) -> None:
    """Show the policy in force, in words and as a document, and every version of it."""
    with open_store(load_settings()) as store, store.database.transaction() as conn:
        now_us = store.database.now_us()
        if tenant is not None:
            get_tenant(conn, tenant)
        versions = policy_versions(conn, tenant)
        facts = policy_facts(conn, tenant, now_us)
    policy = facts.in_force.policy
    if as_json:
        document = {
            "tenant": tenant,
            "policy": policy.as_json(),
            "policy_no": facts.in_force.policy_no,
            "versions": [_version_json(version) for version in versions],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for line in policy_lines(facts):
        console.print(escape(line[0].upper() + line[1:] + "."), highlight=False, soft_wrap=True)
    for version, coming in facts.coming:
        console.print(
            f"[yellow]From {at_text(version.effective_us)}[/] (version {version.policy_no}): "
            f"{escape(coming.in_words())}.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(json.dumps(policy.as_json(), indent=2), highlight=False, markup=False)
    if versions:
        console.print(_versions_table(versions, now_us))
    elif tenant is not None:
        console.print(f"[dim]{tenant} has no policy of its own; it follows the deployment's default.[/]")


def _version_json(version: PolicyVersion) -> dict[str, object]:
    return {
        "policy_no": version.policy_no,
        "policy": version.override.as_json(),
        "effective": to_iso(max(version.effective_us, version.created_us)),
        "created": to_iso(version.created_us),
        "actor": version.actor,
        "reason": version.reason,
        "confirmed_events": version.confirmed_events,
    }


def _versions_table(versions: Sequence[PolicyVersion], now_us: int) -> Table:
    table = Table("version", "made (UTC)", "by", "says", "in force", "reason", box=None, pad_edge=False)
    table.columns[0].justify = "right"
    stand = {version.policy_no for version in standing(versions)}
    current = max((v.policy_no for v in standing(versions) if v.effective_us <= now_us), default=None)
    for version in versions:
        since = at_text(max(version.effective_us, version.created_us))
        if version.policy_no not in stand:
            state = "[red]withdrawn[/]"
        elif version.effective_us > now_us:
            state = f"[yellow]from {since}[/]"
        elif version.policy_no == current:
            state = f"[green]since {since}[/]"
        else:
            state = f"since {since}, until a later one"
        confirmed = version.confirmed_events
        note = "" if confirmed is None else f" (confirmed: {plural(confirmed, 'event')})"
        table.add_row(
            str(version.policy_no),
            to_iso(version.created_us)[:16].replace("T", " "),
            escape(version.actor),
            escape(_says(version.override)),
            state,
            escape(version.reason + note),
        )
    return table


def _says(override: PolicyOverride) -> str:
    """What a version says, as the options that would say it."""
    parts = [] if override.unit is None else [f"window {override.unit}"]
    if override.hot_for_us is not None:
        parts.append(f"hot {format_duration(override.hot_for_us)}")
    for tier in override.tiers or ():
        parts.append(tier.target if tier.for_us is None else f"{tier.target} {format_duration(tier.for_us)}")
    if override.ending is not None:
        parts.append(override.ending.value)
    parts += [f"{rule}={action}" for rule, action in sorted((override.quality or {}).items())]
    return ", ".join(parts) or "nothing (follows the default)"


# --- change -------------------------------------------------------------------------------------------


@app.command("set")
def set_(
    tenant: TenantOrDefault = None,
    default: Annotated[bool, typer.Option("--default", help="Change the deployment's default.")] = False,
    window: WindowOption = None,
    hot_for: HotForOption = None,
    tier: TierOption = None,
    then: ThenOption = None,
    quality: QualityOption = None,
    reason: ReasonOption = "",
    confirm: ConfirmOption = None,
    dry_run: DryRunOption = False,
    *,
    by: ByOption,
) -> None:
    """Change a policy, after explaining what that moves or destroys, and when.

    What is not given stays as it is. A change that destroys history sooner needs --confirm with the count
    that the explanation names, and comes into force after a time of grace.
    """
    if default == (tenant is not None):
        raise InputError("whose policy?", hint="name a tenant, or give --default")
    change = change_from(window=window, hot_for=hot_for, tiers=tier, then=then, quality=quality)
    if change == PolicyOverride():
        raise InputError("nothing to change", hint="give --hot-for, --tier, --then, --window or --quality")
    _change(tenant, change, reason=reason, by=by, confirm=confirm, dry_run=dry_run)


@app.command("reset")
def reset(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")],
    reason: ReasonOption = "",
    confirm: ConfirmOption = None,
    dry_run: DryRunOption = False,
    *,
    by: ByOption,
) -> None:
    """Let a tenant follow the deployment's default again. Explained and confirmed as `policy set`."""
    _change(tenant, None, reason=reason, by=by, confirm=confirm, dry_run=dry_run)


def _change(
    tenant: str | None,
    change: PolicyOverride | None,
    *,
    reason: str,
    by: str,
    confirm: int | None,
    dry_run: bool,
) -> None:
    with open_store(load_settings()) as store:
        now_us = store.database.now_us()
        grace_us = parse_duration_us(store.settings.policy_grace)
        names = store.targets.names
        explained = preview_change(store.database, tenant, change, now_us, names, grace_us=grace_us)
        _print_change(explained, now_us)
        if dry_run:
            console.print("Nothing was changed.")
            return
        if explained.changes_nothing:
            console.print("The policy says so already; nothing was changed.")
            return
        if not reason.strip():
            raise InputError("a change needs a reason", hint="give --reason, or --dry-run to look only")
        version = apply_change(
            store.database,
            tenant,
            change,
            actor=by,
            reason=reason,
            now_us=now_us,
            known_targets=names,
            grace_us=grace_us,
            confirm=confirm,
        )
        mirror_change(store)
    when = "at once" if version.effective_us <= now_us else f"from {at_text(version.effective_us)}"
    console.print(f"Policy version {version.policy_no} is in force {when}.", highlight=False)


def _print_change(change: PolicyChange, now_us: int) -> None:
    whose = "The deployment's default" if change.tenant_id is None else f"The policy of {change.tenant_id}"
    lines = change.differences()
    console.print(f"{whose} would change:" if lines else f"{whose} would stay as it is.", highlight=False)
    for line in lines:
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    for number in change.withdraws:
        console.print(
            f"[yellow]Version {number}, in its grace time, would be withdrawn and never come into force.[/]",
            highlight=False,
        )
    affected = sorted(change.tenants, key=lambda t: -sum(_destroyed(e) for e in t.effects))
    table = Table("tenant", "windows", "events", "would be", "when", box=None, pad_edge=False)
    for column in table.columns[1:3]:
        column.justify = "right"
    for tenant in affected[:_TENANTS_SHOWN]:
        for effect in tenant.effects:
            table.add_row(
                tenant.tenant_id, f"{effect.windows:,}", f"{effect.events:,}", _what(effect), _when(effect)
            )
    if table.row_count:
        console.print(table)
    elif lines:
        console.print("No window that exists would be moved or destroyed at another time.")
    if len(affected) > _TENANTS_SHOWN:
        console.print(f"… and {plural(len(affected) - _TENANTS_SHOWN, 'more tenant')}.")
    if change.destroys_sooner:
        first = change.first_destruction_us
        date = "" if first is None else f", the first from {at_text(first)} on"
        console.print(
            f"[red]It destroys history sooner:[/] {plural(change.events_destroyed_sooner, 'event')} of "
            f"windows that have ended{date}. It would come into force on {at_text(change.effective_us)}.",
            highlight=False,
            soft_wrap=True,
        )


def _destroyed(effect: Effect) -> int:
    return effect.events if effect.kind.value == "destroyed sooner" else 0


def _what(effect: Effect) -> str:
    style = "red" if _destroyed(effect) else "default"
    where = "" if effect.target is None else f" to {escape(effect.target)}"
    kind = effect.kind.value
    words = kind.replace(" any more", f"{where} any more") if "any more" in kind else kind
    if where and "any more" not in kind:
        verb, _, how = kind.partition(" ")
        words = f"{verb}{where} {how.replace('elsewhere', 'instead')}"
    return f"[{style}]{words}[/]"


def _when(effect: Effect) -> str:
    if effect.first_us is None or effect.last_us is None:
        return "–"
    first, last = at_text(effect.first_us), at_text(effect.last_us)
    return first if first == last else f"{first} … {last}"
