"""The named archive targets of a deployment: each opened, prepared and proven at its first use, once."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping

from eventstore.archive.address import location_of
from eventstore.archive.layout import MARKER_KEY
from eventstore.archive.registry import open_target
from eventstore.archive.target import ArchiveTarget
from eventstore.archive.unproven import UnprovenTarget
from eventstore.errors import EventStoreError, SetupError, TargetUnavailableError

__all__ = ["Targets"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class Targets:
    """Targets by name. Safe for many threads; a target that is away keeps nobody from the others."""

    def __init__(
        self,
        urls: Mapping[str, str],
        *,
        default: str,
        prepare: Callable[[str, ArchiveTarget], None] | None = None,
    ) -> None:
        """`prepare(name, target)` is called once for each target, when it has been opened. It reads before
        it writes, and what it writes is put into a target that is proven.

        Raises:
            SetupError: a name is not one, the default is not among them, or one place has two names.
        """
        _check(urls, default)
        self._urls, self._default, self._prepare = dict(urls), default, prepare
        self._open: dict[str, ArchiveTarget] = {}
        self._locks = {name: threading.Lock() for name in urls}

    @classmethod
    def single(cls, target: ArchiveTarget, name: str = "archive") -> Targets:
        """One target that is open already, and is taken as it is: neither proven nor prepared."""
        targets = cls({name: "memory://single"}, default=name)
        targets._open[name] = target
        return targets

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order in which they were given."""
        return tuple(self._urls)

    @property
    def default(self) -> str:
        return self._default

    def __contains__(self, name: object) -> bool:
        return name in self._urls

    def __getitem__(self, name: str) -> ArchiveTarget:
        """The target of a name, opened if it is not. What failed is tried again at the next use.

        One that takes no writes now (no right, no room, no answer to them) is opened for reading, with a
        warning in the log, if it is the archive that it should be; `read_only` names it, and each write is
        refused until it has proven itself.

        Raises:
            SetupError: there is no such name, or the target must not be used as it is.
            TargetUnavailableError: the target did not answer.
        """
        found = self._open.get(name)
        if found is not None:
            return found
        if name not in self._urls:
            raise SetupError(f"there is no archive target {name!r}", hint=f"known: {', '.join(self._urls)}")
        with self._locks[name]:
            found = self._open.get(name)
            if found is None:
                found = self._open[name] = self._open_proven(name)
            return found

    def _open_proven(self, name: str) -> ArchiveTarget:
        found = open_target(self._urls[name])
        unproven = UnprovenTarget(found)
        try:
            # First, so that nothing at all is written into the archive of another database.
            if self._prepare is not None:
                self._prepare(name, unproven)
            try:
                unproven.prove()
            except TargetUnavailableError as e:
                if not _is_archive(found):
                    raise
                _log.warning("archive target %r is open for reading only: %s", name, e)
                return unproven
        except BaseException:
            _close(found)
            raise
        return found

    def opened(self) -> dict[str, ArchiveTarget]:
        """Those that are open, by name."""
        return dict(self._open)

    def read_only(self) -> dict[str, str]:
        """Those that are open and have not taken a write yet, and why they did not."""
        return {
            name: target.reason
            for name, target in self.opened().items()
            if isinstance(target, UnprovenTarget) and not target.proven
        }

    def close(self) -> None:
        """Close those that are open. A later use opens them anew."""
        for name, lock in self._locks.items():
            with lock:
                target = self._open.pop(name, None)
            if target is not None:
                _close(target)


def _check(urls: Mapping[str, str], default: str) -> None:
    for name in urls:
        if not _NAME.fullmatch(name):
            raise SetupError(
                f"{name!r} is no name for an archive target", hint="a-z, 0-9 and '-', at most 31 characters"
            )
    if default not in urls:
        raise SetupError(
            f"the default archive target {default!r} has no URL", hint=f"known: {', '.join(urls)}"
        )
    places: dict[str, str] = {}
    for name, url in urls.items():
        place = f"{location_of(url)}/"
        for other, taken in places.items():
            if place.startswith(taken) or taken.startswith(place):
                raise SetupError(
                    f"the archive targets {other!r} and {name!r} lie in one place, or one within the other",
                    hint="give each a prefix of its own: a listing of one would show the other's objects",
                )
        places[name] = place


def _is_archive(target: ArchiveTarget) -> bool:
    """That it can be read, and is an archive already. (Whose, `prepare` has looked at.)"""
    try:
        target.stat(MARKER_KEY)
    except EventStoreError:
        return False
    return True


def _close(target: ArchiveTarget) -> None:
    close = getattr(target, "close", None)
    if close is not None:
        close()
