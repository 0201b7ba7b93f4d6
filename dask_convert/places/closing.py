"""What dask says while a cluster is closed: nothing. What is under way fails then, as it must."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOGS = ("asyncio", "distributed", "tornado.application")
"""Loggers that tell, with tracebacks, of messages that nobody is there to get any more."""


@contextmanager
def closing_quietly() -> Iterator[Callable[[], None]]:
    """Give what silences these logs until the block ends: to be called when closing begins."""
    before = {log: log.level for log in map(logging.getLogger, LOGS)}

    def hush() -> None:
        for log in before:
            log.setLevel(logging.CRITICAL)

    try:
        yield hush
    finally:
        for log, level in before.items():
            log.setLevel(level)
