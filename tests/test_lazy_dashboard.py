"""The dashboard of a conversion's own cluster: there when somebody looks, and not before."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import urlopen

import pytest
from strategies import csr_from_rows, write_h5ad

import dask_convert

LOADED = """
import sys
import dask_convert

if __name__ == "__main__":
    dask_convert.convert(sys.argv[1], sys.argv[2], workers=1)
    print(*sys.modules)
"""


def test_a_run_that_nobody_looks_at_does_not_load_it(tmp_path: Path) -> None:
    """What draws takes half a second, and memory."""
    script = tmp_path / "script.py"
    script.write_text(LOADED)
    source = write_h5ad(tmp_path / "rows.h5ad", csr_from_rows([[0, 2], [1]], 3, [1.0, 2.0, 3.0]))
    done = subprocess.run(
        [sys.executable, script, source, tmp_path / "genes.zarr"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "distributed.scheduler" in done.stdout.split()
    assert not {"bokeh.plotting", "distributed.dashboard.scheduler"} & set(done.stdout.split())


def test_whoever_looks_gets_it(tmp_path: Path) -> None:
    """Several at once, at any page, also at ours; what is no page is still none."""
    pages: dict[str, str] = {}

    def look(link: str) -> None:
        def read(name: str) -> str:
            with urlopen(urljoin(link, name), timeout=60) as answer:  # noqa: S310  (loopback)
                return str(answer.read().decode())

        names = ["/", "/status", "/conversion", "/individual-plots.json"]
        with ThreadPoolExecutor(len(names)) as pool:
            pages.update(zip(names, pool.map(read, names), strict=True))
        with pytest.raises(HTTPError, match="404"):
            read("/nothing")

    source = write_h5ad(tmp_path / "rows.h5ad", csr_from_rows([[0, 2], [1]], 3, [1.0, 2.0, 3.0]))
    dask_convert.convert(source, tmp_path / "genes.zarr", workers=1, on_dashboard=look)
    drawn = [pages[name] for name in ("/", "/status", "/conversion")]
    assert all("Dask Diagnostic UI" in page and "Conversion" in page for page in drawn)
    assert "Task Stream" in pages["/individual-plots.json"]


def test_an_address_of_none_is_no_dashboard(tmp_path: Path) -> None:
    """Nobody is told of one."""
    source = write_h5ad(tmp_path / "rows.h5ad", csr_from_rows([[0, 2], [1]], 3, [1.0, 2.0, 3.0]))
    links: list[str] = []
    dask_convert.convert(
        source,
        tmp_path / "genes.zarr",
        workers=1,
        dashboard_address=None,
        on_dashboard=links.append,
    )
    assert links == []
