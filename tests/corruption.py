"""Everything that can be wrong with an h5ad file, one function each, and what must come of it.

Files are spoilt with h5py, or byte by byte: never with the package that is under test.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import hdf5plugin
import numpy as np
from strategies import Csr, Storage, random_csr, sorted_rows, write_h5ad

Outcome = Literal["refused", "equal", "either"]
Generator = np.random.Generator
STORAGES = (
    *("none", "gzip", "shuffle+gzip", "lzf", "gzip+fletcher32"),
    *("zstd", "blosc", "lz4", "bitshuffle"),
)


class Corruption(NamedTuple):
    """A way to spoil a file, and what must come of it: an error, an equal store, or either."""

    spoil: Callable[[Path, Generator], None]
    outcome: Outcome


def valid_file(path: Path, rng: Generator) -> None:
    """A small random file of every kind of storage, with annotations around its matrix."""
    n_obs, n_vars = int(rng.integers(20, 60)), int(rng.integers(61, 90))
    dtype = str(rng.choice(["f4", "f8", "i4", "u2", "i8"]))
    matrix = random_csr(rng, (n_obs, n_vars), rng.integers(1, 20, n_obs), dtype)
    if rng.random() < 0.7:
        matrix = unique(sorted_rows(matrix))
    filters = str(rng.choice(STORAGES))
    chunk = 0 if filters == "none" and rng.random() < 0.5 else int(rng.choice([50, 170]))
    storage = Storage(chunk, filters, str(rng.choice(["int32", "int64", "uint16"])))
    write_h5ad(path, {"X": matrix, "layers/more": matrix}, storage)
    with h5py.File(path, "r+") as file:
        options: dict[str, Any] = {"chunks": (7,), "compression": "gzip"}
        file["obs"].create_dataset("score", data=rng.random(n_obs), **options)
        file["obs"].create_dataset("batch", data=rng.integers(0, 9, n_obs), chunks=(11,))
        pca = file.create_dataset("obsm/pca", data=rng.random((n_obs, 3)), compression="lzf")
        pca.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        file["uns/words"] = ["some", "words"]
        file["uns/number"] = 3.5


def unique(matrix: Csr) -> Csr:
    """The same without repeated entries; rows must be sorted."""
    places = matrix.rows * matrix.shape[1] + matrix.indices
    _, firsts = np.unique(places, return_index=True)
    lengths = np.bincount(matrix.rows[firsts], minlength=matrix.shape[0])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return Csr(matrix.data[firsts], matrix.indices[firsts], indptr, matrix.shape)


# ---------------------------------------------------------------- within the file


def edited(change: Callable[[h5py.File, Generator], None]) -> Callable[[Path, Generator], None]:
    """A change of an open file as one of a path."""

    def spoil(path: Path, rng: Generator) -> None:
        with h5py.File(path, "r+") as file:
            change(file, rng)

    return spoil


def member(name: str, change: Callable[[Any, Generator], Any]) -> Callable[[Path, Generator], None]:
    """Another array in the place of one, stored in the same way where that is possible."""

    def spoil(file: h5py.File, rng: Generator) -> None:
        old = file[name]
        array = np.asarray(change(old[()], rng))
        keep = old.chunks and array.ndim == 1 and array.size
        options: dict[str, Any] = {}
        if keep:
            options = {"chunks": old.chunks, "compression": old.compression, "maxshape": (None,)}
        if options.get("compression") not in {None, "gzip", "lzf"}:
            options.pop("compression")
        attributes = dict(old.attrs)
        del file[name]
        file.create_dataset(name, data=array, **options).attrs.update(attributes)

    return edited(spoil)


def put(position: float, value: Callable[[Any, h5py.File], Any], dtype: str | None = None) -> Any:
    """One element of an array changed, at a share of its length."""

    def change(array: Any, _rng: Generator) -> Any:
        array = array.astype(dtype or array.dtype)
        at = int(position * (array.size - 1))
        array[at] = value(array, at)
        return array

    return change


def attribute(name: str, key: str, value: Any) -> Callable[[Path, Generator], None]:
    """Another value of an attribute."""
    return edited(lambda file, _rng: file[name].attrs.__setitem__(key, value))


def removed(name: str) -> Callable[[Path, Generator], None]:
    """An object less."""
    return edited(lambda file, _rng: file.__delitem__(name))


def linked(name: str, link: Any) -> Callable[[Path, Generator], None]:
    """A link in the place of an object, or where none was."""

    def spoil(file: h5py.File, _rng: Generator) -> None:
        if name in file:
            del file[name]
        file[name] = link

    return edited(spoil)


def unwritten(name: str, shape: int | None = None) -> Callable[[Path, Generator], None]:
    """A chunked data set of which some chunks, or all, are not in the file."""

    def spoil(file: h5py.File, _rng: Generator) -> None:
        old = file[name]
        values, attributes = old[()], dict(old.attrs)
        del file[name]
        size = shape or values.size
        new = file.create_dataset(name, (size,), old.dtype, chunks=(10,), compression="gzip")
        new[:10] = values[:10]
        new.attrs.update(attributes)

    return edited(spoil)


def written_chunk(
    name: str, filters: dict[str, Any], encode: Callable[[bytes], bytes]
) -> Callable[[Path, Generator], None]:
    """A data set in one chunk, whose stored bytes are made from its true ones."""

    def spoil(file: h5py.File, _rng: Generator) -> None:
        values, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        new = file.create_dataset(name, values.shape, values.dtype, chunks=values.shape, **filters)
        new.id.write_direct_chunk((0,) * values.ndim, encode(values.tobytes()))
        new.attrs.update(attributes)

    return edited(spoil)


def lzf_literals(raw: bytes) -> bytes:
    """LZF that compresses nothing: runs of at most 32 literal bytes."""
    runs = [raw[start : start + 32] for start in range(0, len(raw), 32)]
    return b"".join(bytes([len(run) - 1]) + run for run in runs)


def zstd_that_lies(_raw: bytes) -> bytes:
    """The header of a frame of 2**40 bytes, and a block of none."""
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, 2**40) + b"\x01\x00\x00"


def virtual(name: str) -> Callable[[Path, Generator], None]:
    """A virtual data set in the place of one, whose file is not there: HDF5 reads zeros."""

    def spoil(file: h5py.File, _rng: Generator) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource("not-there.h5", "x", shape)
        del file[name]
        file.create_virtual_dataset(name, layout)

    return edited(spoil)


def external(name: str) -> Callable[[Path, Generator], None]:
    """A data set that is stored in a file of the machine."""

    def spoil(file: h5py.File, _rng: Generator) -> None:
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, "u1", external=[("/etc/passwd", 0, shape[0])])

    return edited(spoil)


def unknown_filter(file: h5py.File, _rng: Generator) -> None:
    """A filter that nobody has, around some of obs."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((20,))
    properties.set_filter(31999, h5py.h5z.FLAG_OPTIONAL)
    space = h5py.h5s.create_simple((20,))
    h5py.h5d.create(file["obs"].id, b"bad", h5py.h5t.IEEE_F32LE, space, properties)


def through_external(file: h5py.File, _rng: Generator) -> None:
    """A soft link whose way leads through another file."""
    file["uns/away"] = h5py.ExternalLink("/etc/passwd", "/x")
    file["uns/soft"] = h5py.SoftLink("/uns/away/y")


def nested(file: h5py.File, _rng: Generator) -> None:
    """Groups in groups in groups."""
    group = file["uns"]
    for _ in range(300):
        group = group.create_group("g")


def odd_key(key: bytes) -> Callable[[Path, Generator], None]:
    """A name that a store cannot have, made by the C library, which takes any."""
    return edited(lambda file, _rng: h5py.h5g.create(file["uns"].id, key) and None)


def transposed_label(file: h5py.File, _rng: Generator) -> None:
    """CSR that says it is CSC."""
    file["X"].attrs["encoding-type"] = "csc_matrix"


def relabelled(file: h5py.File, _rng: Generator) -> None:
    """CSC that says it is CSR."""
    n_obs, n_vars = file["X"].attrs["shape"]
    nnz = file["X/data"].shape[0]
    del file["X/indptr"]
    file["X/indptr"] = np.linspace(0, nnz, n_vars + 1).astype("i8")
    indices = file["X/indices"][()] % n_obs
    del file["X/indices"]
    file["X/indices"] = indices


# ---------------------------------------------------------------- byte by byte


def flipped(n_bits: int) -> Callable[[Path, Generator], None]:
    """Some bits anywhere in the file."""

    def spoil(path: Path, rng: Generator) -> None:
        content = bytearray(path.read_bytes())
        for position in rng.integers(0, len(content), n_bits):
            content[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)

    return spoil


def flipped_member(path: Path, rng: Generator) -> None:
    """A byte of one of the members' stored elements."""
    with h5py.File(path) as file:
        dataset = file[str(rng.choice(["X/data", "X/indices", "X/indptr"]))]
        if dataset.chunks:
            chunk = dataset.id.get_chunk_info(int(rng.integers(dataset.id.get_num_chunks())))
            start, size = chunk.byte_offset, chunk.size
        else:
            start, size = dataset.id.get_offset(), dataset.id.get_storage_size()
    content = bytearray(path.read_bytes())
    content[start + int(rng.integers(size))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def blanked(path: Path, rng: Generator) -> None:
    """A sector of zeros, as a disk leaves it."""
    content = bytearray(path.read_bytes())
    start = int(rng.integers(0, len(content)))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)


def truncated(path: Path, rng: Generator) -> None:
    """Cut short anywhere."""
    os.truncate(path, int(rng.integers(0, path.stat().st_size)))


def instead(content: bytes) -> Callable[[Path, Generator], None]:
    """Another file altogether."""
    return lambda path, _rng: path.write_bytes(content) and None


def directory(path: Path, _rng: Generator) -> None:
    """No file at all."""
    path.unlink()
    path.mkdir()


def pipe(path: Path, _rng: Generator) -> None:
    """A file that nobody ever writes."""
    path.unlink()
    os.mkfifo(path)


# ---------------------------------------------------------------- harmless


def kept(values: list[float]) -> Callable[[Path, Generator], None]:
    """Values that are unusual, and allowed."""

    def change(array: Any, rng: Generator) -> Any:
        array = array.astype("f8")
        array[rng.integers(0, array.size, 5)] = rng.choice(values, 5)
        return array

    return member("X/data", change)


def _huge(array: Any, _at: int) -> int:
    return int(np.iinfo(array.dtype).max)


N_VARS = 10**6
STRUCTURED: dict[str, Corruption] = {
    name: Corruption(spoil, outcome)
    for outcome, spoils in {
        "refused": {
            "indptr short": member("X/indptr", lambda a, _: a[:-1]),
            "indptr long": member("X/indptr", lambda a, _: np.append(a, a[-1])),
            "indptr not from 0": member("X/indptr", put(0, lambda *_: 1)),
            "indptr descends": member("X/indptr", put(0.5, lambda a, at: a[at - 1] - 1)),
            "indptr ends early": member("X/indptr", put(1, lambda a, at: a[at] - 1)),
            "indptr ends late": member("X/indptr", put(1, lambda a, at: a[at] + 1)),
            "indptr wraps": member("X/indptr", put(0.9, lambda *_: -(2**31) + 7, "i4")),
            "indptr wraps in 64 bits": member(
                "X/indptr",
                lambda a, _: np.array([0, 2**63 - 1, -(2**63), -1, *a[4:]], "i8"),
            ),
            "indptr beyond 63 bits": member("X/indptr", put(0.5, lambda *_: 2**64 - 1, "u8")),
            "indptr of floats": member("X/indptr", lambda a, _: a.astype("f8")),
            "indptr in two dimensions": member("X/indptr", lambda a, _: a[:, None]),
            "no indptr": removed("X/indptr"),
            "index n_vars": member("X/indices", put(0.5, lambda *_: 90)),
            "index huge": member("X/indices", put(0.3, _huge)),
            "index of 33 bits": member("X/indices", put(0.7, lambda *_: 2**32 + 1, "i8")),
            "index of 64 bits": member("X/indices", put(0.7, lambda *_: 2**64 - 1, "u8")),
            "index negative": member("X/indices", put(0.7, lambda *_: -1, "i4")),
            "index very negative": member("X/indices", put(0, lambda *_: -(2**31), "i4")),
            "indices of floats": member("X/indices", lambda a, _: a.astype("f4")),
            "indices of booleans": member("X/indices", lambda a, _: a.astype(bool)),
            "indices short": member("X/indices", lambda a, _: a[:-3]),
            "no indices": removed("X/indices"),
            "data short": member("X/data", lambda a, _: a[:-1]),
            "data and indices short": edited(
                lambda file, _: (
                    [file.move("X/indptr", "X/old"), file.move("X/old", "X/indptr")]
                    and file["X/indptr"].__setitem__(-1, file["X/indptr"][-1] + 5)
                )
            ),
            "data of text": member("X/data", lambda a, _: a.astype("S3")),
            "data in two dimensions": member("X/data", lambda a, _: a[:, None]),
            "no data": removed("X/data"),
            "shape of other obs": attribute("X", "shape", [7, 80]),
            "shape of three numbers": attribute("X", "shape", [7, 80, 2]),
            "shape negative": attribute("X", "shape", [-1, 80]),
            "shape of floats": attribute("X", "shape", [30.5, 80.0]),
            "shape of words": attribute("X", "shape", ["a", "b"]),
            "shape huge": attribute("X", "shape", [2**50, 2**50]),
            "CSR called CSC": edited(transposed_label),
            "CSC called CSR": edited(relabelled),
            "unknown encoding": attribute("X", "encoding-type", "coo_matrix"),
            "newer encoding of obs": attribute("obs", "encoding-version", "9.9.9"),
            "obs short": member("obs/_index", lambda a, _: a[:-1]),
            "var long": member("var/_index", lambda a, _: np.append(a, a[:1])),
            "no obs": removed("obs"),
            "no index of obs": removed("obs/_index"),
            "no index of var": removed("var/_index"),
            "data unwritten": unwritten("X/data"),
            "indices unwritten": unwritten("X/indices"),
            "indptr unwritten": unwritten("X/indptr"),
            "obs unwritten": unwritten("obs/score"),
            "data of 2**50": unwritten("X/data", 2**50),
            "obs of 2**50": unwritten("obs/batch", 2**50),
            "gzip of more": written_chunk(
                "X/data", {"compression": "gzip"}, lambda raw: zlib.compress(raw + b"more")
            ),
            "gzip of less": written_chunk(
                "obs/batch", {"compression": "gzip"}, lambda raw: zlib.compress(raw[:-9])
            ),
            "gzip bomb": written_chunk(
                "obs/batch", {"compression": "gzip"}, lambda _: zlib.compress(bytes(2**31), 1)
            ),
            "gzip bomb in X": written_chunk(
                "X/data", {"compression": "gzip"}, lambda _: zlib.compress(bytes(2**31), 1)
            ),
            "gzip behind a checksum": written_chunk(
                "X/data",
                {"compression": "gzip", "fletcher32": True},
                lambda raw: zlib.compress(raw[:-1]) + bytes(4),
            ),
            "lzf of less": written_chunk(
                "X/data", {"compression": "lzf"}, lambda raw: lzf_literals(raw[:-8])
            ),
            "lzf of more": written_chunk(
                "obs/batch", {"compression": "lzf"}, lambda raw: lzf_literals(raw + bytes(8))
            ),
            "zstd that lies": written_chunk("X/data", dict(hdf5plugin.Zstd()), zstd_that_lies),
            "blosc that lies": written_chunk(
                "X/data",
                dict(hdf5plugin.Blosc()),
                lambda raw: struct.pack("<BBBBIII", 2, 1, 2, 1, len(raw) - 1, 64, 40) + raw,
            ),
            "plain chunk of less": written_chunk("X/data", {"shuffle": True}, lambda raw: raw[:-1]),
            "unknown filter": edited(unknown_filter),
            "filter on trial": edited(
                lambda file, _: (
                    file["obs"].create_dataset("bad", data=np.arange(9), chunks=(9,), scaleoffset=0)
                    and None
                )
            ),
            "external link to data": linked("X/data", h5py.ExternalLink("/etc/passwd", "/x")),
            "external link in obs": linked("obs/out", h5py.ExternalLink("other.h5", "/x")),
            "external link in uns": linked("uns/out", h5py.ExternalLink("other.h5", "/x")),
            "external link in layers": linked("layers/out", h5py.ExternalLink("o.h5", "/x")),
            "external link at the root": linked("obsm", h5py.ExternalLink("other.h5", "/x")),
            "soft link through another file": edited(through_external),
            "soft link to nothing": linked("obsm/out", h5py.SoftLink("/nowhere")),
            "virtual data": virtual("X/data"),
            "virtual obs": virtual("obs/score"),
            "external storage of data": external("X/data"),
            "external storage of obs": external("obs/batch"),
            "cycle": edited(lambda file, _: file["uns"].__setitem__("loop", file["uns"])),
            "nested": edited(nested),
            "named zarr.json": odd_key(b"zarr.json"),
            "named ..": odd_key(b".."),
            "named with a backslash": odd_key(b"a\\b"),
            "named in no encoding": odd_key(b"\xff\xfe"),
            "named at length": odd_key(b"n" * 300),
            "empty": instead(b""),
            "text": instead(b"cell,gene,count\n" * 99),
            "a zip": instead(b"PK\x03\x04" + bytes(999)),
            "directory": directory,
            "pipe": pipe,
            "truncated": truncated,
        },
        "equal": {
            "nothing": lambda _path, _rng: None,
            "zeros": kept([0.0]),
            "minus zero": kept([-0.0]),
            "NaN": kept([np.nan, -np.nan]),
            "infinities": kept([np.inf, -np.inf]),
            "limits": kept([5e-324, 1.8e308, 65535.0, 65536.0, 0.1]),
            "duplicates": member("X/indices", put(0.5, lambda a, at: a[at - 1])),
            "descending": member("X/indices", lambda a, _: a[::-1].copy()),
            "named c": odd_key(b"c"),
            "named 0": odd_key(b"0"),
            "hard link": edited(lambda file, _: file["uns"].__setitem__("x", file["obs/batch"])),
            "soft link": linked("uns/soft", h5py.SoftLink("/obs/batch")),
        },
    }.items()
    for name, spoil in spoils.items()
}
RANDOM = {
    "flip 1": Corruption(flipped(1), "either"),
    "flip 8": Corruption(flipped(8), "either"),
    "flip 64": Corruption(flipped(64), "either"),
    "flip in a member": Corruption(flipped_member, "either"),
    "blank sector": Corruption(blanked, "either"),
}
CORRUPTIONS = STRUCTURED | RANDOM


def corruption_of(seed: int) -> str:
    """The name of the corruption of this seed: each structured one in turn, every third random."""
    structured, spoils = list(STRUCTURED), list(RANDOM)
    if seed % 3 == 2:
        return spoils[seed // 3 % len(spoils)]
    return structured[(seed - seed // 3) % len(structured)]
