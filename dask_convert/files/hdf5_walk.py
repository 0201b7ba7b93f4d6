"""A script of its own: reads all of an HDF5 file's structure, so that nobody else has to be first.

Where a file is damaged, HDF5 may crash, never come back, or take all memory for one string. This
process does then, and whoever started it (`dask_convert.files.rehearsal`) goes on. It says what
it is about to read, line by line, and ends well whatever h5py raises, strings that cannot be read
aside.

    python hdf5_walk.py FILE SECONDS     processor seconds for any one step
"""

import math
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

STEP_ROWS = 2**14
MEMORY_BYTES = 2**29
"""What it may take beyond what it has at the start."""
UNREADABLE_EXIT_CODE = 3


def begin(step: str, seconds: int) -> None:
    """Say what comes next, and allow it its time."""
    sys.stdout.write(ascii(step) + "\n")
    sys.stdout.flush()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))


def walk(path: str, seconds: int) -> None:
    """Read every group, attribute, index of chunks and string that hard links lead to."""
    begin("the file itself", seconds)
    with h5py.File(path, "r", locking="best-effort") as file:
        pending: list[tuple[str, Any]] = [("/", file["/"])]
        met = set()
        while pending:
            name, item = pending.pop()
            address = h5py.h5o.get_info(item.id).addr
            if address in met:
                continue
            met.add(address)
            begin(name, seconds)
            with suppress(Exception):
                read_attributes(item)
            with suppress(Exception):
                if isinstance(item, h5py.Dataset):
                    read_strings(name, item, seconds)
                elif isinstance(item, h5py.Group):
                    pending += hard_members(name, item)


def read_attributes(item: Any) -> None:
    """Read all attributes, those that come after one that cannot be read as well."""
    for key in list(item.attrs):
        with suppress(Exception):
            item.attrs[key]


def hard_members(name: str, group: Any) -> list[tuple[str, Any]]:
    """What a group's hard links lead to."""
    found = []
    for key in list(group):
        with suppress(Exception):
            if isinstance(group.get(key, getlink=True), h5py.HardLink):
                found.append((f"{name.rstrip('/')}/{key}", group[key]))
    return found


def read_strings(name: str, dataset: Any, seconds: int) -> None:
    """Go through the index of chunks, and read what lies in a heap; all else is plain bytes."""
    if dataset.chunks:
        lengths = zip(dataset.shape, dataset.chunks, strict=True)
        if dataset.id.get_num_chunks() < math.prod(
            -(-length // chunk) for length, chunk in lengths
        ):
            return  # not all there, which is refused
        dataset.id.chunk_iter(lambda _chunk: None)
    if not dataset.dtype.hasobject or dataset.is_virtual or dataset.external:
        return
    properties = dataset.id.get_create_plist()
    codes = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if not all(map(h5py.h5z.filter_avail, codes)):
        return  # their plugins are not here
    try:
        if not dataset.shape:
            dataset[()]
        for start in range(0, dataset.shape[0] if dataset.shape else 0, STEP_ROWS):
            begin(name, seconds)
            dataset[start : start + STEP_ROWS]
    except Exception:  # noqa: BLE001  (whatever HDF5 says, or too much memory)
        sys.exit(UNREADABLE_EXIT_CODE)


def limit_memory() -> None:
    """Bound the memory of this process by what it has, and some more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    limit_memory()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(Exception):
        walk(sys.argv[1], int(sys.argv[2]))
