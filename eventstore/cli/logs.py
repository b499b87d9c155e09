"""How programs that run unattended speak: a JSON object a line on stderr, coloured lines on a terminal."""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["log_for_machines"]


def log_for_machines() -> None:
    """Send the log of this program, and of the libraries it uses, to stderr in one form."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for chatty in ("apscheduler", "botocore", "aiobotocore", "urllib3", "s3fs", "fsspec"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
