"""The dashboard on the command line: where it is, and how long it stays."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

from dask_convert.cli_options import group_of, rare
from dask_convert.display.telling import tell

_NAP_SECONDS = 0.2

with_dashboard = group_of(
    rare(
        "--dashboard-address",
        default="127.0.0.1:0",
        show_default=True,
        metavar="HOST:PORT",
        help="Of the dask dashboard; none for no dashboard.",
    ),
    rare(
        "--keep-dashboard-open",
        is_flag=True,
        default=False,
        help="When all is done well, keep the dashboard until Enter or Ctrl-C.",
    ),
)


def arguments(options: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """What the options come to as arguments of `api.convert` and `api.verify`.

    Takes ``keep_dashboard_open`` out of `options`: the functions don't know it.
    """
    kept = options.pop("keep_dashboard_open")
    return {"on_dashboard": None if quiet else _tell, "before_close": _wait if kept else None}


def _tell(link: str) -> None:
    tell(f"dashboard  {link}")


def _wait() -> None:
    """Return at Enter or Ctrl-C; without a terminal's input at Ctrl-C or SIGTERM alone."""
    tell("done; the dashboard stays open until Enter or Ctrl-C")
    with suppress(KeyboardInterrupt):
        if not sys.stdin.readline():
            while True:  # a signal that another thread got wakes nobody who sleeps for good
                time.sleep(_NAP_SECONDS)
