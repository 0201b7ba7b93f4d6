"""Measures dask_convert: ``python -m benchmarks --help``, and README.md beside this file."""
