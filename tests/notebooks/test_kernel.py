"""Conversions in a real Jupyter kernel: what is shown meanwhile, and what an interrupt does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import psutil
import pytest
from kernels import Kernel, Message, contents

from dask_convert.example.synthetic import write_synthetic_h5ad

CONVERT = """
import dask_convert
dask_convert.convert('cells.h5ad', 'genes.zarr', workers=2, memory='700MiB')
"""


def lingering(seconds: float) -> str:
    """A cell that has each worker linger over its second row block."""
    rule = f"block report: opened@2=sleep:{seconds}"
    return f"import os; os.environ['DASK_CONVERT_FAILPOINT'] = '{rule}'"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An example that is cut into ten row blocks."""
    path = tmp_path / "cells.h5ad"
    write_synthetic_h5ad(path, n_obs=60_000, n_vars=500, processes=1)
    return path


def shown(messages: list[Message]) -> list[dict[str, str]]:
    """What was shown in the place of the bars, one after the other."""
    first, *_ = contents(messages, "display_data")
    updates = contents(messages, "update_display_data")
    return [first["data"], *(update["data"] for update in updates)]


def workers(jupyter: Kernel) -> list[psutil.Process]:
    """Processes of a kernel's workers: those that are forked from a process that it has started."""
    helpers = psutil.Process(jupyter.pid).children()
    return [process for helper in helpers for process in helper.children(recursive=True)]


def assert_equal(source: Path) -> None:
    """The target has what scipy makes of the source, and nothing is left beside it."""
    expected = ad.read_h5ad(source).X.tocsc()
    found = ad.read_zarr(source.parent / "genes.zarr").X
    assert found.format == "csc"
    for member in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, member), getattr(expected, member))
    assert sorted(path.name for path in source.parent.iterdir()) == ["cells.h5ad", "genes.zarr"]


@pytest.mark.filterwarnings("ignore:zarr v3 will become the only option")
def test_an_interrupted_conversion_goes_on(jupyter: Kernel, source: Path) -> None:
    """One line, no process, and the same cell again continues; equal to scipy's in the end."""
    jupyter.run(lingering(8))  # so that the interrupt comes while blocks are split
    pressed: list[str] = []

    def press(message: Message) -> None:
        text = message["content"].get("data", {}).get("text/plain", "")
        done = re.search(r"split X: (\d+) of (\d+)", text)
        if done and not pressed and 0 < int(done[1]) < int(done[2]):
            pressed.append(text)
            jupyter.interrupt()

    messages = jupyter.run(CONVERT, press)
    (error,) = contents(messages, "error")
    assert pressed
    assert error["ename"] == "KeyboardInterrupt"
    (line,) = error["traceback"]
    assert line.startswith("interrupted; what is finished is kept: the same command continues")
    assert contents(messages, "stream") == []
    assert "stopped: read" in shown(messages)[-1]["text/plain"]
    assert not psutil.wait_procs(workers(jupyter), timeout=20)[1]
    assert not (source.parent / "genes.zarr").exists()

    messages = jupyter.run(CONVERT)
    assert contents(messages, "error") == []
    (result,) = contents(messages, "execute_result")
    reused = re.search(r"(\d+) row blocks and 0 regions were there", result["data"]["text/html"])
    assert reused
    assert int(reused[1]) > 0
    assert_equal(source)


def test_a_conversion_is_shown(jupyter: Kernel, source: Path) -> None:  # noqa: ARG001  (converted)
    """Bars that grow in one place, with the dashboard's address; then the result, as a table."""
    pages: list[bytes] = []

    def visit(message: Message) -> None:
        html = message["content"].get("data", {}).get("text/html", "")
        address = re.search(r'href="(http://127.0.0.1:\d+/conversion)"', html)
        if address and not pages:
            import urllib.request

            with urllib.request.urlopen(address[1], timeout=10) as page:  # noqa: S310  (our own)
                pages.append(page.read())

    jupyter.run(lingering(2))
    messages = jupyter.run(CONVERT, visit)
    assert contents(messages, "error") == []
    assert contents(messages, "stream") == []
    assert b"Conversion" in pages[0]
    (place,) = {
        content["transient"]["display_id"]
        for kind in ("display_data", "update_display_data")
        for content in contents(messages, kind)
    }
    assert place
    done = [re.search(r"split X: (\d+) of", view["text/plain"]) for view in shown(messages)]
    counts = [int(found[1]) for found in done if found]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]
    assert len(set(counts)) > 2
    (result,) = contents(messages, "execute_result")
    assert result["data"]["text/plain"].startswith("<ConversionResult: ")
    assert 'class="dask-convert"' in result["data"]["text/html"]


def test_a_silent_conversion(jupyter: Kernel, source: Path) -> None:  # noqa: ARG001  (converted)
    """`progress=Silent()` shows nothing."""
    code = (
        "import dask_convert; from dask_convert.display.progress import Silent\n"
        "done = dask_convert.convert('cells.h5ad', 'g.zarr', workers=0, progress=Silent())"
    )
    kinds: list[Any] = [message["msg_type"] for message in jupyter.run(code)]
    assert set(kinds) == {"status", "execute_input"}
