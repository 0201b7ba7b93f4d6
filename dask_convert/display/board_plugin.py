"""Puts conversions on the dask dashboard: a plugin of the scheduler. `board_feed` tells it.

The scheduler gets the page ``/conversion``, an entry in the navigation bar and the counter
``dask_convert_bytes_total`` for Prometheus. How a page is added is not part of distributed's
documented interface, so a scheduler that does it otherwise only goes without the page.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_convert.display.board import TOPIC, Board, Event
from dask_convert.display.dashboard_link import PAGE
from dask_convert.places.lazy_dashboard import when_loaded

if TYPE_CHECKING:
    from distributed import Scheduler

SAMPLE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class ConversionPlugin(SchedulerPlugin):
    """Keeps the board of a scheduler, and shows it."""

    name = "dask-convert"
    idempotent = True

    def __init__(self) -> None:
        self.board = Board()

    async def start(self, scheduler: Scheduler) -> None:
        """Called by dask when the plugin arrives at the scheduler."""
        from tornado.ioloop import PeriodicCallback

        self._scheduler = scheduler
        self._sampler = PeriodicCallback(self._sample, SAMPLE_SECONDS * 1000)
        self._sampler.start()
        self._collector = _register_collector(self.board)
        if not when_loaded(scheduler, self._add_page):
            self._add_page()

    async def close(self) -> None:
        """Called by dask when the scheduler ends."""
        self._sampler.stop()
        if self._collector is not None:
            from prometheus_client import REGISTRY

            REGISTRY.unregister(self._collector)

    def log_event(self, topic: str, msg: Any) -> None:
        """Called by dask for every event of every client."""
        if topic == TOPIC:
            self.board.apply(msgspec.convert(msg, Event), time.time())

    def remove_worker(self, *_scheduler_and_worker: Any, **_details: Any) -> None:
        """Called by dask when a worker has gone, whatever the reason."""
        for run in self.board.running():
            run.lost_workers += 1

    def _add_page(self) -> None:
        try:
            _add_page(self._scheduler, self.board)
        except (ImportError, AttributeError, KeyError) as error:
            _log.warning("no page %s on this dashboard: %r", PAGE, error)

    def _sample(self) -> None:
        now = time.time()
        in_use = {
            str(state.name): float(state.metrics.get("memory", 0))
            for state in self._scheduler.workers.values()
        }
        for run in self.board.running():
            run.sample(now, in_use)


def _register_collector(board: Board) -> Any:
    """Let Prometheus have the counters, where its client is installed."""
    try:
        from prometheus_client import REGISTRY
        from prometheus_client.core import CounterMetricFamily
    except ImportError:
        return None

    class Collector:
        def collect(self) -> Iterator[CounterMetricFamily]:
            family = CounterMetricFamily(
                "dask_convert_bytes", "Bytes moved by conversions", labels=["step"]
            )
            for step, n_bytes in board.total_bytes.items():
                family.add_metric([step], n_bytes)
            yield family

    collector = Collector()
    REGISTRY.register(collector)
    return collector


def _add_page(scheduler: Scheduler, board: Board) -> None:
    """Add the page and its entry in the navigation bar, if the scheduler has a dashboard."""
    applications = scheduler.http_application.applications
    if not applications:
        return
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables
    from tornado.ioloop import IOLoop

    variables = template_variables(scheduler)  # of all pages: kept, and not made anew
    if PAGE.strip("/") in variables["pages"]:
        return
    variables["pages"].append(PAGE.strip("/"))

    def page(_scheduler: Scheduler, extra: dict[str, Any], document: Any) -> None:
        from dask_convert.display.board_page import show

        show(board, document, extra)

    prefix = next((app.prefix for app in applications if hasattr(app, "app_paths")), "")
    application = BokehApplication(
        {PAGE: page}, scheduler, prefix=prefix, template_variables=variables
    )
    scheduler.http_application.add_application(application)
    application.initialize(IOLoop.current())
    application.start()
