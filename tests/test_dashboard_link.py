"""The link to the page /conversion: direct, by dask's template, through Jupyter's proxy."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import anndata as ad
import dask
import pytest
import scipy.sparse as sp
from distributed import Client, LocalCluster

import dask_convert
from dask_convert import cli_dashboard
from dask_convert.display import dashboard_link as module
from dask_convert.display.dashboard_link import dashboard_link, link_to
from dask_convert.errors import DaskConvertError

HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"}
TEMPLATE = "distributed.dashboard.link"


@pytest.mark.parametrize(
    ("template", "environment", "link"),
    [
        ("{scheme}://{host}:{port}/status", {}, "http://10.0.0.1:8787/conversion"),
        ("{JUPYTERHUB_SERVICE_PREFIX}proxy/{port}/status", HUB, "/user/ada/proxy/8787/conversion"),
        ("https://hub{BASE}/proxy/{host}:{port}/status?token={KEY}", {"BASE": "/a", "KEY": "k"},
         "https://hub/a/proxy/10.0.0.1:8787/conversion?token=k"),
        ("/proxy/{port}/", {}, "/proxy/8787/conversion"),
        ("{NOT_SET}/proxy/{port}/status", {}, "http://10.0.0.1:8787/conversion"),
        ("{broken", {}, "http://10.0.0.1:8787/conversion"),
    ],
)  # fmt: skip
def test_a_link_follows_dasks_template(
    template: str, environment: dict[str, str], link: str
) -> None:
    """Which need not be one of dask's own; one that cannot be filled in is no reason to fail."""
    with dask.config.set({TEMPLATE: template}):
        assert link_to("10.0.0.1", 8787, environment) == link


def test_jupyters_proxy_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a hub, if it is installed, and nobody has said otherwise."""
    assert link_to("127.0.0.1", 1, {}) == "http://127.0.0.1:1/conversion"
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    assert link_to("127.0.0.1", 1, HUB) == "http://127.0.0.1:1/conversion"
    monkeypatch.setattr(module, "find_spec", lambda _name: object())
    assert link_to("127.0.0.1", 1, HUB) == "/user/ada/proxy/1/conversion"
    with dask.config.set({TEMPLATE: "{scheme}://{host}/dask/status"}):
        assert link_to("there", 1, HUB) == "http://there/dask/conversion"


def test_a_link_leads_to_where_the_dashboard_listens() -> None:
    """Through the cluster or by address; None where there is no dashboard."""
    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        Client(cluster.scheduler_address, set_as_default=False) as stranger,
    ):
        link = dashboard_link(client)
        assert link is not None
        assert link == dashboard_link(stranger)
        with urllib.request.urlopen(link.replace(module.PAGE, "/status")) as answer:  # noqa: S310
            assert answer.status == 200
    with (
        LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        assert dashboard_link(client) is None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small h5ad file."""
    path = tmp_path / "cells.h5ad"
    counts = sp.random(60, 30, 0.3, format="csr", random_state=1, dtype="f4")
    ad.AnnData(counts).write_h5ad(path)
    return path


def test_the_dashboard_stays_until_one_has_looked(source: Path, tmp_path: Path) -> None:
    """The store has its name by then, and the page still answers; after a failure it goes."""
    target = tmp_path / "genes.zarr"
    links: list[str] = []
    seen: list[bool] = []

    def look() -> None:
        with urllib.request.urlopen(links[-1]) as answer:  # noqa: S310
            seen.append(answer.status == 200 and target.is_dir())

    hooks = {"on_dashboard": links.append, "before_close": look}
    dask_convert.convert(source, target, workers=1, verify=True, **hooks)
    dask_convert.verify(source, target, workers=1, dashboard_address="127.0.0.1:0", **hooks)
    assert (len(links), seen) == (2, [True, True])
    with pytest.raises(DaskConvertError):
        dask_convert.convert(source, target, workers=1, overwrite=True, data_dtype="u1", **hooks)
    assert seen == [True, True]
    dask_convert.verify(source, target, workers=0, **hooks)
    dask_convert.verify(source, target, workers=1, **hooks)
    assert len(links) == len(seen) + 1 == 3


@pytest.mark.parametrize("end", ["enter", "ctrl-c"])
def test_the_command_prints_the_link_and_waits(source: Path, tmp_path: Path, end: str) -> None:
    """On the error stream, in one line; Enter ends it, and so does Ctrl-C where none can come."""
    command = [sys.executable, "-m", "dask_convert"]
    options = ["--workers", "1", "--keep-dashboard-open"]
    with subprocess.Popen(
        [*command, "convert", source, tmp_path / "genes.zarr", *options],
        stdin=subprocess.PIPE if end == "enter" else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(dask_convert.__file__).parents[1])},
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "stays open" in line:
                break
        (link,) = [
            line.split()[1] for line in lines if line.startswith("dashboard  http://127.0.0.1:")
        ]
        with urllib.request.urlopen(link) as answer:  # noqa: S310
            assert answer.status == 200
        if end == "ctrl-c":
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        try:
            out, rest = process.communicate("\n" if end == "enter" else None, timeout=60)
        finally:
            process.kill()
        assert (process.returncode, rest) == (0, "")
    assert "genes.zarr" in out


def test_ctrl_c_counts_whichever_thread_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any thread may get the signal; Python raises it in the main one, once that wakes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def interrupted() -> None:
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        other = threading.Thread(target=interrupted)
        other.start()
        cli_dashboard._wait()
        other.join()
    finally:
        signal.signal(signal.SIGINT, handler)
