"""Turns a cell-by-gene matrix stored by cell (h5ad, CSR) into one stored by gene (zarr, CSC).

    import dask_convert

    result = dask_convert.convert("cells.h5ad", "genes.zarr", memory="4GiB")

Names are loaded when they are first used: workers import modules of this package by
themselves and should not pay, in time or memory, for what only the caller needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dask_convert._version import __version__

if TYPE_CHECKING:
    from dask_convert.api import clean, convert, plan, verify
    from dask_convert.engine.results import ConversionResult, VerificationResult
    from dask_convert.errors import DaskConvertError
    from dask_convert.planning.plans import ConversionPlan
    from dask_convert.reading.store import Store, open_store

_HOMES = {
    "ConversionPlan": "planning.plans",
    "ConversionResult": "engine.results",
    "DaskConvertError": "errors",
    "Store": "reading.store",
    "VerificationResult": "engine.results",
    "clean": "api",
    "convert": "api",
    "open_store": "reading.store",
    "plan": "api",
    "verify": "api",
}

__all__ = [
    "ConversionPlan",
    "ConversionResult",
    "DaskConvertError",
    "Store",
    "VerificationResult",
    "__version__",
    "clean",
    "convert",
    "open_store",
    "plan",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module 'dask_convert' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"dask_convert.{_HOMES[name]}"), name)
