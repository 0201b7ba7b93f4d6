"""Loaded into workers by dask (`distributed.worker.preload`): slows them down, and breaks them.

The directory `CONTROL` says how, by files with these names:

    seconds     each task takes so many seconds more
    hog         a worker that runs a split task takes memory without end; `hog-once`: the first
    elsewhere   directories that should be shared are not
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from dask_convert.engine import stages
from dask_convert.places import probes, worker_checks

CONTROL = Path(os.environ["DASK_CONVERT_TEST_CONTROL"])


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A task that takes longer, and more memory."""

    def slowed(*arguments: Any) -> Any:
        hold = []
        while (CONTROL / "hog").exists() or hog_once():
            hold.append(bytearray(64 * 2**20))
            time.sleep(0.05)
        with suppress(FileNotFoundError):
            time.sleep(float((CONTROL / "seconds").read_text()))
        return function(*arguments)

    return slowed


def hog_once() -> bool:
    """Whether this is the process that shall take memory: the one that is first."""
    with suppress(FileNotFoundError):
        (CONTROL / "hog-once").rename(CONTROL / f"hog-{os.getpid()}")
    return (CONTROL / f"hog-{os.getpid()}").exists()


def meet_elsewhere(question: probes.Question, wait_seconds: float) -> None:
    """Looks into a directory of this node alone, where that is asked for."""
    if (CONTROL / "elsewhere").exists():
        question = msgspec.structs.replace(question, directory=str(CONTROL / "elsewhere"))
    probes.meet(question, wait_seconds)


stages.split = slow(stages.split)
stages.combine = slow(stages.combine)
worker_checks.meet = meet_elsewhere
