"""Named places at which tests let a run die, fail or wait; otherwise they do nothing.

``DASK_CONVERT_FAILPOINT`` holds rules, separated by semicolons: ``NAME=ACTION``, or
``NAME@N=ACTION`` for the N-th time only that a process comes by. Actions:

    kill             SIGKILL to the process
    kill-once:PATH   the same, by whoever manages to remove the file PATH
    hoard-once:PATH  the same, but takes memory, and minutes, until it is killed
    error:NUMBER     OSError of this errno
    sleep:SECONDS    wait
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from functools import cache

VARIABLE = "DASK_CONVERT_FAILPOINT"
HOARDED_BYTES = 3 * 2**29
HOARDING_SECONDS = 600

FILE_KINDS = (
    "state",
    "plan",
    "array",
    "fragment",
    "block report",
    "shard",
    "region report",
    "matrix report",
)
"""What is published file by file; see `scratch.published`."""

STEPS = ("opened", "written", "renamed")
DURABLE_KINDS = ("state", "plan")
"""Kinds that are fsynced; they have the step ``synced`` too."""

NAMES = (
    *(f"{kind}: {step}" for kind in FILE_KINDS for step in STEPS),
    *(f"{kind}: synced" for kind in DURABLE_KINDS),
    "lock: linked",
    "scratch: made",
    "store: made",
    "annotations: copied",
    "matrix: fragments removed",
    "target: described",
    "target: finalised",
    "target: flushed",
    "publish: old set aside",
    "publish: renamed",
    "publish: synced",
    "clear: scratch removed",
    "clear: store removed",
    "clear: state removed",
)
"""Every failpoint there is; a test kills a run at each."""


def reach(name: str) -> None:
    """Do what the environment says for this place, usually nothing."""
    rules = os.environ.get(VARIABLE)
    if rules:
        _follow(rules, name)


def _follow(rules: str, name: str) -> None:
    time_reached = next(_times(name))
    for rule in rules.split(";"):
        place, _, action = rule.partition("=")
        wanted, _, number = place.partition("@")
        if wanted == name and number in {"", str(time_reached)}:
            _act(action)


@cache
def _times(name: str) -> Iterator[int]:  # noqa: ARG001  # one counter per name
    return itertools.count(1)


def _act(action: str) -> None:
    kind, _, argument = action.partition(":")
    if kind.endswith("-once"):
        try:
            os.unlink(argument)  # noqa: PTH108  # whoever removes it is the one
        except FileNotFoundError:
            return
    if kind in {"kill", "kill-once"}:
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hoard-once":
        hoarded = b"x" * HOARDED_BYTES
        time.sleep(HOARDING_SECONDS if hoarded else 0)
    elif kind == "error":
        raise OSError(int(argument), os.strerror(int(argument)))
    elif kind == "sleep":
        time.sleep(float(argument))
