"""A dask dashboard that is loaded when somebody first asks for one of its pages.

What draws it takes half a second to import, and 40 MiB; most conversions end unseen. So the
scheduler's server begins without it. The first request for a page of it waits for the import,
which leaves the scheduler's event loop free, and is then sent to the same address again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tornado import web

if TYPE_CHECKING:
    from distributed import LocalCluster, Scheduler

DASHBOARD = "distributed.dashboard.scheduler"


class LazyDashboard(web.Application):
    """Stands in for the dashboard among the applications of a scheduler's server.

    Parameters
    ----------
    scheduler
        Of this process, listening, and without a dashboard.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__([(r".*", _Load, {"dashboard": self})])
        self._scheduler = scheduler
        self._loading: asyncio.Future[None] | None = None
        self._afterwards: list[Callable[[], object]] = []

    def when_loaded(self, call: Callable[[], object]) -> None:
        """Have something called, on the scheduler's event loop, when the dashboard is there."""
        self._afterwards.append(call)

    async def load(self) -> None:
        """Put the dashboard in the place of this; whoever asks meanwhile waits, too."""
        if self._loading is None:
            self._loading = asyncio.ensure_future(self._load())
        await self._loading

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        module = await loop.run_in_executor(None, import_module, DASHBOARD)
        server = self._scheduler.http_application
        server.applications.remove(self)
        module.connect(server, self._scheduler.http_server, self._scheduler, prefix="/")
        for call in self._afterwards:
            call()


class _Load(web.RequestHandler):
    """Answers the first requests: load, and ask again."""

    def initialize(self, dashboard: LazyDashboard) -> None:
        """Called by tornado."""
        self._dashboard = dashboard

    async def get(self) -> None:
        """Any page."""
        await self._dashboard.load()
        self.redirect(self.request.uri or "/")


def load_when_asked_for(cluster: LocalCluster) -> None:
    """Give the scheduler of a cluster a dashboard that is loaded once somebody looks."""
    scheduler: Any = cluster.scheduler
    server = scheduler.http_application
    dashboard = LazyDashboard(scheduler)
    server.add_application(dashboard)
    # JupyterLab's extension asks for this first, and without a dashboard dask answers: no plots.
    server.add_handlers(r".*", [(r"/individual-plots\.json", _Load, {"dashboard": dashboard})])
    rules = server.default_router.rules
    dashboard.when_loaded(partial(rules.remove, rules[-2]))  # tornado adds before the last


def when_loaded(scheduler: Scheduler, call: Callable[[], object]) -> bool:
    """Have something called once a lazy dashboard is loaded; False if there is none waiting."""
    for application in scheduler.http_application.applications:
        if isinstance(application, LazyDashboard):
            application.when_loaded(call)
            return True
    return False
