"""The process that reads a file before anybody else, forked from one that has loaded h5py.

A conversion starts Python anew for it, which takes longer than all the rest of converting a few
entries. Tests convert thousands of such files: there each process is forked from a server. It
still is a process of its own, with the same script, limits, output and exit code.

    python -P rehearsing.py SOCKET      the server
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import ForkingMixIn, StreamRequestHandler, UnixStreamServer
from typing import NoReturn

import h5py  # noqa: F401  (for the forked)

VARIABLE = "DASK_CONVERT_TESTS_REHEARSALS"
"""In the environment, the server's socket."""


@contextmanager
def server() -> Iterator[None]:
    """Have a server, for this process and all that it starts."""
    with tempfile.TemporaryDirectory(prefix="rehearsals-") as directory:
        path = Path(directory, "socket")
        # What `rehearse` sets: HDF5 looks for no plugins, whoever has asked it to.
        environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::"}
        environment.pop("HDF5_PLUGIN_PATH", None)
        command = [sys.executable, "-P", __file__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), "the server has not started"
            os.environ[VARIABLE] = str(path)
            yield
            del os.environ[VARIABLE]
            process.terminate()


def run(command: list[str], _environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """What ``rehearsal._run`` does, by the server that this process knows of."""
    python, option, *arguments = command
    assert (python, option) == (sys.executable, "-P")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[VARIABLE])
        connection.sendall(json.dumps(arguments).encode() + b"\n")
        with connection.makefile("rb") as answer:
            *told, code = answer.read().rsplit(b"\n", 1)
    return subprocess.CompletedProcess(command, int(code), b"\n".join(told), b"")


def join_server() -> None:
    """Have files read first by the server of the tests that have started this process, if any."""
    from dask_convert.files import rehearsal  # which the server itself can do without

    if VARIABLE in os.environ:
        rehearsal._run = run


class Handler(StreamRequestHandler):
    """Runs a script, its arguments being told by a line; answers with its output and its code."""

    def handle(self) -> None:
        """See `Handler`."""
        arguments = json.loads(self.rfile.readline())
        pid = os.fork()
        if pid == 0:
            _be(arguments, self.connection.fileno())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.wfile.write(f"\n{code}".encode())


class Server(ForkingMixIn, UnixStreamServer):
    """Forks for each connection, as long as the tests that have started it live."""

    max_children = 100
    parent = os.getppid()

    def service_actions(self) -> None:
        """See `socketserver.BaseServer`; this comes by twice a second."""
        super().service_actions()
        if os.getppid() != self.parent:
            sys.exit()


def _be(arguments: list[str], output: int) -> NoReturn:
    """What ``python -P`` would do with a script, and its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for ours, theirs in enumerate((nothing, output, nothing)):
        os.dup2(theirs, ours)
    os.closerange(3, output + 1)
    code = 1
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    with Server(sys.argv[1], Handler) as serving:
        print("ready", flush=True)
        serving.serve_forever()
