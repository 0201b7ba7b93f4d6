"""How long a run is patient with what surrounds it; no part of what it makes."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Bounds on waiting and on trying again.

    Attributes
    ----------
    wait_seconds
        For a published file to become visible, as network file systems show new files late.
    worker_ttl_seconds
        Without a sign of life after which a worker counts as lost; its task goes elsewhere.
    start_seconds
        For a worker to start.
    tries
        Of a row block whose fragments turn out to be damaged.
    """

    wait_seconds: float = 60.0
    worker_ttl_seconds: float = 60.0
    start_seconds: float = 120.0
    tries: int = 3
