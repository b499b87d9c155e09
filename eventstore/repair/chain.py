"""Which objects make up a tenant's log: the ones whose chain is whole, from the first event on. Pure.

Several objects may claim one range: a copy that was still to be removed, a damaged one's replacement, what a
killed process left. A window's segments are taken from one target wherever that has them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from eventstore.model.certificate import Certificate, CertificateKind
from eventstore.model.segment import Segment
from eventstore.model.window import Window

__all__ = ["ChosenWindow", "Log", "choose_log"]


@dataclass(frozen=True, slots=True)
class ChosenWindow:
    """A window of the log. Its segments may come from several targets: those not in `target` are to be copied
    there. `certificate` set: it was destroyed, and has no segments."""

    window: Window
    first_seq: int
    last_seq: int
    hash_before: bytes
    hash_after: bytes
    target: str | None
    segments: tuple[Segment, ...] = ()
    certificate: Certificate | None = None


@dataclass(slots=True)
class Log:
    """A log as its objects show it, up to `last_seq`. `left`: objects that are not part of it, and why.
    `problem` None: nothing is missing before its end; else what is, and the log must not be used."""

    last_seq: int
    last_hash: bytes
    windows: list[ChosenWindow] = field(default_factory=list)
    left: list[tuple[Segment, str]] = field(default_factory=list)
    offboarded: Certificate | None = None
    problem: str | None = None


def choose_log(
    start: bytes, found: Sequence[Segment], certificates: Sequence[Certificate], preferred: Sequence[str]
) -> Log:
    """Make a log of segments that are whole in themselves, and certificates whose signatures and chain are
    right. `start` is the start of the tenant's chain; of targets that have the same, the first of `preferred`
    is taken.
    """
    log = Log(0, start)
    expired = {c.first_seq: c for c in certificates if c.kind is CertificateKind.EXPIRED}
    log.offboarded = next((c for c in certificates if c.kind is CertificateKind.OFFBOARDED), None)
    by_first: dict[int, list[Segment]] = {}
    for segment in [] if log.offboarded else found:
        by_first.setdefault(segment.range.first_seq, []).append(segment)
    while log.problem is None:
        certificate = expired.get(log.last_seq + 1)
        if certificate is not None:
            chosen: ChosenWindow | None = _destroyed(log, certificate)
        elif log.offboarded is not None:
            following = [first for first in expired if first > log.last_seq]
            _skip_to(log, expired[min(following)] if following else None)
            if not following:
                break
            continue
        else:
            chosen = _stored(log, by_first, preferred)
        if chosen is None:
            break
        if log.windows and chosen.window.from_us < log.windows[-1].window.to_us:
            log.problem = f"window {chosen.window} does not follow {log.windows[-1].window}"
            break
        log.windows.append(chosen)
        log.last_seq, log.last_hash = chosen.last_seq, chosen.hash_after
    _judge_rest(log, found, expired.values())
    return log


def _destroyed(log: Log, c: Certificate) -> ChosenWindow | None:
    if c.hash_before != log.last_hash:
        log.problem = f"what lies before seq {c.first_seq} is not what {c} says"
        return None
    assert c.window_from_us is not None
    assert c.window_to_us is not None
    return ChosenWindow(
        Window(c.window_from_us, c.window_to_us),
        c.first_seq,
        c.last_seq,
        c.hash_before,
        c.hash_after,
        c.segments[0].target if c.segments else None,
        certificate=c,
    )


def _skip_to(log: Log, certificate: Certificate | None) -> None:
    """In an offboarded log, what is not a window that had expired before was destroyed with all the rest."""
    assert log.offboarded is not None
    if certificate is None:
        log.last_seq, log.last_hash = log.offboarded.last_seq, log.offboarded.hash_after
    else:
        log.last_seq, log.last_hash = certificate.first_seq - 1, certificate.hash_before


def _stored(log: Log, by_first: dict[int, list[Segment]], preferred: Sequence[str]) -> ChosenWindow | None:
    """The next window, from the target that has most of it."""
    fitting = [s for s in by_first.get(log.last_seq + 1, ()) if s.range.hash_before == log.last_hash]
    best: tuple[Segment, ...] = ()
    for window in sorted({s.range.window for s in fitting}):
        names = {s.target for s in fitting}
        order = sorted(names, key=lambda name: (_rank(preferred, name), name))
        paths = [_walk(log, by_first, window, name) for name in order]
        # Only if no one target has it all are parts of several taken together.
        for path in (*paths, _walk(log, by_first, window, None)):
            if path and (not best or path[-1].range.last_seq > best[-1].range.last_seq):
                best = path
    if not best:
        return None
    events: dict[str, int] = {}
    for segment in best:
        events[segment.target] = events.get(segment.target, 0) + segment.range.event_count
    target = min(events, key=lambda name: (-events[name], _rank(preferred, name), name))
    first, last = best[0].range, best[-1].range
    return ChosenWindow(
        first.window, first.first_seq, last.last_seq, first.hash_before, last.hash_after, target, best
    )


def _walk(
    log: Log, by_first: dict[int, list[Segment]], window: Window, target: str | None
) -> tuple[Segment, ...]:
    """A window's segments, hash to hash from where the log is; `target` None: whichever target has them."""
    path: list[Segment] = []
    seq, last_hash = log.last_seq, log.last_hash
    while True:
        following = [
            s
            for s in by_first.get(seq + 1, ())
            if s.range.hash_before == last_hash
            and s.range.window == window
            and (target is None or s.target == target)
        ]
        if not following:
            return tuple(path)
        path.append(min(following, key=lambda s: (-s.range.last_seq, s.key, s.target)))
        seq, last_hash = path[-1].range.last_seq, path[-1].range.hash_after


def _rank(preferred: Sequence[str], name: str) -> int:
    return preferred.index(name) if name in preferred else len(preferred)


def _judge_rest(log: Log, found: Sequence[Segment], expired: Iterable[Certificate]) -> None:
    """Say why the rest is not in the log; what lies beyond its end shows that something is missing."""
    chosen = {(s.target, s.key) for window in log.windows for s in window.segments}
    beyond: list[int] = []
    for segment in found:
        r = segment.range
        if (segment.target, segment.key) in chosen:
            continue
        if log.offboarded is not None:
            log.left.append((segment, f"destroyed with the whole log under {log.offboarded}, but is there"))
            continue
        under = next((c for c in expired if c.first_seq <= r.first_seq and r.last_seq <= c.last_seq), None)
        if under is not None:
            log.left.append((segment, f"destroyed under {under}, but is there"))
        elif r.last_seq <= log.last_seq:
            log.left.append((segment, "another object holds these events"))
        else:
            beyond.append(r.first_seq)
    beyond += [c.first_seq for c in expired if c.first_seq > log.last_seq]
    if beyond and log.problem is None:
        first = min(beyond)
        log.problem = (
            f"seq {log.last_seq + 1} to {first - 1} are in no object"
            if first > log.last_seq + 1
            else f"the chain breaks behind seq {log.last_seq}: what follows does not join it"
        )
