"""The page /conversion in a real browser: it shows what a running conversion has done."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest
from distributed import Client, Scheduler

import dask_convert
from dask_convert.display.board_plugin import ConversionPlugin
from dask_convert.display.progress import Silent
from dask_convert.engine.graph import Report
from dask_convert.example.synthetic import write_synthetic_h5ad
from dask_convert.planning.plans import MatrixPlan
from dask_convert.planning.sizes import bytes_text

pytestmark = pytest.mark.browser

REPORTS = 5
"""Tasks after which the conversion stands still to be looked at."""


class Pausing(Silent):
    """Stops the conversion after some tasks until it is told to go on."""

    def __init__(self) -> None:
        self.paused, self.go_on = threading.Event(), threading.Event()
        self._left = REPORTS

    def report(self, matrix: MatrixPlan, report: Report) -> None:  # noqa: ARG002  (of any task)
        """See `run.Progress`."""
        if self._left == 0:
            self.paused.set()
            self.go_on.wait(60)
        self._left -= 1


@pytest.mark.parametrize("cluster", ["given", "own"])
def test_the_page_shows_a_running_conversion(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str
) -> None:
    """Tasks and bytes on the page are those of the tasks that are done; the bar has its entry.

    On a cluster with dask's dashboard, and on the conversion's own, where that is loaded only now.
    """
    from playwright.sync_api import sync_playwright

    source = tmp_path / "cells.h5ad"
    write_synthetic_h5ad(source, n_obs=60_000, n_vars=2_000, seed=1, processes=1)
    pausing, links, plugins = Pausing(), Queue[str](), Queue[ConversionPlugin]()
    start = ConversionPlugin.start

    async def noted(plugin: ConversionPlugin, scheduler: Scheduler) -> None:
        await start(plugin, scheduler)
        plugins.put(plugin)

    monkeypatch.setattr(ConversionPlugin, "start", noted)
    options = {"client": client} if cluster == "given" else {"workers": 1}
    with ThreadPoolExecutor(1) as pool, sync_playwright() as playwright:
        running = pool.submit(
            dask_convert.convert,
            source,
            tmp_path / "genes.zarr",
            progress=pausing,
            on_dashboard=links.put,
            **options,
        )
        try:
            assert pausing.paused.wait(60)
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            link = links.get()
            page.goto(link)
            page.wait_for_selector("canvas")
            if cluster == "given":
                board = client.cluster.scheduler.plugins[ConversionPlugin.name].board
            else:
                board = plugins.get().board
            run = board.newest()
            read = bytes_text(run.bytes["source"])
            page.get_by_text(f"read {read}").wait_for(timeout=20_000)
            page.get_by_text("genes.zarr").first.wait_for()
            assert sum(run.done.values()) == REPORTS
            page.goto(link.removesuffix("/conversion"))  # the first page of dask's own
            assert page.url.endswith("/status")
            assert page.locator("a", has_text="Conversion").count() == 1
            browser.close()
        finally:
            pausing.go_on.set()
        running.result()
