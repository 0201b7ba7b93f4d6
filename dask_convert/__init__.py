"""Turns a cell-by-gene matrix stored by cell (h5ad, CSR) into one stored by gene (zarr, CSC)."""

from dask_convert._version import __version__

__all__ = ["__version__"]
