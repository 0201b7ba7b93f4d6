"""What notebooks show: well-formed, escaped, without scripts, and with the numbers that are so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import anndata as ad
import msgspec
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

import dask_convert
from dask_convert.display import summary
from dask_convert.display.charts import Part, column_map, part_bar
from dask_convert.display.html import (
    memory_parts,
    plan_html,
    result_html,
    store_html,
    verification_html,
)
from dask_convert.display.notebook import NotebookBars, bars_html, default_progress, short_interrupt
from dask_convert.display.progress import Silent

# zarr's about stores that anndata writes, and anndata's about itself with pandas 3.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'future.infer_string' option"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
    pytest.mark.filterwarnings("ignore:zarr v3 will become the only option"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
]

EVIL = "<script>alert('x')</script>&\"'"
N_OBS, N_VARS = 60, 7
COUNTS = sp.random(N_OBS, N_VARS, 0.4, format="csr", random_state=3)

Shown = list[dict[str, str]]


def parsed(page: str) -> ET.Element:
    """A piece of HTML, which is XML too, and in which nothing can run."""
    root = ET.fromstring(page)  # noqa: S314  (our own)
    for item in root.iter():
        assert item.tag.rpartition("}")[2] not in {"script", "iframe", "object", "link"}
        assert not [name for name in item.attrib if name.startswith("on")]
    return root


def words(page: str) -> str:
    """The text that people read."""
    return " ".join("".join(parsed(page).itertext()).split())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose names are hostile."""
    path = tmp_path_factory.mktemp("html") / "a<b>&c.h5ad"
    obs = pd.DataFrame({EVIL.replace("/", "|"): np.arange(N_OBS)}, index=map(str, range(N_OBS)))
    ad.AnnData(COUNTS, obs, layers={"<i>twice": COUNTS * 2}).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def converted(source: Path) -> tuple[dask_convert.ConversionResult, Shown]:
    """The result of its conversion, and all that a notebook would have shown meanwhile."""
    shown: Shown = []
    bars = NotebookBars(shown.append)
    bars.show_link("http://127.0.0.1:1/<x>")
    target = source.with_suffix(".zarr")
    result = dask_convert.convert(
        source, target, workers=0, verify=True, chunk_nnz=16, shard_nnz=64, progress=bars
    )
    return result, shown


def test_a_plan(source: Path) -> None:
    """Its picture has the parts that the projection is the sum of, within the budget."""
    plan = dask_convert.plan(source, workers=3, memory="2GiB")
    assert repr(plan) == (
        f"<ConversionPlan: X of {COUNTS.nnz} entries, layers/<i>twice of {COUNTS.nnz} entries; "
        f"{plan.projected_bytes / 2**20:.1f} MiB of 2.0 GiB with 3 workers>"
    )
    assert repr(plan.matrices[0]) == "<MatrixPlan of X: 1 row blocks, 1 regions>"
    parts = memory_parts(plan)
    assert sum(part.value for part in parts) == plan.projected_bytes
    bars = [e for e in parsed(plan_html(plan)).iter() if e.tag.endswith("rect")]
    *drawn, budget = (float(bar.attrib["width"]) for bar in bars)
    for width, part in zip(drawn, parts, strict=True):
        assert width / budget == pytest.approx(part.value / 2**31, abs=1e-3)
    assert f"{N_OBS} obs × {N_VARS} vars, {COUNTS.nnz} entries of float64" in words(plan_html(plan))
    assert "layers/<i>twice" in words(plan_html(plan))
    alone = dask_convert.plan(source, workers=0)
    assert sum(part.value for part in memory_parts(alone)) == alone.projected_bytes


def test_a_plan_of_nothing(tmp_path: Path) -> None:
    """A file without CSR matrices."""
    ad.AnnData(np.zeros((3, 2))).write_h5ad(tmp_path / "dense.h5ad")
    plan = dask_convert.plan(tmp_path / "dense.h5ad", workers=0)
    assert "no CSR matrix" in repr(plan)
    assert "everything will be copied as it is" in words(plan._repr_html_())


def test_a_result_and_its_verification(
    converted: tuple[dask_convert.ConversionResult, Shown],
) -> None:
    """Numbers of entries are scipy's; differences are listed up to a number, and escaped."""
    result, _ = converted
    assert repr(result).startswith(f"<ConversionResult: {result.target}, {2 * COUNTS.nnz} entries")
    assert repr(result).endswith(" s, verified>")
    text = words(result_html(result))
    assert f"{COUNTS.nnz} entries compared" in text
    assert "verifiedequal to the source, in" in text
    assert "a<b>&c.zarr" in text
    found = result.verification
    assert found is not None
    assert repr(found) == (
        f"<VerificationResult: equal; {2 * COUNTS.nnz} entries of X, layers/<i>twice compared>"
    )
    assert "Verification: equal" in words(found._repr_html_())
    other = msgspec.structs.replace(found, differences=(EVIL,) * 30)
    assert repr(other).startswith("<VerificationResult: 30 differences; ")
    text = words(verification_html(other))
    assert text.count(EVIL) == 20
    assert "and 10 more" in text


def test_a_resumed_result(converted: tuple[dask_convert.ConversionResult, Shown]) -> None:
    """It says what was there, and what else lies about."""
    result, _ = converted
    matrix = msgspec.structs.replace(result.matrices[0], blocks_reused=2)
    again = msgspec.structs.replace(result, matrices=(matrix,), abandoned=(EVIL,))
    assert "2 row blocks and 0 regions were there" in words(result_html(again))
    assert EVIL in words(result_html(again))


def test_text_and_tables_say_the_same(
    source: Path, converted: tuple[dask_convert.ConversionResult, Shown]
) -> None:
    """Of plans, results and verifications; of workers elsewhere too, and their memory."""
    result, _ = converted
    plan = dask_convert.plan(source, workers=3)
    far = msgspec.structs.replace(plan.settings, worker_memory=2**30)
    busy = msgspec.structs.replace(
        result.matrices[0], process_peaks={"node1:7": 3 * 2**27, "node2:9": 2**28}, blocks_reused=1
    )
    elsewhere = msgspec.structs.replace(
        result,
        plan=msgspec.structs.replace(plan, settings=far),
        matrices=(busy,),
        abandoned=("/scratch/old",),
    )
    assert result.verification is not None
    pairs = [
        (summary.of_plan(plan), plan_html(plan)),
        (summary.of_result(result), result_html(result)),
        (summary.of_result(elsewhere), result_html(elsewhere)),
        (
            summary.of_verification(result.verification),
            verification_html(result.verification),
        ),
    ]
    for text, page in pairs:
        rows = [row for row in parsed(page).iter() if row.tag.endswith("tr")]
        shown = {" ".join(" ".join(row.itertext()).split()) for row in rows}
        lines = {" ".join(line.split()).replace(" obs x ", " obs × ") for line in text.splitlines()}
        assert lines <= shown
    text = words(result_html(elsewhere))
    assert "384.0 MiB at most in one (node1:7), of 1.0 GiB each; 2 processes" in text
    assert "at most in samples of this process" in text


def test_a_store(converted: tuple[dask_convert.ConversionResult, Shown]) -> None:
    """As many chunks and files as it has; every border is where the column is that scipy names."""
    store = dask_convert.open_store(converted[0].target)
    root = parsed(store_html(store))
    text = words(store_html(store))
    assert EVIL.replace("/", "|") in text
    n_chunks, n_files = -(-COUNTS.nnz // 16), -(-COUNTS.nnz // 64)
    assert f"{n_chunks} chunks (ticks) of values in {n_files} files (lines)" in text
    svg = next(e for e in root.iter() if e.tag.endswith("svg"))
    lines = [e for e in svg if e.tag.endswith("line")]
    assert len(lines) == n_chunks - 1 + n_files - 1
    ends = np.repeat(np.arange(N_VARS), np.diff(COUNTS.tocsc().indptr))[16::16] / N_VARS
    ticks = [(float(line.attrib["x1"]) - 1) / 758 for line in lines[: n_chunks - 1]]
    np.testing.assert_allclose(ticks, ends, atol=1e-3)
    shares = [e[0].text for e in svg if e.tag.endswith("rect") and len(e)]
    assert shares == [f"{n / N_OBS:.1%}" for n in np.diff(COUNTS.tocsc().indptr)]


def test_a_damaged_store_is_shown_too(tmp_path: Path) -> None:
    """With what is wrong with it."""
    target = tmp_path / "genes.zarr"
    ad.AnnData(COUNTS.tocsc()).write_zarr(target)
    root: Any = zarr.open_group(target, mode="a", use_consolidated=False)
    root["X/indptr"][1] = 10**6
    text = words(dask_convert.open_store(target)._repr_html_())
    assert "indptr falls after position 1" in text


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (5, 3)])
def test_stores_without_entries(tmp_path: Path, shape: tuple[int, int]) -> None:
    """No picture, and no division by zero."""
    ad.AnnData(sp.csc_matrix(shape)).write_zarr(tmp_path / "genes.zarr")
    assert "<svg" not in dask_convert.open_store(tmp_path / "genes.zarr")._repr_html_()


@given(st.lists(st.tuples(st.text(), st.floats(0, 1e12)), max_size=9), st.floats(0, 1e12))
def test_parts_lie_side_by_side(named: list[tuple[str, float]], whole: float) -> None:
    """None over another, all within the picture, in proportion; whatever their names."""
    clean = [(re.sub(r"[^\x20-\ud7ff]", "", name), value) for name, value in named]
    *bars, outline = ET.fromstring(part_bar([Part(*each) for each in clean], whole))  # noqa: S314
    assert [bar[0].text or "" for bar in bars] == [name for name, _ in clean]
    top, at = max(1e-9, whole, sum(value for _, value in clean)), 1.0
    for bar, (_, value) in zip(bars, clean, strict=True):
        assert float(bar.attrib["x"]) == pytest.approx(at, abs=0.06)
        at += 758 * value / top
    assert float(outline.attrib["width"]) == pytest.approx(758 * whole / top, abs=0.06)


def test_a_map_of_many_columns_stays_small() -> None:
    """A picture of 190 strips and as many borders is some tens of kilobytes."""
    assert len(column_map([0.5] * 190, [0.5] * 190, [0.5] * 190)) < 60_000


def test_bars(converted: tuple[dask_convert.ConversionResult, Shown], source: Path) -> None:
    """The last that is shown has all tasks done, and the bytes of the result."""
    result, shown = converted
    assert shown[0]["text/plain"] == "starting\ndashboard, while it runs: http://127.0.0.1:1/<x>"
    last = shown[-1]
    lines = last["text/plain"].splitlines()
    assert lines[:4] == [
        f"{stage} {matrix.source.name}: {len(parts)} of {len(parts)}"
        for matrix in result.plan.matrices
        for stage, parts in (("split", matrix.blocks), ("combine", matrix.regions))
    ]
    assert lines[4].startswith("all parts are done: read ")
    root = parsed(f"<div>{last['text/html']}</div>")
    progress = [e.attrib for e in root.iter("progress")]
    assert [e["value"] for e in progress] == [e["max"] for e in progress]
    assert [e.attrib["href"] for e in root.iter("a")] == ["http://127.0.0.1:1/<x>"]
    with pytest.raises(dask_convert.DaskConvertError):
        dask_convert.convert(
            source, result.target, workers=0, progress=NotebookBars(shown.append), overwrite=False
        )
    assert bars_html(None, 0.0, None) == "<table><tbody></tbody></table><p>starting</p>"


def test_nothing_is_shown_outside_of_notebooks() -> None:
    """Scripts stay silent, and what the caller says holds."""
    mine = Silent()
    assert default_progress(mine, None) == (mine, None)
    assert isinstance(default_progress(None, print)[0], Silent)
    assert default_progress(None, print)[1] is print


def test_an_interrupt_is_one_line() -> None:
    """What IPython shows of it: notes, and no traceback."""
    error = KeyboardInterrupt()
    error.add_note("it goes on")
    with pytest.raises(KeyboardInterrupt) as caught, short_interrupt():
        raise error
    assert caught.value._render_traceback_() == ["interrupted; it goes on"]
