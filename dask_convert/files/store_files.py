"""The files of a zarr store: whether those that must be there are there, and no others.

zarr reads a chunk that is missing as zeros without a word, and ignores files that it does not
expect. So the keys are compared with what the metadata demand, and each piece of metadata with
its consolidated copy. Nothing is decoded here but JSON and the indexes of shards.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr

from dask_convert.errors import IntegrityError
from dask_convert.files.zarr_csc import is_ours
from dask_convert.planning.plans import ConversionPlan

_METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata"}
_ENTRY_BYTES = 16
_CRC_BYTES = 4
_ABSENT = 2**64 - 1
_INDEX_CODECS = ["bytes", "crc32c"]


def store_differences(path: Path, root: zarr.Group) -> Iterator[str]:
    """What is wrong with the files of a store, a line each.

    Parameters
    ----------
    path
        Its directory.
    root
        The same, opened without consolidated metadata.

    Notes
    -----
    A missing chunk counts in stores of ours, where every chunk is written. Other writers leave
    out chunks that hold nothing but the fill value; what those read as is compared like
    everything else.
    """
    ours = is_ours(root.attrs)
    members = dict(root.members(max_depth=None))
    arrays = {name: item for name, item in members.items() if isinstance(item, zarr.Array)}
    keys = {name: set(_keys(array)) for name, array in arrays.items()}
    expected = {f"{name}/{key}" if name else key for name, own in keys.items() for key in own}
    found = set(_files(path))
    nodes = {"", *members}
    metadata = {f"{n}/{m}" if n else m for n in nodes for m in _METADATA}
    for key in sorted(found - expected - metadata):
        yield f"{key}: is no part of the store: something else has written it"
    for key in sorted(expected - found) if ours else []:
        yield f"{key}: this chunk is missing, and would be read as zeros"
    for name, array in arrays.items():
        for key in sorted(keys[name] & _own(found, name)):
            yield from _file_differences(path, name, array, key, ours=ours)
    yield from _consolidated_differences(path, nodes)


def check_matrix_files(store: Path, plan: ConversionPlan) -> None:
    """Make sure that each member of each converted matrix has its files, and no others.

    Parameters
    ----------
    store
        The store that has been built; nothing of it is read but the names and sizes of files.
    plan
        Of its conversion.

    Raises
    ------
    IntegrityError
        A shard is missing, empty or shorter than its index, or a stranger is among them.
    """
    for matrix in plan.matrices:
        layout, name = matrix.target, matrix.source.name
        sharded_bytes = layout.shard_nnz // layout.chunk_nnz * _ENTRY_BYTES + _CRC_BYTES
        least = 1 + (sharded_bytes if layout.sharded else 0)
        expected = {str(number) for number in range(-(-matrix.source.nnz // layout.shard_nnz))}
        for member in ("data", "indices"):
            directory = store / name / member
            files = directory / "c" if layout.zarr_format == 3 else directory
            found = {path.name for path in files.iterdir()} - _METADATA if files.is_dir() else set()
            wrong = sorted(expected ^ found) or sorted(
                key for key in found if (files / key).stat().st_size < least
            )
            if wrong:
                what = "is missing" if wrong[0] in expected - found else "is not as written"
                msg = (
                    f"{name}/{member}: file {wrong[0]} {what}: something has changed the store "
                    "while it was built; nothing was published"
                )
                raise IntegrityError(msg)


def _own(found: set[str], name: str) -> set[str]:
    prefix = f"{name}/" if name else ""
    return {key[len(prefix) :] for key in found if key.startswith(prefix)}


def _files(path: Path) -> Iterator[str]:
    """Names of all files below a directory, whatever they are."""
    for directory, _, names in os.walk(path):
        inside = Path(directory).relative_to(path).as_posix()
        for name in names:
            yield name if inside == "." else f"{inside}/{name}"


def _keys(array: zarr.Array[Any]) -> Iterator[str]:
    """The keys of all chunks, or shards, of an array."""
    steps = array.shards or array.chunks
    counts = [-(-length // step) for length, step in zip(array.shape, steps, strict=True)]
    for place in itertools.product(*map(range, counts)):
        yield array.metadata.encode_chunk_key(place)


def _file_differences(
    path: Path, name: str, array: zarr.Array[Any], key: str, *, ours: bool
) -> Iterator[str]:
    """What can be said of a chunk's or shard's file without decoding it."""
    file = path / name / key
    where = f"{name}/{key}" if name else key
    if file.is_symlink() or not file.is_file():
        yield f"{where}: is no file of this store"
        return
    if not file.stat().st_size:
        yield f"{where}: is empty"
        return
    if ours and array.shards is not None and len(array.shape) == 1:
        yield from _shard_differences(file, where, array, int(key.rpartition("/")[2]))


def _shard_differences(
    file: Path, where: str, array: zarr.Array[Any], number: int
) -> Iterator[str]:
    """Whether a shard's index names exactly the chunks that it must hold, end to end."""
    description: dict[str, Any] = array.metadata.to_dict()
    settings = description["codecs"][0]["configuration"]
    codecs = [found["name"] for found in settings["index_codecs"]]
    if codecs != _INDEX_CODECS or settings["index_location"] != "end":
        yield f"{where}: its index is not where this program writes it"
        return
    shard, chunk = math.prod(array.shards or ()), math.prod(array.chunks)
    size = shard // chunk * _ENTRY_BYTES
    with file.open("rb") as opened:
        length = opened.seek(0, os.SEEK_END)
        opened.seek(max(length - size - _CRC_BYTES, 0))
        encoded = opened.read()
    index, crc = encoded[:-_CRC_BYTES], int.from_bytes(encoded[-_CRC_BYTES:], "little")
    if len(index) != size or google_crc32c.value(index) != crc:
        yield f"{where}: its index is damaged"
        return
    entries = np.frombuffer(index, "<u8").reshape(-1, 2)
    here = -(-(min(shard, array.shape[0] - number * shard)) // chunk)
    for missing in np.flatnonzero((entries[:here] == _ABSENT).any(axis=1)):
        yield f"{where}, chunk {missing} of it: is missing, and would be read as zeros"
    if (entries[here:] != _ABSENT).any():
        yield f"{where}: holds chunks beyond the end of the array"
    present = entries[(entries != _ABSENT).all(axis=1)]
    held = int(present[:, 1].sum()) + size + _CRC_BYTES
    if held != length:
        yield f"{where}: has {length:,} bytes, its chunks and index {held:,}"


def _consolidated_differences(path: Path, nodes: set[str]) -> Iterator[str]:
    """Where the copy of the metadata that most readers use says something else."""
    for name, copy in sorted(_consolidated(path).items()):
        where = f"{name}, in the consolidated metadata"
        try:
            own = json.loads((path / name).read_text())
        except (OSError, ValueError):
            yield f"{where}: has no equal in the store"
            continue
        if _plain(own) != copy:
            yield f"{where}: says something else than the element's own"
        nodes = nodes - {Path(name).parent.as_posix()}
    missing = sorted(nodes - {"", "."}) if _consolidated(path) else []
    yield from (f"{name}: is not in the consolidated metadata" for name in missing)


def _consolidated(path: Path) -> dict[str, Any]:
    """Names of metadata files, and what their consolidated copies say."""
    old, new = path / ".zmetadata", path / "zarr.json"
    if old.is_file():
        copies: dict[str, Any] = json.loads(old.read_text())["metadata"]
        return {name: _plain(copy) for name, copy in copies.items()}
    content = json.loads(new.read_text()) if new.is_file() else {}
    return dict(_flattened(content, ""))


def _flattened(content: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    inside = (content.get("consolidated_metadata") or {}).get("metadata") or {}
    for name, copy in inside.items():
        where = f"{prefix}{name}"
        yield from _flattened(copy, f"{where}/")
        yield f"{where}/zarr.json", _plain(copy)


def _plain(copy: dict[str, Any]) -> dict[str, Any]:
    """A copy of metadata without the copies of what is below it."""
    return {key: item for key, item in copy.items() if key != "consolidated_metadata"}
