"""``python -m dask_convert``."""

from dask_convert.cli import main

main()
