"""A storage that is far away: a directory served on loopback, each answer late by a set time.

``python -m benchmarks.distant DIRECTORY DELAY_MS`` prints the port and serves until it is ended.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from aiohttp import web

from benchmarks.measuring import ROOT, python_module

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def served(directory: Path, delay_ms: float) -> Iterator[str]:
    """Serve a directory from a process of its own; yields its URL, without a slash at the end."""
    command = python_module("benchmarks.distant", directory, str(delay_ms))
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None  # noqa: S101 it was asked for
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


async def serve(directory: Path, delay_ms: float) -> None:
    """Serve files, whole or in ranges, for ever; any number of requests wait side by side."""

    @web.middleware
    async def late(request: web.Request, handler: Handler) -> web.StreamResponse:
        await asyncio.sleep(delay_ms / 1000)
        return await handler(request)

    app = web.Application(middlewares=[late])
    app.router.add_static("/", directory)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
