"""How the loops of this package are compiled, and what they all promise.

Arrays in, arrays out, nothing else. The caller allocates; positions and counts are given in full,
so that no kernel can run past an array it was handed correctly; no kernel checks bounds again. All
are compiled without object mode, release the GIL and keep their machine code on disk
(``cache=True``), so that a worker loads them in milliseconds.

Unsigned index arithmetic is deliberate: numba would otherwise add the test for negative
("from the end") indices to every access.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_F = TypeVar("_F", bound=Callable[..., object])


def kernel(function: _F) -> _F:
    """Compile on first call; typed as the function it wraps, since numba has no types."""
    try:
        return cast("_F", numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # no directory to keep it in may be written to: every process compiles
        return cast("_F", numba.njit(nogil=True, error_model="numpy")(function))
