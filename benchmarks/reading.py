"""Reading genes: this tool against anndata, on this tool's store and on anndata's own.

All readers get the same genes. Each is warmed up by one pass over them, and what is measured is
another, so that files are in the page cache and shard indexes in memory. *One cold* is a gene of a
store that was just opened, and none of whose files is in the page cache; *100 cold* are genes of a
store of which one gene has been read, so that its metadata are known, and whose files have left the
page cache since. Rounds alternate the readers; a ratio is taken within a round.

*Distant* are genes of a store that is served over HTTP by another process, each answer some
milliseconds late, as from an object store; it has been opened, and one gene of it read.

*Decoding* is what no way of reading genes at once can beat: every chunk that they lie in, from the
page cache, decoded once, and nothing kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import anndata
import numpy as np
import zarr

from benchmarks.distant import served
from benchmarks.measuring import Results, Row, cores, disk_usage, say
from dask_convert import open_store
from dask_convert.chunks.chunk_reader import ChunkReader
from dask_convert.page_cache import forget_below
from dask_convert.reading.csc_reader import open_csc

AT_ONCE = 100
COLD = 20
ANNDATA = "anndata, sparse_dataset(...)[:, j]"
OURS = "dask_convert, store[j]"

Reader = Callable[[Any], Any]
Opened = Callable[[Path | str], Reader]


def reading(
    results: Results,
    store: Path,
    source: Path | None,
    directory: Path,
    *,
    genes: int,
    repeats: int,
    delay_ms: float,
) -> None:
    """Read random genes, one by one and many at once, in all ways; add a table.

    Parameters
    ----------
    results
        Where the record goes.
    store
        Made by this tool.
    source
        The h5ad file that it was made of, from which anndata makes its own store (in memory) if
        `directory` has none yet; None to go without.
    directory
        For anndata's own store, which stays there.
    genes
        How many, random, equal for all.
    repeats
        Rounds.
    delay_ms
        Of each answer of a distant storage, in milliseconds.
    """
    stores = {"dask_convert's": store}
    if source is not None:
        stores["anndata's own"] = _own_store(source, directory)
    n_vars = open_store(store).n_vars
    chosen = np.random.default_rng(0).integers(0, n_vars, genes)
    ways = [
        (f"{name}, of {whose} store", opened, path)
        for whose, path in stores.items()
        for name, opened in ((OURS, ours), (ANNDATA, anndatas))
    ]
    first = ways[0][1](store)
    for name, opened, path in ways:
        _check(name, opened(path), first, chosen)
    os.sync()  # what is not on disk stays in the page cache
    samples: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in ways}
    for number in range(repeats):
        for name, opened, path in [*ways[number % len(ways) :], *ways[: number % len(ways)]]:
            cold = cold_milliseconds(opened, path, chosen[:COLD])
            samples[name].append(
                {
                    **_measured(opened(path), chosen, n_vars),
                    "one cold p50_ms": float(np.percentile(cold, 50)),
                    **_cold_hundred(opened, path, chosen),
                }
            )
            say(f"{number + 1}/{repeats}  {name}: p50 {samples[name][-1]['one p50_ms']:.2f} ms")
    rows = [_row(name, samples[name]) for name, _, _ in ways]
    baseline = samples[ways[-1][0]]
    for (name, _, _), row in zip(ways, rows, strict=True):
        pairs = zip(samples[name], baseline, strict=True)
        row["one p50 / last row's"] = median(a["one p50_ms"] / b["one p50_ms"] for a, b in pairs)
        row["one cold p50 / last row's"] = median(
            a["one cold p50_ms"] / b["one cold p50_ms"]
            for a, b in zip(samples[name], baseline, strict=True)
        )
    sizes = {f"{whose} (GiB)": disk_usage(path)[0] / 2**30 for whose, path in stores.items()}
    settings = {"store": store.name, "genes": genes, "repeats": repeats, **sizes}
    results.add("Reading genes", settings, rows, samples=samples)
    decoded = [_decoding_row(store, np.sort(chosen[:AT_ONCE]), n) for n in range(1, cores() + 1)]
    results.add("Decoding the chunks of 100 random genes", settings, decoded)
    _distant(results, stores, chosen, delay_ms, repeats)


def ours(path: Path | str) -> Reader:
    """How this tool reads genes."""
    store = open_store(path)
    return lambda key: store[key]


def anndatas(path: Path | str) -> Reader:
    """Anndata's reader of genes."""
    matrix: Any = anndata.io.sparse_dataset(zarr.open_group(str(path), mode="r")["X"])
    return lambda key: matrix[:, key]


def _check(name: str, read: Reader, other: Reader, chosen: Any) -> None:
    """Look that a reader gives what the first one gives."""
    for key in (int(chosen[0]), chosen[:3]):
        found, wanted = read(key), other(key)
        if (found != wanted).nnz or found.shape != wanted.shape:
            msg = f"{name} reads other values for {key}"
            raise ValueError(msg)


def _measured(read: Reader, chosen: Any, n_vars: int) -> dict[str, float]:
    """Milliseconds of single genes, of random ones at once and of neighbours at once."""
    taken = warm_milliseconds(read, chosen)
    random = np.sort(chosen[:AT_ONCE])
    start = int(n_vars // 3)
    neighbours = np.arange(start, min(start + AT_ONCE, n_vars))
    one_by_one = sum(_milliseconds(read, int(gene)) for gene in neighbours)
    return {
        "one p50_ms": float(np.percentile(taken, 50)),
        "one p95_ms": float(np.percentile(taken, 95)),
        "100 one by one_ms": sum(taken[:AT_ONCE]),
        "100 at once_ms": _best(read, random),
        "100 neighbours one by one_ms": one_by_one,
        "100 neighbours at once_ms": _best(read, neighbours),
    }


def warm_milliseconds(read: Reader, chosen: Any) -> list[float]:
    """Times of reading genes, once all of them are in the page cache."""
    taken: list[float] = []
    for _ in ("to warm up", "to measure"):
        taken = [_milliseconds(read, int(gene)) for gene in chosen]
    return taken


def cold_milliseconds(opened: Opened, path: Path, chosen: Any) -> list[float]:
    """Times of reading genes from a store none of whose files is in the page cache."""
    taken = []
    for gene in chosen:
        read = opened(path)
        forget_below(path)
        taken.append(_milliseconds(read, int(gene)))
    return taken


def _cold_hundred(opened: Opened, path: Path, chosen: Any) -> dict[str, float]:
    """Milliseconds of random genes none of whose bytes is in the page cache."""
    random = np.sort(chosen[:AT_ONCE])

    def forgotten() -> Reader:
        read = opened(path)
        read(int(chosen[-1]))
        forget_below(path)
        return read

    read = forgotten()
    one_by_one = sum(_milliseconds(read, int(gene)) for gene in random)
    at_once = _milliseconds(forgotten(), random)
    return {"100 cold one by one_ms": one_by_one, "100 cold at once_ms": at_once}


def _distant(
    results: Results, stores: dict[str, Path], chosen: Any, delay_ms: float, repeats: int
) -> None:
    """Random genes of stores that are far away, one by one and at once; add a table."""
    random = np.sort(chosen[:AT_ONCE])
    rows: list[Row] = []
    for whose, path in stores.items():
        for name, opened in ((OURS, ours), (ANNDATA, anndatas)):
            samples = []
            for _ in range(repeats):
                with served(path.parent, delay_ms) as url:
                    read = opened(f"{url}/{path.name}")
                    read(int(chosen[-1]))
                    one_by_one = [_milliseconds(read, int(gene)) for gene in random]
                    read = opened(f"{url}/{path.name}")
                    read(int(chosen[-1]))
                    at_once = _milliseconds(read, random)
                samples.append(
                    {
                        "one p50_ms": float(np.percentile(one_by_one, 50)),
                        "100 one by one_ms": sum(one_by_one),
                        "100 at once_ms": at_once,
                        "100: times faster at once": sum(one_by_one) / at_once,
                    }
                )
            say(f"distant  {name}, of {whose} store: {samples[-1]}")
            middle = {column: median(sample[column] for sample in samples) for column in samples[0]}
            rows.append({"what": f"{name}, of {whose} store", **middle})
    results.add("Reading genes over HTTP", {"delay_ms": delay_ms, "repeats": repeats}, rows)


def _decoding_row(store: Path, genes: Any, threads: int) -> Row:
    """Read and decode the chunks that some genes lie in, by some threads; the best of five."""
    matrix = open_csc(open_store(store).root["X"], "X")
    chunks: list[tuple[ChunkReader, int]] = []
    for member in (matrix.data, matrix.indices):
        length = member.layout.chunk_length
        numbers = {
            number
            for start, stop in zip(matrix.indptr[genes], matrix.indptr[genes + 1], strict=True)
            for number in range(start // length, -(-stop // length))
        }
        chunks += [(member, number) for number in sorted(numbers)]

    def share(first: int) -> None:
        for member, number in chunks[first::threads]:
            list(member.read([number]))

    def decode(_: Any) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))

    taken = min(_milliseconds(decode, None) for _ in range(5))
    decoded = sum(member.layout.chunk_bytes for member, _ in chunks)
    return {"threads": threads, "chunks": len(chunks), "decoded_bytes": decoded, "all_ms": taken}


def _best(read: Reader, key: Any) -> float:
    """The second of two reads: the first one warms up."""
    return [_milliseconds(read, key) for _ in range(2)][1]


def _milliseconds(read: Reader, key: Any) -> float:
    started = time.perf_counter()
    read(key)
    return 1000 * (time.perf_counter() - started)


def _row(name: str, samples: list[dict[str, float]]) -> Row:
    middle = {column: median(sample[column] for sample in samples) for column in samples[0]}
    for kind in ("100", "100 cold", "100 neighbours"):
        ratios = [s[f"{kind} one by one_ms"] / s[f"{kind} at once_ms"] for s in samples]
        middle[f"{kind}: times faster at once"] = median(ratios)
    return {"what": name, **middle}


def _own_store(source: Path, directory: Path) -> Path:
    """The store that anndata writes of the same file, with its defaults, whole or not at all."""
    path = directory / f"{source.stem}.anndata.zarr"
    if path.exists():
        return path
    say(f"making {path} in memory")
    adata = anndata.read_h5ad(source)
    adata.X = adata.X.tocsc()
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        adata.write_zarr(partial)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path
