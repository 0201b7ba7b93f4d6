"""Where a dashboard is to listen: looked at before a cluster is started for nothing."""

from __future__ import annotations

import re
import socket

from dask_convert.errors import PlanError

MAX_PORT = 65535
_ADDRESS = re.compile(r"(?:(?P<host>[^:/,\[\]\s]*):)?(?P<port>\d+)|(?P<name>[^:/,\[\]\s]*)")


def require_dashboard_address(address: str) -> None:
    """Refuse what is no host and port that this machine can listen at.

    Parameters
    ----------
    address
        ``HOST:PORT``, ``:PORT``, ``PORT`` or ``HOST``.

    Raises
    ------
    PlanError
        Says why not.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"] or 0) > MAX_PORT:
        msg = f"dashboard_address is {address!r}: HOST:PORT, such as 127.0.0.1:8787, or none"
        raise PlanError(msg)
    host = found["host"] or found["name"]
    if host in {"", "127.0.0.1"}:  # which is always there
        return
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as tried:
            tried.bind(where)
    except (OSError, UnicodeError) as error:
        msg = (
            f"dashboard_address is {address!r}, and this machine cannot listen there: "
            f"{getattr(error, 'strerror', None) or error}; try 127.0.0.1:0, or none"
        )
        raise PlanError(msg) from error
