"""Plans, results and stores as pieces of HTML: what notebooks show of them.

What is said of plans and results is in `facts`. Everything is escaped, since names come from files
of others. There are no scripts, and no colours of text or background, so that it can be read in
light and dark themes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from dask_convert.display.charts import COLOURS, Part, column_map, part_bar
from dask_convert.display.facts import Fact, plan_facts, result_facts, verification_facts
from dask_convert.errors import DaskConvertError
from dask_convert.planning.memory import DRIVER_BYTES, WORKER_BYTES
from dask_convert.planning.sizes import bytes_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dask_convert.engine.results import ConversionResult, VerificationResult
    from dask_convert.planning.plans import ConversionPlan
    from dask_convert.reading.describing import ArrayDescription
    from dask_convert.reading.store import Store

STRIPS = 190
"""Of a picture of a matrix: the most that can be told apart."""

SHOWN_DIFFERENCES = 20
SHOWN_COLUMNS = 30

_STYLE = """<style>
.dask-convert table { border-collapse: collapse; margin: 0.3em 0; }
.dask-convert p { margin: 0.3em 0; }
.dask-convert .key span { margin-right: 1.2em; white-space: nowrap; }
</style>"""
_CELL = "text-align: left; vertical-align: top; padding: 0 1.2em 0 0; white-space: normal"
"""On each cell itself: pages of notebooks have rules of their own for tables."""
_INNER = "; padding-left: 1.2em"


def plan_html(plan: ConversionPlan) -> str:
    """A plan: a table, and its memory against the budget."""
    parts = memory_parts(plan)
    title = "Memory, and the budget around it"
    picture = _parts_picture(title, parts, plan.settings.memory, lambda n: bytes_text(int(n)))
    return _framed("Plan of a conversion", _table(plan_facts(plan, "×")), picture)


def memory_parts(plan: ConversionPlan) -> list[Part]:
    """What the projected memory of a plan is made of; adds up to `projected_bytes`."""
    workers = plan.settings.workers
    parts = [Part("driver", DRIVER_BYTES), Part("annotations", plan.annotation_bytes)]
    if workers:
        parts.append(Part(f"{workers} workers at rest", workers * WORKER_BYTES))
    tasks = max(workers, 1)
    name = f"{tasks} tasks at once" if tasks > 1 else "a task"
    return [*parts, Part(name, tasks * plan.task_bytes)]


def result_html(result: ConversionResult) -> str:
    """A result: a table, and where the time went."""
    times = [
        part
        for matrix in result.matrices
        for part in (
            Part(f"split {matrix.name}", matrix.split_seconds),
            Part(f"combine {matrix.name}", matrix.combine_seconds),
        )
    ]
    rest = max(result.seconds - sum(part.value for part in times), 0.0)
    parts = [*times, Part("start, annotations and checks", rest)]
    picture = _parts_picture("Where the time went", parts, result.seconds, seconds_text)
    return _framed("Conversion, done", _table(result_facts(result, "×")), picture)


def verification_html(result: VerificationResult) -> str:
    """What a verification found."""
    verdict = "equal" if result.equal else f"{len(result.differences):,} differences"
    facts = [Fact("source", result.source), Fact("target", result.target)]
    facts += verification_facts(result)
    shown = result.differences[:SHOWN_DIFFERENCES]
    facts += [Fact("differs", text) for text in shown]
    if len(shown) < len(result.differences):
        facts.append(Fact("", f"and {len(result.differences) - len(shown):,} more"))
    return _framed(f"Verification: {verdict}", _table(facts))


def store_html(store: Store) -> str:
    """A store: a table, and for each matrix where chunks end and genes are dense.

    Reads metadata and ``indptr``, which the first gene needs as well.
    """
    facts = [
        Fact("place", str(store.root.store_path)),
        Fact("axes", f"{store.n_obs:,} obs × {store.n_vars:,} vars"),
        Fact("obs", _columns(store, "obs")),
        Fact("var", _columns(store, "var")),
    ]
    if not store.matrices:
        facts.append(Fact("matrices", "none is CSC: nothing here can be read gene by gene"))
    matrices = [part for name in store.matrices for part in _matrix_parts(store, name)]
    return _framed("Store of genes", _table(facts), *matrices)


def matrix_picture(
    indptr: NDArray[np.int64], n_obs: int, data: ArrayDescription, strips: int = STRIPS
) -> str:
    """A matrix with its density along the genes, and where chunks and files end.

    Parameters
    ----------
    indptr
        Where the entries of each gene begin, shape (n_vars + 1,).
    n_obs
        Number of obs.
    data
        How values are stored.
    strips
        The most that are drawn.
    """
    n_vars = indptr.size - 1
    edges = np.unique(np.linspace(0, n_vars, min(strips, n_vars) + 1).astype(np.int64))
    cells = np.maximum(np.diff(edges) * n_obs, 1)
    densities = np.diff(indptr[edges]) / cells
    return column_map(
        densities.tolist(),
        _border_places(indptr, data.chunk_nnz, strips),
        _border_places(indptr, data.shard_nnz, strips),
    )


def _matrix_parts(store: Store, name: str) -> Iterator[str]:
    from dask_convert.reading.describing import described_array

    try:
        indptr = store.indptr(name)
    except DaskConvertError as error:  # a damaged store has to be shown as well
        yield _table([Fact(name, str(error))])
        return
    data = described_array(store, f"{name}/data", sized=False)
    nnz, n_vars = int(indptr[-1]), indptr.size - 1
    density = nnz / max(store.n_obs * n_vars, 1)
    counts = np.diff(indptr)
    gene = f", {int(np.median(counts)):,} of a gene in the median" if counts.size else ""
    yield _table(
        [
            Fact(
                name,
                f"{store.n_obs:,} obs × {n_vars:,} vars, {nnz:,} entries of {data.dtype} "
                f"({density:.1%}){gene}",
            ),
            Fact(
                "stored",
                f"chunks of {data.chunk_nnz:,} entries, files of {data.shard_nnz:,}; "
                f"{' + '.join(data.codecs)}",
            ),
        ]
    )
    if nnz:
        yield "<p>Genes from first to last; the stronger the colour, the more cells have them.</p>"
        yield matrix_picture(indptr, store.n_obs, data)
        chunks, shards = -(-nnz // data.chunk_nnz), -(-nnz // data.shard_nnz)
        borders = f"{chunks:,} chunks (ticks) of values in {shards:,} files (lines)"
        yield f"<p>{borders}.</p>"


def _border_places(indptr: NDArray[np.int64], length_nnz: int, most: int) -> list[float]:
    """Where chunks end, in shares of the width; none where there are too many to be seen."""
    nnz, n_vars = int(indptr[-1]), indptr.size - 1
    if nnz // length_nnz > most:
        return []
    ends = np.arange(length_nnz, nnz, length_nnz)
    columns = np.searchsorted(indptr, ends, side="right") - 1
    return [float(column) / n_vars for column in columns]


def _columns(store: Store, axis: str) -> str:
    """Names of annotations, as the metadata has them."""
    order = store.root[axis].attrs.get("column-order", [])
    names = [str(name) for name in order] if isinstance(order, Sequence) else []
    more = f" and {len(names) - SHOWN_COLUMNS:,} more" if len(names) > SHOWN_COLUMNS else ""
    return (", ".join(names[:SHOWN_COLUMNS]) or "no columns") + more


def _parts_picture(
    title: str, parts: Iterable[Part], whole: float, text: Callable[[float], str]
) -> str:
    """A bar of parts with its key, which tells every part's value."""
    named = [Part(f"{name} {text(value)}", value) for name, value in parts]
    key = "".join(
        f'<span><b style="color:{COLOURS[number % len(COLOURS)]}">■</b> {escape(name)}</span> '
        for number, (name, _) in enumerate(named)
    )
    return f'<p>{escape(title)}</p>{part_bar(named, whole)}<p class="key">{key}</p>'


def _table(facts: Iterable[Fact]) -> str:
    lines = "".join(
        f'<tr><th style="{_CELL}{_INNER if inner else ""}; font-weight: normal; opacity: 0.7">'
        f'{escape(about)}</th><td style="{_CELL}">{escape(said)}</td></tr>'
        for about, said, inner in facts
    )
    return f"<table><tbody>{lines}</tbody></table>"


def _framed(title: str, *parts: str) -> str:
    inside = "".join(parts)
    return f'<div class="dask-convert">{_STYLE}<p><b>{escape(title)}</b></p>{inside}</div>'
