"""Who starts local workers and ends them: dask's nanny, but for a moment that it gets wrong.

A worker that ends as soon as it has begun is started again before its nanny has heard that the
first one had begun. The nanny then takes the second for running that is only about to start, and
to end it at this moment is an `AssertionError`: it would end the run in the place of what a task
had to say, and dask would close neither the other workers nor the scheduler.
"""

from __future__ import annotations

from contextlib import suppress

from distributed import Nanny
from distributed.process import AsyncProcess


class SureNanny(Nanny):
    """Ends its worker whatever state that is in."""

    async def kill(
        self,
        timeout: float = 5,  # noqa: ASYNC109  (dask's signature)
        reason: str = "nanny-kill",
    ) -> None:
        """See `distributed.Nanny.kill`."""
        try:
            await super().kill(timeout=timeout, reason=reason)
        except (AssertionError, TimeoutError):
            process = self.process.process if self.process is not None else None
            if process is not None:
                await _end(process, timeout)


async def _end(process: AsyncProcess, seconds: float) -> None:
    # Gone already, never come to be, or in the hands of a disk that does not answer.
    with suppress(ValueError, AttributeError, AssertionError, TimeoutError):
        await process.kill()  # after its start: they stand in one queue
        await process.join(seconds)
