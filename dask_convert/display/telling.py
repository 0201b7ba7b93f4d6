"""Words on the standard error stream, which may break: no line is worth a conversion.

A pipe is closed when its reader ends, a terminal when a connection is lost, and a disk that a log
is written to can be full.
"""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import TextIO

BROKEN = (OSError, ValueError)
"""What writing to a stream raises that is broken, or was closed."""


def tell(line: str) -> None:
    """Write a line to the standard error stream, if that can be written to."""
    if sys.stderr is None:  # the process was started without one
        return
    with suppress(*BROKEN):
        print(line, file=sys.stderr, flush=True)


class Steady(io.TextIOBase):
    """A text stream that drops what another one cannot write.

    Parameters
    ----------
    stream
        The other one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has an attribute
        """Of the other stream."""
        return self._stream.encoding

    def fileno(self) -> int:
        """Of the other stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether the other stream is a terminal."""
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write to the other stream, if it can be written to."""
        with suppress(*BROKEN):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the other stream, if that can be."""
        with suppress(*BROKEN):
            self._stream.flush()
