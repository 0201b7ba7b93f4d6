"""One sparse matrix of a source against the same of a store, entry by entry.

The tasks are those of `dask_convert.verification.parts`; here is what is made of their reports.
"""

from __future__ import annotations

import itertools
import secrets
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import zarr
from numpy.typing import NDArray

from dask_convert.engine.graph import Executor, Graph, Key
from dask_convert.engine.meters import Meters
from dask_convert.engine.results import VerifiedMatrix
from dask_convert.errors import FragmentError, MemoryBudgetError, SourceError
from dask_convert.files.scratch import load_array
from dask_convert.planning import memory
from dask_convert.planning.layout import Trust
from dask_convert.shuffle.digests import Grid, Keys, descends, loaded_cells
from dask_convert.verification.parts import PartReport, digest_part
from dask_convert.verification.sides import Part, Side, cut_parts, side_of

SHOWN_CELLS = 8
SAMPLED_BLOCKS = 32
"""One in so many row blocks is read again with h5py, where a conversion has digested them."""
SAMPLED_PARTS = 32
"""One in so many parts of a store is read with zarr-python as well as with our own reader."""

OnPart = Callable[[str, int, int], None]


class Pair(msgspec.Struct, frozen=True):
    """A matrix of the source and the same of the target, cut into parts."""

    sides: tuple[Side, Side]
    parts: tuple[tuple[Part, ...], tuple[Part, ...]]

    @property
    def name(self) -> str:
        """As the store has it."""
        return self.sides[1].name


class ReadBlocks(msgspec.Struct, frozen=True):
    """What a conversion noted of a matrix while it read it.

    Attributes
    ----------
    keys
        Of its digests.
    parts
        Its row blocks.
    files
        Where the digest of each is, if it was kept.
    """

    keys: Keys
    parts: tuple[Part, ...]
    files: tuple[Path, ...]

    def cells(self, grid: Grid) -> dict[int, NDArray[np.uint64]]:
        """The digests that are there, by number of the row block."""
        found = {}
        for number, path in enumerate(self.files):
            with suppress(FragmentError):  # missing or damaged: the block is read again
                cells = loaded_cells(grid, self.keys, load_array(path))
                if cells is not None:
                    found[number] = cells
        return found


def pair_of(
    file: h5py.File,
    trust: Trust,
    path: str,
    name: str,
    target: Path,
    root: zarr.Group,
    found: list[str],
) -> Pair | None:
    """A matrix of both sides, structure checked; None where that is so wrong that it ends there.

    Parameters
    ----------
    file, path
        The source, and the matrix in it.
    name, target, root
        The matrix in the store, the store's directory, and the same opened.
    found
        Is given what is wrong with the target.

    Raises
    ------
    SourceError
        The matrix of the source contradicts itself.
    """
    ours, problems = side_of(file[path], "h5ad", Path(file.filename), path)
    ours = msgspec.structs.replace(ours, trust=trust) if ours else None
    parts, more = cut_parts(ours) if ours else ((), [])
    if ours is None or more:
        raise SourceError("; ".join(problems + more))
    try:
        theirs, problems = side_of(root[name], "zarr", target, name)
    except KeyError:
        theirs, problems = None, [f"{name}: is missing in the store"]
    except Exception as error:  # noqa: BLE001  (zarr raises what it likes of a broken store)
        theirs, problems = None, [f"{name}: cannot be read: {error}"]
    if theirs and (theirs.n_obs, theirs.n_vars) != (ours.n_obs, ours.n_vars):
        shapes = ((theirs.n_obs, theirs.n_vars), (ours.n_obs, ours.n_vars))
        problems = [f"{name}: has shape {shapes[0]}, not {shapes[1]}"]
    if theirs is None or problems:
        found += problems
        return None
    their_parts, problems = cut_parts(theirs)
    found += problems
    return None if problems else Pair((ours, theirs), (parts, their_parts))


def check_memory(pair: Pair, memory_bytes: int, workers: int) -> None:
    """Refuse a budget that reading a few chunks of either side does not fit in.

    Raises
    ------
    MemoryBudgetError
        Says what it takes.
    """
    indptr = [
        16 * max((part.major_stop - part.major_start for part in parts), default=0)
        for parts in pair.parts
    ]
    task = max(side.read_bytes + extra for side, extra in zip(pair.sides, indptr, strict=True))
    least = memory.total_bytes(task, workers, 0)
    if least > memory_bytes:
        msg = (
            f"verifying {pair.name} with {workers} workers takes {-(-least // memory.MIB):,} MiB, "
            f"more than the {memory_bytes // memory.MIB:,} MiB given; its largest chunk has "
            f"{max(side.chunk_nnz for side in pair.sides):,} entries"
        )
        raise MemoryBudgetError(msg, least)


def compare(
    pair: Pair,
    read: ReadBlocks | None,
    executor: Executor,
    helper: ThreadPoolExecutor,
    found: list[str],
    on_part: OnPart,
) -> VerifiedMatrix:
    """Digest all parts of both sides and hold them against each other.

    Parameters
    ----------
    pair
        The matrix.
    read
        What a conversion has digested already.
    executor
        Runs the tasks.
    helper
        Meanwhile looks at samples of rows and columns.
    found
        Is given what differs.
    on_part
        See `verification.verify_store`.
    """
    ours, theirs = pair.sides
    grid = Grid(ours.n_obs, ours.n_vars)
    keys = read.keys if read else Keys.random()
    taken = read.cells(grid) if read else {}
    parts = read.parts if read else pair.parts[0]
    again = _sample(taken, SAMPLED_BLOCKS)
    twice = _sample(range(len(pair.parts[1])), SAMPLED_PARTS)
    target_parts = [
        msgspec.structs.replace(part, twice=number in twice)
        for number, part in enumerate(pair.parts[1])
    ]
    todo = [
        (which, number, part)
        for which, own in enumerate((parts, target_parts))
        for number, part in enumerate(own)
        if part.start < part.stop and (which or number not in taken or number in again)
    ]
    todo.sort(key=lambda task: bool(task[0]) and not task[2].twice)  # slow ones first
    samples: Future[list[str]] | None = None
    if (ours.format, theirs.format) == ("csr", "csc"):
        samples = helper.submit(_sample_differences, ours, theirs)
    reports, meters = _run(pair, todo, keys, executor, on_part)
    found += _reread_differences(pair, parts, taken, reports[0])
    sums = grid.empty()
    for cells in taken.values():
        sums += cells
    for report in reports[0]:
        if report.number not in taken:
            report.add_to(sums)
    found += _differences(pair, reports, sums)
    if samples and not found:  # of a store that cannot be read there is no sample
        found += samples.result()
    h5py_nnz, zarr_nnz = (sum(report.library_nnz for report in own) for own in reports)
    formats = (ours.format, theirs.format)
    return VerifiedMatrix(pair.name, ours.nnz, h5py_nnz, zarr_nnz, *formats, meters.seconds)


def _sample_differences(source: Side, target: Side) -> list[str]:
    from dask_convert.verification.samples import sample_differences  # scipy is slow to load

    return sample_differences(source, target, secrets.randbits(64))


def _sample(numbers: Collection[int], one_in: int) -> set[int]:
    """Some of these, each drawn with that chance; at least one, if there is any."""
    chosen = secrets.SystemRandom()
    count = max(int(len(numbers) / one_in + chosen.random()), min(len(numbers), 1))
    return set(chosen.sample(sorted(numbers), count))


def _run(
    pair: Pair,
    todo: Sequence[tuple[int, int, Part]],
    keys: Keys,
    executor: Executor,
    on_part: OnPart,
) -> tuple[tuple[list[PartReport], list[PartReport]], Meters]:
    """Run a task for each part; reports of the source and of the target, in order."""
    token = uuid.uuid4().hex[:8]
    graph: Graph = {
        (f"verify-{token}", at): (digest_part, pair.sides, which, number, part, keys)
        for at, (which, number, part) in enumerate(todo)
    }
    reports: tuple[list[PartReport], list[PartReport]] = ([], [])
    meters = Meters()

    def on_report(_key: Key, report: Any) -> None:
        reports[report.side].append(report)
        meters.add(report.meters)
        on_part(pair.name, len(reports[0]) + len(reports[1]), len(graph))

    if graph:
        executor.run(graph, on_report)
    for own in reports:
        own.sort(key=lambda report: report.number)
    return reports, meters


def _reread_differences(
    pair: Pair,
    parts: Sequence[Part],
    taken: Mapping[int, NDArray[np.uint64]],
    reports: Sequence[PartReport],
) -> Iterator[str]:
    """Row blocks in which h5py reads something else than the conversion did."""
    ours = pair.sides[0]
    for report in reports:
        if report.number in taken:
            cells = Grid(ours.n_obs, ours.n_vars).empty()
            report.add_to(cells)
            if not np.array_equal(cells, taken[report.number]):
                part = parts[report.number]
                yield (
                    f"{pair.name}: h5py reads other entries in rows {part.major_start:,} to "
                    f"{part.major_stop - 1:,} of the source than the conversion did"
                )


def _differences(
    pair: Pair,
    reports: tuple[Sequence[PartReport], Sequence[PartReport]],
    source_cells: NDArray[np.uint64],
) -> Iterator[str]:
    """What the reports of both sides say about the target."""
    name, (source, target) = pair.name, pair.sides
    ours, theirs = reports
    outside = sum(report.outside for report in ours)
    if outside:
        msg = f"{source.name}/indices: {outside:,} are no index of this matrix"
        raise SourceError(msg)
    yield from (line for report in theirs for line in report.damage)
    if source.nnz != target.nnz:
        yield f"{name}: has {target.nnz:,} entries, not {source.nnz:,}"
    outside = sum(report.outside for report in theirs)
    if outside:
        yield f"{name}/indices: {outside:,} are no index of this matrix"
    allowed = _descents(ours) if source.format == target.format else 0
    if _descents(theirs) > allowed:
        yield f"{name}/indices: do not ascend in {_descents(theirs):,} places"
    inexact = sum(report.inexact for report in theirs)
    if inexact:
        yield (
            f"{name}/data: {inexact:,} values of type {np.dtype(target.data_dtype)} are none of "
            f"the source's {np.dtype(source.data_dtype)}"
        )
    grid = Grid(source.n_obs, source.n_vars)
    target_cells = grid.empty()
    for report in theirs:
        report.add_to(target_cells)
    yield from _cell_differences(name, grid, source_cells, target_cells)


def _descents(reports: Sequence[PartReport]) -> int:
    """Places in a matrix where minor indices descend, across parts too."""
    inside = sum(report.descents for report in reports)
    borders = itertools.pairwise(reports)
    return inside + sum(descends(left.last, right.first) for left, right in borders)


def _cell_differences(
    name: str, grid: Grid, ours: NDArray[np.uint64], theirs: NDArray[np.uint64]
) -> Iterator[str]:
    """Name the groups of columns and of rows whose digests differ."""
    unequal = (ours != theirs).any(axis=2)
    columns = np.flatnonzero(unequal.any(axis=0))
    for column in columns[:SHOWN_CELLS]:
        rows = np.flatnonzero(unequal[:, column])
        counts = [int(side[rows, column, -1].sum(dtype=np.uint64)) for side in (ours, theirs)]
        where = ", ".join(_interval(row, grid.row_shift, grid.n_obs) for row in rows[:SHOWN_CELLS])
        more = " and others" if len(rows) > SHOWN_CELLS else ""
        number = (
            f" ({counts[1]:,} there, {counts[0]:,} in the source)" if counts[0] != counts[1] else ""
        )
        yield (
            f"{name}: entries differ in columns "
            f"{_interval(column, grid.column_shift, grid.n_vars)}, rows {where}{more}{number}"
        )
    if len(columns) > SHOWN_CELLS:
        yield f"{name}: entries differ in {len(columns) - SHOWN_CELLS:,} more groups of columns"


def _interval(group: int, shift: int, length: int) -> str:
    start = int(group) << shift
    stop = min(start + (1 << shift), length)
    return f"{start:,} to {stop - 1:,}" if stop - start > 1 else f"{start:,}"
