"""Whether a store holds exactly what its source holds.

    source  ── h5py ──►  digest of every part  ─┐
                                                 ├─ equal, cell by cell?
    target  ─ chunks ─►  digest of every part  ─┘   (a sample of them with zarr-python, too)

One task per part of either side, on the same executors as a conversion, each returning a few
kilobytes. Beside that, in the caller: the store's files and metadata, the structure of its
matrices, all other elements, and samples of rows and columns with scipy.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import msgspec
import zarr

from dask_convert.engine.graph import Executor
from dask_convert.engine.results import VerificationResult, VerifiedMatrix
from dask_convert.engine.tasks import Job
from dask_convert.errors import PlanError
from dask_convert.files.h5ad import matrix_format
from dask_convert.files.hdf5 import open_source, reopen_source
from dask_convert.files.hdf5_errors import refuse_transient
from dask_convert.files.scratch import load_struct, save_struct
from dask_convert.files.store_files import store_differences
from dask_convert.page_cache import forget_below
from dask_convert.planning.layout import Trust
from dask_convert.planning.plans import Settings
from dask_convert.shuffle.digests import Keys
from dask_convert.verification.elements import element_differences
from dask_convert.verification.matrices import (
    OnPart,
    ReadBlocks,
    check_memory,
    compare,
    pair_of,
)
from dask_convert.verification.sides import Part

_MAPPINGS = {"anndata", "raw", "dict", ""}
_OLD_NAMES = {"raw.X": "raw/X"}


def save_keys(path: Path) -> None:
    """Draw keys for the digests of a conversion, unless it has some."""
    if load_struct(path, Keys) is None:
        save_struct(path, "array", Keys.random())


def verify_conversion(
    source: Path,
    store: Path,
    target: Path,
    settings: Settings,
    jobs: Sequence[Job],
    executor: Executor,
    on_part: OnPart = lambda _name, _done, _total: None,
) -> VerificationResult:
    """Compare a store that has just been built, under a name for the time being, with its source.

    Raises
    ------
    VerificationError
        Something differs.
    """
    result = verify_store(
        source,
        store,
        executor,
        memory_bytes=settings.memory,
        workers=settings.workers,
        trust=settings.trust,
        read={job.plan.source.name: _read_blocks(job) for job in jobs},
        on_part=on_part,
    )
    return msgspec.structs.replace(result, target=str(target)).require_equal()


def _read_blocks(job: Job) -> ReadBlocks:
    blocks = job.plan.blocks
    # Where the keys are lost, so are the digests: all of the source is read again.
    return ReadBlocks(
        load_struct(job.files.keys, Keys) or Keys.random(),
        tuple(Part(b.start_nnz, b.stop_nnz, b.start, b.stop) for b in blocks),
        tuple(job.files.digest(number) for number in range(len(blocks))),
    )


def verify_store(
    source: Path,
    target: Path,
    executor: Executor,
    *,
    memory_bytes: int,
    workers: int,
    matrices: Collection[str] | None = None,
    trust: Trust = Trust(),  # noqa: B008  (frozen)
    read: Mapping[str, ReadBlocks] | None = None,
    on_part: OnPart = lambda _name, _done, _total: None,
) -> VerificationResult:
    """Compare a store with the file that it was made of; writes nothing.

    Parameters
    ----------
    source, target
        The h5ad file and the directory of the store, whoever wrote it.
    executor
        Runs the tasks.
    memory_bytes, workers
        What all processes together may use, and how many do.
    matrices
        Sparse matrices to compare entry by entry; None for all of the file.
    trust
        What the source may do beyond being read.
    read
        What a conversion has digested already, by matrix. Of its row blocks one in
        `SAMPLED_BLOCKS` is read again with h5py, and the others are taken as they are.
    on_part
        Is told how many parts of a matrix are done, of how many.

    Raises
    ------
    SourceError
        The source cannot be read: nothing can be said of the target.
    MemoryBudgetError
        Reading the chunks of either side takes more.
    PlanError
        A matrix that was named is not there.
    """
    started = time.perf_counter()
    found: list[str] = []
    compared: list[VerifiedMatrix] = []
    look = open_source if read is None else reopen_source
    with look(source, trust) as file:
        named = dict(sparse_matrices(file))
        names = _chosen(named, matrices)
        root = _open_target(target, found)
        if root is not None:
            forget_below(target)
            pairs = [pair_of(file, trust, named[name], name, target, root, found) for name in names]
            with ThreadPoolExecutor(1) as helper:
                rest = helper.submit(_rest, file, target, root, named)
                for pair in filter(None, pairs):
                    check_memory(pair, memory_bytes, workers)
                    blocks = (read or {}).get(pair.name)
                    compared.append(compare(pair, blocks, executor, helper, found, on_part))
                found = rest.result() + found
    seconds = time.perf_counter() - started
    return VerificationResult(str(source), str(target), tuple(found), tuple(compared), seconds)


def sparse_matrices(file: h5py.File) -> Iterator[tuple[str, str]]:
    """All sparse matrices of a file: name in a store, and HDF5 path."""
    old = not file.attrs.get("encoding-type")
    for key in file:
        if old and key not in {"X", "layers", *_OLD_NAMES}:
            continue  # what old files have elsewhere is compared as anndata reads it
        for path in _sparse_below(file, key, ()):
            yield _OLD_NAMES.get(path, path), path


def _sparse_below(file: h5py.File, path: str, above: tuple[Any, ...]) -> Iterator[str]:
    if file.get(path, getclass=True) is not h5py.Group:
        return
    item = file[path]
    if matrix_format(item) is not None:
        yield path
    elif item.attrs.get("encoding-type", "") in _MAPPINGS and item not in above:
        for key in item:
            yield from _sparse_below(file, f"{path}/{key}", (*above, item))


def _chosen(named: dict[str, str], matrices: Collection[str] | None) -> list[str]:
    for name in matrices or ():
        if name not in named:
            there = ", ".join(named) or "none"
            msg = f"{name!r} is no sparse matrix of the source; there are: {there}"
            raise PlanError(msg)
    return list(named if matrices is None else matrices)


def _open_target(target: Path, found: list[str]) -> zarr.Group | None:
    try:
        return zarr.open_group(str(target), mode="r", use_consolidated=False)
    except Exception as error:  # noqa: BLE001  (zarr raises what it likes of a broken store)
        refuse_transient(error, str(target))
        found.append(f"{target}: cannot be opened as a zarr group: {error}")
        return None


def _rest(file: h5py.File, target: Path, root: zarr.Group, named: Collection[str]) -> list[str]:
    """Differences of all but the entries of sparse matrices."""
    differences: list[str] = []
    checks = (store_differences(target, root), element_differences(file, root, named))
    for lines in checks:
        try:
            differences.extend(lines)
        except Exception as error:  # noqa: BLE001  (zarr raises what it likes of a broken store)
            refuse_transient(error, str(target))
            differences.append(f"{target}: its structure cannot be read: {error}")
    return differences
