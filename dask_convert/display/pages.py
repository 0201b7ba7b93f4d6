"""Plans and stores as pages of their own: `plan --html` and `inspect --html`.

Each is one file that opens without a network, with what notebooks show as its beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dask_convert import __version__
from dask_convert.display.drawings import (
    Grid,
    bars_picture,
    grid_picture,
    histogram_picture,
    ranked_picture,
)
from dask_convert.display.html import plan_html, store_html
from dask_convert.planning.sizes import bytes_text

if TYPE_CHECKING:
    from dask_convert.planning.plans import ConversionPlan, MatrixPlan
    from dask_convert.reading.describing import MatrixDescription, StoreDescription
    from dask_convert.reading.store import Store

FULLEST_GENES = 15


class Section(msgspec.Struct, frozen=True):
    """A part of a page.

    Attributes
    ----------
    title, text
        In words.
    picture
        SVG text.
    head, rows
        A table below it.
    """

    title: str
    text: str = ""
    picture: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def plan_page(plan: ConversionPlan, source: str) -> str:
    """A plan as a page: memory by parts, blocks, ranges and regions, disk."""
    disk = [
        ("source", sum(matrix.source.stored_bytes for matrix in plan.matrices)),
        ("scratch", plan.scratch_bytes),
        ("target", plan.target_bytes),
    ]
    bars = bars_picture([(name, size, f"{bytes_text(size)}") for name, size in disk])
    text = "The matrices in the source, and what scratch and target take at most."
    sections = [*map(_tasks, plan.matrices), Section("Disk", text, bars)]
    return _page(f"Plan: {Path(source).name}", plan_html(plan), sections)


def store_page(store: Store, found: StoreDescription) -> str:
    """A store as a page: density of genes, chunks, what reading a gene takes."""
    names = store.var_names
    sections = [
        section
        for matrix in found.matrices
        for section in _genes(store, matrix, None if matrix.name == "raw/X" else names)
    ]
    return _page(f"Store: {found.place}", store_html(store), sections)


def _tasks(matrix: MatrixPlan) -> Section:
    layout = matrix.fragment_layout
    rows = [0, *(block.stop for block in matrix.blocks)]
    columns = [*range(0, layout.n_vars, layout.column_width), layout.n_vars]
    regions = [0, *(region.stop_nnz for region in matrix.regions)]
    text = (
        f"{len(matrix.blocks):,} row blocks × {layout.n_ranges:,} column ranges of "
        f"{layout.column_width:,} are read, a task for each block (one is marked); "
        f"{len(matrix.regions):,} regions of {_most(matrix):,} entries at most are written, a task "
        "for each."
    )
    return Section(
        f"Tasks of {matrix.source.name}", text, grid_picture(Grid(rows, columns), regions)
    )


def _most(matrix: MatrixPlan) -> int:
    return max((region.nnz for region in matrix.regions), default=0)


def _genes(
    store: Store, matrix: MatrixDescription, names: Iterable[object] | None
) -> Iterator[Section]:
    counts = np.diff(store.indptr(matrix.name))
    if not counts.size:
        return
    empty = int((counts == 0).sum())
    yield Section(
        f"{matrix.name}: entries per gene",
        f"{int(np.median(counts)):,} in the median, {int(counts.max()):,} at most; {empty:,} of "
        f"{counts.size:,} genes have none. Bins grow by a constant factor.",
        histogram_picture(counts),
    )
    yield Section(
        f"{matrix.name}: from the fullest gene to the emptiest",
        "Share of all obs that have an entry of the gene.",
        ranked_picture(counts, matrix.n_obs),
    )
    yield _cost(matrix, counts, names)


def _cost(matrix: MatrixDescription, counts: np.ndarray, names: Iterable[object] | None) -> Section:
    """What reading some genes takes, by arithmetic."""
    order = np.argsort(counts, kind="stable")[::-1]
    quantiles = [order[int(share * (order.size - 1))] for share in (0.25, 0.5, 0.75)]
    labels = (
        [str(number) for number in range(counts.size)] if names is None else list(map(str, names))
    )
    chosen = [*order[:FULLEST_GENES], *quantiles]
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = []
    for gene in dict.fromkeys(int(number) for number in chosen):
        chunks, fetched_bytes = _fetched(matrix, int(starts[gene]), int(starts[gene + 1]))
        size = "" if fetched_bytes is None else bytes_text(fetched_bytes)
        share = f"{counts[gene] / max(matrix.n_obs, 1):.1%}"
        rows.append((labels[gene], f"{counts[gene]:,}", share, f"{chunks:,}", size))
    timed = matrix.gene.median_ms
    measured = "" if timed is None else f"; {timed:.1f} ms in the median, measured here and now"
    return Section(
        f"{matrix.name}: what reading a gene takes",
        f"The fullest genes, and those at the quartiles. On average {matrix.gene.mean_chunks:.2f} "
        f"chunks of values{measured}.",
        head=("gene", "entries", "of all obs", "chunks", "fetched, about"),
        rows=tuple(rows),
    )


def _fetched(matrix: MatrixDescription, start: int, stop: int) -> tuple[int, int | None]:
    """Chunks of both members that a gene lies in, and their stored bytes on average."""
    chunks, total = 0, 0.0
    known = True
    for member in (matrix.data, matrix.indices):
        touched = (
            (stop - 1) // member.chunk_nnz - start // member.chunk_nnz + 1 if stop > start else 0
        )
        chunks += touched
        known = known and member.stored_bytes is not None
        every = max(-(-matrix.nnz // member.chunk_nnz), 1)
        total += touched * (member.stored_bytes or 0) / every
    return chunks, round(total) if known else None


def _page(title: str, fragment: str, sections: Iterable[Section]) -> str:
    from jinja2 import Environment

    template = files("dask_convert.display").joinpath("templates/page.html").read_text("utf-8")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, fragment=fragment, sections=sections, version=__version__)
