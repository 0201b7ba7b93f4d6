"""Conversions that are to die: a small source, runs in processes of their own, what must come out.

Processes are forked from a server that has loaded everything, so that a run takes a fraction of a
second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import rehearsing
from engine import convert
from strategies import Csr, Storage, random_csr, write_h5ad

from dask_convert import api, options
from dask_convert.errors import DaskConvertError
from dask_convert.files import failpoints
from dask_convert.places.places import Place
from dask_convert.planning.limits import Limits
from dask_convert.planning.plans import Settings

N_OBS, N_VARS = 2_000, 300
CUTS: dict[str, Any] = {
    "chunk_nnz": 500,
    "shard_nnz": 1_500,
    "block_nnz": 3_000,
    "region_nnz": 6_000,
    "column_width": 32,
}
"""Settings that make about 20 row blocks and 10 regions of the source."""


def make_source(path: Path) -> Csr:
    """Write a source; returns its matrix."""
    rng = np.random.default_rng(7)
    matrix = random_csr(rng, (N_OBS, N_VARS), rng.integers(0, 60, N_OBS), "f8", "rare")
    write_h5ad(path, matrix, Storage(1_000, "shuffle+gzip"))
    return matrix


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def leftovers(target: Path) -> list[str]:
    """What runs have left beside a target."""
    return sorted(path.name for path in target.parent.glob(f".{target.name}.*"))


def blocks_done(target: Path) -> int:
    """Row blocks whose reports are published, scratch being beside the target."""
    return len(list(target.parent.glob(f".{target.name}.scratch-*/*/*/block-*.json")))


def regions_done(target: Path) -> int:
    """The same for regions."""
    return len(list(target.parent.glob(f".{target.name}.scratch-*/*/*/region-*.json")))


def run_here(source: Path, target: Path, settings: dict[str, Any]) -> None:
    """Convert without a cluster; an expected error ends the process with its code."""
    try:
        convert(source, target, **{**CUTS, **settings})
    except DaskConvertError as error:
        os._exit(error.exit_code)


def run_cluster(source: Path, target: Path, chosen: dict[str, Any]) -> None:
    """Convert on a local cluster of two workers, as the command line would."""
    tiny_plans()
    start_seconds = chosen.pop("start_seconds", 30.0)
    options.Limits = partial(Limits, start_seconds=start_seconds)  # type: ignore[assignment,misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        api.convert(source, target, workers=2, memory="1GiB", dashboard_address=None, **chosen)
    except DaskConvertError as error:
        target.with_name("message").write_text("; ".join([str(error), *_notes(error)]))
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def tiny_plans() -> None:
    """Make the public functions plan as for `CUTS`, which users cannot ask for."""
    original = options.Options.settings

    def settings(self: options.Options, place: Place) -> Settings:
        return msgspec.structs.replace(original(self, place), **CUTS)

    options.Options.settings = settings  # type: ignore[method-assign]


def start(
    work: Callable[..., None], *arguments: Any, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Begin something in a process of its own, and of a group of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["faults", "dask_convert.engine.preload"])
    process = context.Process(target=_in_group, args=(environment or {}, work, *arguments))
    process.start()
    return process


def _in_group(environment: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    os.setsid()
    os.environ.update(environment)
    rehearsing.join_server()
    work(*arguments)


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """The exit code of a process; negative for the signal that ended it."""
    process.join(seconds)
    assert process.exitcode is not None, "hangs"
    return process.exitcode


def failpoint(rules: str) -> dict[str, str]:
    """The environment in which failpoints follow some rules."""
    return {failpoints.VARIABLE: rules}


def workers_of(process: BaseProcess) -> list[psutil.Process]:
    """The dask workers below a driver: what its fork server has forked."""
    found = []
    with suppress(psutil.Error):
        for below in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if below.parent().pid != process.pid and below.status() != psutil.STATUS_ZOMBIE:
                    found.append(below)
    return found


def group(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    living = []
    for process in psutil.process_iter(["status"]):
        with suppress(OSError):
            if os.getsid(process.pid) == leader and process.info["status"] != "zombie":
                living.append(process)
    return living


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def disturb(process: BaseProcess, dice: random.Random, kind: str) -> None:
    """Do something bad to a running conversion, if it still runs."""
    with suppress(psutil.Error, ProcessLookupError):
        if kind == "driver":
            os.kill(process.pid or 0, signal.SIGKILL)
        elif kind in {"SIGTERM", "SIGINT"}:
            os.kill(process.pid or 0, signal.Signals[kind])
        else:
            workers = workers_of(process)
            if workers:
                one = dice.choice(workers)
                one.send_signal(signal.SIGKILL if kind == "worker" else signal.SIGSTOP)
