"""Makes an HDF5 file on a disk that may be full, or by a command that may be interrupted.

HDF5 cannot close a file that it fails to write to: it tries again as the process ends, and dies of
it. So it writes into an object that never fails, but keeps what went wrong; whoever fills the file
asks for that now and then. That happens in a thread of its own, since Python raises
KeyboardInterrupt in the main one, and could do so where HDF5 calls that object.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py

Check = Callable[[], None]


def write_hdf5(path: Path, fill: Callable[[h5py.File, Check], None]) -> None:
    """Make an HDF5 file.

    Parameters
    ----------
    path
        Its name; what has it is overwritten.
    fill
        Is given the open file, and a function that raises what has gone wrong, if anything: to be
        called often, since nothing that is written after that counts.

    Raises
    ------
    OSError
        The system could not write; the file is of no use then.
    """
    sink = _Sink()
    with ThreadPoolExecutor(1) as helper:
        writing = helper.submit(_write, path, sink, fill)
        try:
            writing.result()
        except BaseException as error:
            sink.stop(error)
            raise


def _write(path: Path, sink: _Sink, fill: Callable[[h5py.File, Check], None]) -> None:
    with path.open("w+b", buffering=0) as raw:
        sink.descriptor = raw.fileno()
        try:
            with h5py.File(sink, "w") as file:
                fill(file, sink.check)
        finally:
            sink.check()


class _Sink(io.RawIOBase):
    """What h5py takes for a file; an exception in any of these would end the process."""

    descriptor = -1

    def __init__(self) -> None:
        self._place = 0
        self._failure: BaseException | None = None

    def stop(self, reason: BaseException) -> None:
        """Write no more."""
        self._failure = self._failure or reason

    def check(self) -> None:
        """Raise what has gone wrong, if anything."""
        if self._failure is not None:
            raise self._failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Where to read or write next; of the end, h5py asks as long as the file is empty."""
        self._place = offset if whence == os.SEEK_SET else self._place
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read what was written; zeros where nothing was."""
        view = memoryview(buffer)
        content = self._tried(os.pread, self.descriptor, len(view), self._place) or b""
        view[:] = content.ljust(len(view), b"\0")
        return len(view)

    def write(self, content: Any) -> int:
        """Write all of it."""
        view, place = memoryview(content), self._place
        length = len(view)
        while view and self._failure is None:
            done = self._tried(os.pwrite, self.descriptor, view, place) or 0
            view, place = view[done:], place + done
        return length

    def truncate(self, size: int | None = None) -> int:
        """Give the file its length."""
        length = self._place if size is None else size
        self._tried(os.ftruncate, self.descriptor, length)
        return length

    def _tried(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call of the system's; None, and the reason is kept, if it fails."""
        try:
            return call(*arguments)
        except BaseException as error:  # noqa: BLE001  # whatever it is, HDF5 must not meet it
            self.stop(error)
            return None
