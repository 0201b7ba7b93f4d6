"""A real Jupyter kernel to run cells in, and what it shows."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
CELL_SECONDS = 120.0

Message = dict[str, Any]


class Kernel:
    """Runs cells, and keeps what each shows.

    Parameters
    ----------
    manager, client
        As jupyter_client has them.
    """

    def __init__(self, manager: Any, client: Any) -> None:
        self._manager = manager
        self._client = client

    @property
    def pid(self) -> int:
        """Of the kernel's process."""
        return int(self._manager.provisioner.pid)

    def run(self, code: str, on_message: Callable[[Message], object] = lambda _: None) -> list[Any]:
        """Run a cell; returns the messages that it led to, the newest last."""
        number = self._client.execute(code)
        deadline, messages = time.monotonic() + CELL_SECONDS, []
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=1.0)
            except queue.Empty:
                assert time.monotonic() < deadline, f"no end of: {code}"
                continue
            if message["parent_header"].get("msg_id") != number:
                continue
            messages.append(message)
            on_message(message)
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return messages

    def interrupt(self) -> None:
        """What the button of a notebook does."""
        self._manager.interrupt_kernel()


@contextmanager
def kernel(directory: Path) -> Iterator[Kernel]:
    """A kernel that works in a directory and ends with the block."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(START_SECONDS, kernel_name="python3", cwd=str(directory))
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def contents(messages: list[Message], kind: str) -> list[Any]:
    """The contents of all messages of a kind."""
    return [message["content"] for message in messages if message["msg_type"] == kind]
