"""Where the bytes of a store come from: plain files, or any storage that zarr-python knows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from dask_convert.errors import StoreError
from dask_convert.page_cache import will_need

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store


class ByteSource(Protocol):
    """Gives parts of the files of one array; None where there is no such file.

    Attributes
    ----------
    remote
        Whether most of the time is spent waiting.
    """

    remote: bool

    def whole(self, key: str) -> bytes | None:
        """All of a file."""

    def part(self, key: str, start: int, stop: int) -> bytes | None:
        """The bytes ``[start, stop)``; fewer where the file ends before."""

    def tail(self, key: str, n_bytes: int) -> bytes | None:
        """The last bytes."""

    def expect(self, key: str, start: int, stop: int | None) -> None:
        """Have bytes fetched that will be read soon; a negative start counts from the end."""


class LocalBytes:
    """Files below a directory, read without zarr-python, whose event loop takes milliseconds.

    Parameters
    ----------
    directory
        Of the array.
    """

    remote = False

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)

    def whole(self, key: str) -> bytes | None:
        """All of a file."""
        return self._read(key, 0, None)

    def part(self, key: str, start: int, stop: int) -> bytes | None:
        """The bytes ``[start, stop)``."""
        return self._read(key, start, stop)

    def tail(self, key: str, n_bytes: int) -> bytes | None:
        """The last bytes."""
        return self._read(key, -n_bytes, None)

    def expect(self, key: str, start: int, stop: int | None) -> None:
        """Have the system read ahead; what cannot be opened is told of when it is read."""
        with suppress(OSError):
            descriptor = os.open(f"{self._directory}/{key}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if start < 0:
                    start = max(os.fstat(descriptor).st_size + start, 0)
                size = 0 if stop is None else stop - start
                will_need(descriptor, start, size)
            finally:
                os.close(descriptor)

    def _read(self, key: str, start: int, stop: int | None) -> bytes | None:
        path = f"{self._directory}/{key}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            msg = f"{path}: cannot be read: {error.strerror}"
            raise StoreError(msg) from error
        try:
            size = os.fstat(descriptor).st_size if start < 0 or stop is None else 0
            start = max(size + start, 0) if start < 0 else start
            return _pread(descriptor, start, size if stop is None else stop)
        except OSError as error:
            msg = f"{path}: cannot be read: {error.strerror}"
            raise StoreError(msg) from error
        finally:
            os.close(descriptor)


class StoreBytes:
    """Files of any zarr store: fsspec's, obstore's, memory, a zip.

    Parameters
    ----------
    store
        Of zarr-python.
    path
        Of the array in it.
    """

    remote = True

    def __init__(self, store: Store, path: str) -> None:
        self._store = store
        self._path = path

    def whole(self, key: str) -> bytes | None:
        """All of a file."""
        return self._get(key, None)

    def part(self, key: str, start: int, stop: int) -> bytes | None:
        """The bytes ``[start, stop)``."""
        return self._get(key, RangeByteRequest(start, stop))

    def tail(self, key: str, n_bytes: int) -> bytes | None:
        """The last bytes."""
        return self._get(key, SuffixByteRequest(n_bytes))

    def expect(self, key: str, start: int, stop: int | None) -> None:
        """Nothing: what is far away is read by many threads at once."""

    def _get(self, key: str, request: ByteRequest | None) -> bytes | None:
        path = f"{self._path}/{key}" if self._path else key
        try:
            found = sync(self._store.get(path, default_buffer_prototype(), request))
        except Exception as error:  # every storage has exceptions of its own
            msg = f"{self._store}, {path}: cannot be read: {type(error).__name__}: {error}"
            raise StoreError(msg) from error
        return None if found is None else found.to_bytes()


def byte_source(array: zarr.Array[Any]) -> ByteSource:
    """The shortest way to the files of an array."""
    store, path = array.store_path.store, array.store_path.path
    if isinstance(store, LocalStore):
        return LocalBytes(Path(store.root, path))
    return StoreBytes(store, path)


def _pread(descriptor: int, start: int, stop: int) -> bytes:
    """Read a range, however many calls it takes; fewer bytes at the end of the file."""
    content = os.pread(descriptor, stop - start, start)
    while len(content) < stop - start:
        more = os.pread(descriptor, stop - start - len(content), start + len(content))
        if not more:
            break
        content += more
    return content
