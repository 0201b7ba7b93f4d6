"""Converts spoilt files, each in a process of its own: typed error or equal store, nothing else.

    python tests/soak/bad_input.py --cases 500 --seed 1

Every case is forked from this process, which has loaded everything; a case that is killed by a
signal, takes too long, takes too much memory, raises anything else, leaves anything behind or
converts to something else is a failure, and can be had again by its seed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import h5py
import hdf5plugin  # noqa: F401  (corruptions write with its filters)
import numpy as np
import zarr
from corruption import CORRUPTIONS, corruption_of, valid_file
from engine import convert, names
from oracle import assert_converted, assert_same_bits
from rehearsing import join_server
from strategies import Csr

from dask_convert.engine import preload  # noqa: F401  (loads what workers load)
from dask_convert.errors import DaskConvertError
from dask_convert.files import rehearsal

CASE_SECONDS = 60
CASE_BYTES = 700 * 2**20
SETTINGS = {
    "chunk_nnz": 64,
    "shard_nnz": 128,
    "block_nnz": 100,
    "region_nnz": 256,
    "column_width": 16,
}


def run_case(seed: int, directory: Path) -> dict[str, str]:
    """Spoil a file and convert it; what came of it."""
    rng = np.random.default_rng(seed)
    name = corruption_of(seed)
    source, target = directory / "source.h5ad", directory / "target.zarr"
    valid_file(source, rng)
    pristine = io.BytesIO(source.read_bytes())
    CORRUPTIONS[name].spoil(source, rng)
    before = names(directory)
    try:
        result = convert(source, target, **SETTINGS)
    except DaskConvertError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1, message
        assert names(directory) == before, names(directory)
        return {"outcome": "refused", "error": type(error).__name__, "message": message}
    assert names(directory) == [*before, "target.zarr"]
    converted = [matrix.name for matrix in result.matrices]
    with h5py.File(source) as file, h5py.File(pristine) as before_all:
        for matrix in converted:
            try:
                expected = valid_csr(file[matrix])
            except OSError:  # zlib is stricter about headers than the checksum of the content is
                expected = valid_csr(before_all[matrix])
            assert_converted(target, expected, matrix)
        assert_copied(file, zarr.open_group(target, mode="r"), converted)
    return {"outcome": "equal", "error": "", "message": ""}


def valid_csr(group: h5py.Group) -> Csr:
    """The matrix as h5py reads it, seen to be valid: scipy would crash otherwise."""
    n_obs, n_vars = (int(length) for length in group.attrs["shape"])
    data, indices, indptr = (group[name][:] for name in ("data", "indices", "indptr"))
    indices, indptr = indices.astype("i8"), indptr.astype("i8")
    assert indptr.size == n_obs + 1
    assert indptr[0] == 0
    assert indptr[-1] == data.size == indices.size
    assert (np.diff(indptr) >= 0).all()
    assert ((indices >= 0) & (indices < n_vars)).all()
    return Csr(data.astype(data.dtype.newbyteorder("=")), indices, indptr, (n_obs, n_vars))


def assert_copied(file: h5py.File, root: zarr.Group, converted: list[str]) -> None:
    """Every other data set of the file is in the store, and equal."""
    for path in ("X", "layers", "obs", "var", "obsm", "uns"):
        if path in file:
            for where, dataset in data_sets(file[path], path):
                if not any(where.startswith(f"{matrix}/") for matrix in converted):
                    assert_same_array(dataset, root[where][...], where)


def data_sets(item: Any, path: str) -> Iterator[tuple[str, h5py.Dataset]]:
    """All data sets at a path and below, wherever links lead."""
    if isinstance(item, h5py.Dataset):
        yield path, item
    elif isinstance(item, h5py.Group):
        for key in item:
            yield from data_sets(item[key], f"{path}/{key}")


def assert_same_array(dataset: h5py.Dataset, copied: Any, where: str) -> None:
    """As h5py reads it, bit by bit; strings as text."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        expected = np.asarray(dataset.asstr()[()], object)
        assert np.asarray(copied, object).tolist() == expected.tolist(), where
        return
    expected = np.asarray(dataset[()])
    native = expected.astype(expected.dtype.newbyteorder("="))
    assert_same_bits(np.asarray(copied), native)


def fork_case(seed: int) -> tuple[int, int, float]:
    """Start a case; its process, where it tells what came of it, and when it is too late."""
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sending)
        return pid, receiving, time.monotonic() + CASE_SECONDS
    os.close(receiving)
    os.setpgid(0, 0)
    try:
        with tempfile.TemporaryDirectory(prefix="bad-input-") as directory:
            told = run_case(seed, Path(directory))
    except BaseException:  # noqa: BLE001  (that is what is looked for)
        told = {"outcome": "failed", "error": "", "message": traceback.format_exc()}
    os.write(sending, json.dumps(told)[:60_000].encode(errors="replace"))
    os._exit(0)


def finish_case(seed: int, pid: int, receiving: int, deadline: float) -> dict[str, Any]:
    """What became of a case."""
    ready, _, _ = select.select([receiving], [], [], max(deadline - time.monotonic(), 0))
    told = b""
    while ready and (more := os.read(receiving, 65_536)):
        told += more
    os.close(receiving)
    if not ready:
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    result: dict[str, Any] = {"seed": seed, "kind": corruption_of(seed)}
    if not ready:
        return result | {"outcome": "hung", "message": f"not done after {CASE_SECONDS} s"}
    if os.WIFSIGNALED(status) or not told:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return result | {"outcome": "crashed", "message": f"ended by signal {number}"}
    result |= json.loads(told)
    peak_bytes = usage.ru_maxrss * 1024
    if peak_bytes > CASE_BYTES + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024:
        return result | {"outcome": "swollen", "message": f"took {peak_bytes} bytes"}
    wanted = CORRUPTIONS[result["kind"]].outcome
    if result["outcome"] in {"equal", "refused"} and wanted not in {"either", result["outcome"]}:
        return result | {"outcome": f"{result['outcome']}, not {wanted}"}
    return result


def run_cases(seeds: range, jobs: int) -> Iterator[dict[str, Any]]:
    """All cases, some at a time."""
    running: list[tuple[int, int, int, float]] = []
    for seed in seeds:
        running.append((seed, *fork_case(seed)))
        if len(running) == jobs:
            yield finish_case(*running.pop(0))
    for case in running:
        yield finish_case(*case)


def main() -> int:
    """Run the cases that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one line per case")
    options = parser.parse_args()
    rehearsal.STEP_SECONDS = 3
    join_server()
    started = time.monotonic()
    tally: Counter[str] = Counter()
    failures = 0
    for result in run_cases(range(options.seed, options.seed + options.cases), options.jobs):
        outcome = result["outcome"]
        tally[outcome if outcome != "refused" else f"refused by {result['error']}"] += 1
        failed = outcome not in {"equal", "refused"}
        failures += failed
        with suppress(BrokenPipeError):
            if options.json:
                print(json.dumps(result), flush=True)
            elif failed:
                print(f"seed {result['seed']}, {result['kind']}: {outcome}: {result['message']}")
    if not options.json:
        seconds = time.monotonic() - started
        print(f"{options.cases} cases, {failures} failures, {seconds:.0f} s: {dict(tally)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
