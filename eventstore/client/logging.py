"""A logging handler that records log records as events, through a recorder.

logging.getLogger("billing").addHandler(EventHandler(recorder, source="billing"))
log.warning("limit raised", extra={"event": {"entity_type": "account", "entity_id": "7", "actor": "ann"}})
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from eventstore.client.recorder import Recorder
from eventstore.model.event import TEXT_LIMITS

__all__ = ["EventHandler"]

# What sending itself logs: recorded, it would be sent, and logged again.
_OWN_LOGGERS = ("eventstore.client", "httpx", "httpcore")
_OWN_THREADS = ("eventstore-outbox", "eventstore-sender")
_MESSAGE_CHARS_MAX = 32_000


class EventHandler(logging.Handler):
    """Each log record becomes an event: entity_type `log`, entity_id the logger's name, action the level, and
    the message as new_value. `extra={"event": {…}}` sets any field of the event otherwise.

    It never waits, neither for the store nor for the disk, and never raises: what cannot be taken is
    counted in `dropped`, and goes where logging's own errors go (`logging.Handler.handleError`). It does
    not close the recorder.
    """

    def __init__(
        self, recorder: Recorder, *, source: str, actor: str = "system", level: int = logging.NOTSET
    ) -> None:
        super().__init__(level)
        self._recorder = recorder
        self._source, self._actor = source, actor
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Record a log record."""
        if _is_own(record):
            return
        try:
            # No room at once is no room: the application must not wait for its logs.
            self._recorder.record(self._event(record), wait=False, full="raise", timeout_s=0)
        except Exception:  # noqa: BLE001 - whatever it is, the application goes on
            self.dropped += 1
            self.handleError(record)

    def flush(self) -> None:
        """Wait until what was recorded is durable in the outbox."""
        self._recorder.sync()

    def _event(self, record: logging.LogRecord) -> dict[str, Any]:
        value: dict[str, Any] = {"message": _clean(record.getMessage())}
        if record.exc_info:
            value["exception"] = _clean(logging.Formatter().formatException(record.exc_info))
        given = getattr(record, "event", None)
        return {
            "entity_type": "log",
            "entity_id": _clean(record.name)[: TEXT_LIMITS["entity_id"]],
            "action": record.levelname.lower(),
            "actor": self._actor,
            "source": self._source,
            "new_value": value,
            "occurred_at": datetime.fromtimestamp(record.created, UTC),
            "metadata": {
                "file": _clean(record.pathname),
                "line": record.lineno,
                "function": record.funcName,
                "process": record.process,
                "thread": record.threadName,
            },
            **(given if isinstance(given, Mapping) else {}),
        }


def _is_own(record: logging.LogRecord) -> bool:
    name = record.name
    return record.threadName in _OWN_THREADS or any(
        name == own or name.startswith(f"{own}.") for own in _OWN_LOGGERS
    )


def _clean(text: str) -> str:
    """A text without what no event can hold."""
    return text[:_MESSAGE_CHARS_MAX].replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
