"""What a source file may lead to: decided before any of it is followed, loaded or allocated.

An HDF5 file can name other files (external links, external storage, virtual data sets), ask for
filters that are native code, and declare sizes that it does not hold. All of it is met here,
object by object, through hard links alone: those cannot leave a file. Soft links need no look of
their own, since whatever they reach is reached without them.
"""

from __future__ import annotations

import math
import os
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from dask_convert.errors import AdmissionError
from dask_convert.files.filters import (
    FILTERS,
    filter_name,
    greatest_ratio,
    item_bytes,
    pipeline,
)
from dask_convert.files.hdf5_errors import reading
from dask_convert.files.hdf5_lock import h5py_lock
from dask_convert.planning.layout import Trust

MAX_CHUNK_BYTES = 2**30
MAX_DEPTH = 100
MAX_PATH = 900
MAX_MAPPINGS = 1000
_PREFIXES = ("HDF5_EXT_PREFIX", "HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX")
_REMEDY = "copy it into the source, with h5repack say, or allow its directory with --allow-external"


class _Other(NamedTuple):
    """Another file that is read, and whether as HDF5: external storage is bytes alone."""

    path: str
    is_hdf5: bool


def ignore_plugin_paths() -> None:
    """Make HDF5 forget where to look for filter plugins, ``HDF5_PLUGIN_PATH`` included.

    For good, in this process: a library that was loaded cannot be unloaded either.
    """
    with h5py_lock:  # another thread may be reading annotations right now
        for _ in range(h5py.h5pl.size()):
            h5py.h5pl.remove(0)


def admit(file: h5py.File, trust: Trust) -> set[str]:
    """Refuse a file that leads elsewhere or declares what it does not hold.

    Reads links and the metadata of data sets; O(objects + chunks).

    Returns
    -------
        The true paths of all other files that it may read.

    Raises
    ------
    AdmissionError
        Names the object and what it wants.
    SourceError
        The file's structure is damaged.
    """
    roots = tuple(os.path.realpath(directory) for directory in trust.allow_external)
    if roots and (prefix := next((name for name in _PREFIXES if name in os.environ), None)):
        msg = f"{prefix} is set, so that it cannot be told which files are meant: unset it"
        raise AdmissionError(msg)
    own = os.path.realpath(file.filename)
    pending, seen = [own], {_Other(own, is_hdf5=True)}
    while pending:
        path = pending.pop()
        name = "" if path == own else f"{path}:"
        with reading(name or path):
            visited = file if path == own else h5py.File(path, "r", locking="best-effort")
            try:
                others = _admit_objects(visited, name, trust, roots)
            finally:
                if path != own:
                    visited.close()
        pending += [other.path for other in others - seen if other.is_hdf5]
        seen |= others
    return {other.path for other in seen} - {own}


def _admit_objects(
    file: h5py.File, prefix: str, trust: Trust, roots: tuple[str, ...]
) -> set[_Other]:
    """Look at every object of a file; returns the other files that it refers to."""
    others: set[_Other] = set()
    met = {h5py.h5o.get_info(file.id).addr}
    pending: list[tuple[Any, str, int]] = [(file["/"], prefix, 0)]
    while pending:
        group, path, depth = pending.pop()
        if depth > MAX_DEPTH or len(path) > MAX_PATH:
            msg = (
                f"{path[:200]}…: groups are nested deeper than {MAX_DEPTH}, or their names add up "
                f"to more than {MAX_PATH} letters; flatten them, or rename them"
            )
            raise AdmissionError(msg)
        for key in group:
            where = f"{path}/{key}" if path not in {"", prefix} else f"{path}{key}"
            with reading(where):
                link = group.get(key, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    what = f"{where}: a link to another file, {link.filename!r}"
                    linked = _admitted(what, link.filename, Path(file.filename).parent, roots)
                    others.add(_Other(linked, is_hdf5=True))
                if not isinstance(link, h5py.HardLink):
                    continue
                item = group[key]
                address = h5py.h5o.get_info(item.id).addr
                if address in met:
                    continue
                met.add(address)
                if isinstance(item, h5py.Group):
                    pending.append((item, where, depth + 1))
                elif isinstance(item, h5py.Dataset):
                    others |= _admit_dataset(item, where, trust, roots)
    return others


def _admit_dataset(
    dataset: h5py.Dataset, where: str, trust: Trust, roots: tuple[str, ...]
) -> set[_Other]:
    """Refuse a data set that leads elsewhere or declares what it does not hold.

    Returns the other files that it reads.
    """
    if dataset.shape is None:
        return set()
    check_filters(dataset, where, trust)
    if dataset.is_virtual:
        return _virtual_files(dataset, where, roots)
    if dataset.external:
        return _external_files(dataset, where, roots)
    check_allocation(dataset, where)
    return set()


def check_filters(dataset: h5py.Dataset, where: str, trust: Trust) -> None:
    """Refuse filters that are not known, and load the plugins of those that are.

    Raises
    ------
    AdmissionError
        A filter is not on the list, or not there.
    """
    for step in pipeline(dataset):
        name = filter_name(step.code)
        if step.code not in FILTERS and not trust.allow_plugins:
            msg = (
                f"{where}: HDF5 filter {name!r} is not on the list of those that are run: repack "
                "the file with h5repack, or say --allow-plugins"
            )
            raise AdmissionError(msg)
        if step.code not in FILTERS or FILTERS[step.code].plugin:
            import hdf5plugin  # noqa: F401  (registers its filters; slow and rarely needed)
        if not h5py.h5z.filter_avail(step.code):
            msg = (
                f"{where}: HDF5 filter {name!r} is not available here: install it, or repack the "
                "file with h5repack"
            )
            raise AdmissionError(msg)


def check_allocation(dataset: h5py.Dataset, where: str) -> None:
    """Refuse a data set that is not all in the file, or declares more than can be.

    Raises
    ------
    AdmissionError
        Says how much is declared, and how much is there.
    """
    if not dataset.size:
        return
    element_bytes = item_bytes(dataset)
    stored_bytes = dataset.id.get_storage_size()
    declared_bytes = math.prod(dataset.shape) * element_bytes
    if not dataset.chunks:
        if stored_bytes < declared_bytes:
            held = f"holds {stored_bytes} of its {declared_bytes} bytes" if stored_bytes else None
            raise AdmissionError(_unwritten(where, held or "was never written"))
        return
    chunk_bytes = math.prod(dataset.chunks) * element_bytes
    if chunk_bytes > MAX_CHUNK_BYTES:
        msg = (
            f"{where}: its chunks have {chunk_bytes} bytes each, and {MAX_CHUNK_BYTES} is the most "
            "that is read: repack the file with smaller ones"
        )
        raise AdmissionError(msg)
    expected = math.prod(
        -(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True)
    )
    chunks = dataset.id.get_num_chunks()
    if chunks < expected:
        text = f"{expected - chunks} of its {expected} chunks were never written"
        raise AdmissionError(_unwritten(where, text))
    ratio = greatest_ratio(pipeline(dataset))
    if ratio is not None and declared_bytes > ratio * stored_bytes:
        msg = (
            f"{where}: declares {declared_bytes} bytes, which the {stored_bytes} that are stored "
            "cannot become: the file is damaged, or made to use up memory"
        )
        raise AdmissionError(msg)


def _unwritten(where: str, what: str) -> str:
    return (
        f"{where}: {what}, and HDF5 would read zeros there: the file was not finished, or is "
        "damaged; write it again"
    )


def _virtual_files(dataset: h5py.Dataset, where: str, roots: tuple[str, ...]) -> set[_Other]:
    """The files of a virtual data set, all of which must be there and, together, cover it."""
    sources = dataset.virtual_sources()
    what = f"{where}: a virtual data set"
    if not roots:
        _admitted(what, sources[0].file_name if sources else "", Path(), roots)
    if len(sources) > MAX_MAPPINGS:
        msg = f"{what} of {len(sources)} parts, and {MAX_MAPPINGS} are the most: repack the file"
        raise AdmissionError(msg)
    files, boxes = set(), []
    own = Path(dataset.file.filename)
    for source in sources:
        path = str(own)
        if source.file_name != ".":
            path = _admitted(f"{what} of {source.file_name!r}", source.file_name, own.parent, roots)
        with h5py.File(path, "r", locking="best-effort") as other:
            part = other[source.dset_name]
            everything = source.src_space.get_select_type() == h5py.h5s.SEL_ALL
            box = source.vspace.get_select_bounds()
            size = math.prod(stop - start + 1 for start, stop in zip(*box, strict=True))
            _, last = source.src_space.get_select_bounds() if not everything else ((), ())
            there = all(end < length for end, length in zip(last, part.shape, strict=False))
            given = part.size if everything else source.src_space.get_select_npoints()
        if not there or given != size or source.vspace.get_select_npoints() != size:
            raise AdmissionError(_unwritten(where, f"its part {source.dset_name!r} is too short"))
        files.add(_Other(os.path.realpath(path), is_hdf5=True))
        boxes.append((box, size))
    covered = sum(size for _, size in boxes)
    overlap = any(_overlap(one, other) for (one, _), (other, _) in combinations(boxes, 2))
    if covered != dataset.size or overlap:
        raise AdmissionError(_unwritten(where, "its parts do not cover it, each element once"))
    return files


def _overlap(one: Any, other: Any) -> bool:
    return all(
        low <= other_high and other_low <= high
        for low, high, other_low, other_high in zip(*one, *other, strict=True)
    )


def _external_files(dataset: h5py.Dataset, where: str, roots: tuple[str, ...]) -> set[_Other]:
    """The files of a data set with external storage: bytes, with nothing to follow."""
    files, total = set(), 0
    for name, offset, size in dataset.external:
        path = _admitted(f"{where}: is stored in another file, {name!r}", name, Path(), roots)
        files.add(_Other(path, is_hdf5=False))
        total += max(min(size, Path(path).stat().st_size - offset), 0)
    if total < dataset.size * item_bytes(dataset):
        raise AdmissionError(_unwritten(where, "the files that it is stored in are too short"))
    return files


def _admitted(what: str, name: str, directory: Path, roots: tuple[str, ...]) -> str:
    """The true path of another file, if it may be read."""
    path = os.path.realpath(directory / name)
    if not roots:
        msg = f"{what}: {_REMEDY}"
        raise AdmissionError(msg)
    if not any(os.path.commonpath([path, root]) == root for root in roots):
        msg = f"{what}: that is {path}, not below {' or '.join(roots)}: {_REMEDY}"
        raise AdmissionError(msg)
    if not Path(path).is_file():
        msg = f"{what}: that is {path}, which is not there: the source is not complete"
        raise AdmissionError(msg)
    return path
