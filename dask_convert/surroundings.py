"""What a process has inherited that libraries cannot work with: found before any work."""

from __future__ import annotations

import os
import sys

from dask_convert.errors import PlanError


def require_fit() -> None:
    """Refuse settings of Python and numba with which nothing can run; imports nothing.

    Raises
    ------
    PlanError
        Says which, and what to do.
    """
    if sys.flags.optimize:
        msg = (
            "Python leaves assertions out (python -O or PYTHONOPTIMIZE), and zarr-python does work "
            "in its own: start it without"
        )
        raise PlanError(msg)
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        msg = (
            f"names of files are {encoding} in this locale, and those in a store are UTF-8: set "
            "PYTHONUTF8=1, or a locale of UTF-8"
        )
        raise PlanError(msg)
    threads = os.environ.get("NUMBA_NUM_THREADS", "")
    if threads.lstrip("-").isdecimal() and int(threads) < 1:
        msg = f"NUMBA_NUM_THREADS is {threads}, and numba wants 1 at least: change or unset it"
        raise PlanError(msg)


def require_fit_zarr() -> None:
    """Refuse settings with which zarr-python would wait for ever, or fail.

    Raises
    ------
    PlanError
        Says which, and what to do.
    """
    import zarr  # slow to import, so that this is asked where it is there

    for name, is_optional in (("async.concurrency", False), ("threading.max_workers", True)):
        value = zarr.config.get(name, None)
        is_number = isinstance(value, int | float) and value >= 1
        if not is_number and not (is_optional and value is None):
            variable = f"ZARR_{name.upper().replace('.', '__')}"
            msg = (
                f"zarr's setting {name} is {value!r}, and must be 1 at least: change or unset "
                f"{variable}, or what sets it in zarr's configuration"
            )
            raise PlanError(msg)
