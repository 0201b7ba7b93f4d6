"""Where a browser finds the page of a client's conversions, also from behind Jupyter's proxy.

Dask has a template for the links to its dashboards, `distributed.dashboard.link`, in which
variables of the environment stand for what differs from user to user:
``{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status``, for instance. It is followed here. Who has
jupyter-server-proxy on a JupyterHub and has not set it gets just that one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import dask

if TYPE_CHECKING:
    from distributed import Client

PAGE = "/conversion"

_DIRECT = "{scheme}://{host}:{port}/status"
_PROXIED = "{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status"
_ANY = {"", "0.0.0.0", "::"}  # noqa: S104  (compared with, not listened on)


def dashboard_link(client: Client) -> str | None:
    """The address of the page ``/conversion`` on the dashboard of a client's scheduler.

    Parameters
    ----------
    client
        Connected.

    Returns
    -------
        A URL, or a path on the server that a browser's Jupyter came from; None if the scheduler
        has no dashboard.
    """
    where = _host_and_port(client)
    return None if where is None else link_to(*where)


def link_to(host: str, port: int, environment: Mapping[str, str] = os.environ) -> str:
    """The address of the page on a dashboard that listens there.

    Parameters
    ----------
    host, port
        Of the dashboard.
    environment
        Fills in the template.
    """
    is_tls = dask.config.get("distributed.scheduler.dashboard.tls.cert", None)
    values = {**environment, "scheme": "https" if is_tls else "http", "host": host, "port": port}
    try:
        status = _template(environment).format(**values)
    except (KeyError, ValueError, IndexError):  # a variable that is not set here
        status = _DIRECT.format(**values)
    parts = urlsplit(status)
    return urlunsplit(parts._replace(path=parts.path.removesuffix("/status").rstrip("/") + PAGE))


def _template(environment: Mapping[str, str]) -> str:
    template = str(dask.config.get("distributed.dashboard.link", _DIRECT))
    on_hub = "JUPYTERHUB_SERVICE_PREFIX" in environment
    if template == _DIRECT and on_hub and find_spec("jupyter_server_proxy") is not None:
        return _PROXIED
    return template


def _host_and_port(client: Client) -> tuple[str, int] | None:
    """Where the dashboard listens, which need not be where the scheduler does."""
    scheduler = getattr(client.cluster, "scheduler", None)  # in this process, or only known of
    server = getattr(scheduler, "http_application", None)
    if server is not None and not server.applications:
        return None  # it is there for its other pages
    info = client.scheduler_info(n_workers=0)
    port = info.get("services", {}).get("dashboard")
    if port is None:
        return None
    address = getattr(getattr(scheduler, "http_server", None), "address", "")
    if address in _ANY:
        protocol, _, rest = info["address"].partition("://")
        address = "localhost" if protocol == "inproc" else rest.rpartition(":")[0].strip("[]")
    return f"[{address}]" if ":" in address else address, int(port)
