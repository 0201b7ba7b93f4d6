"""Workers that went away while a run went on, as dask's scheduler has noted it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from dask_convert.engine.graph import Executor, Graph, Key, OnReport, Report

if TYPE_CHECKING:
    from distributed import Client

_WORK = {
    "split": "row block {}",
    "combine": "region {}",
    "barrier": "the barrier",
    "verify": "part {} of the verification",
}
"""Tasks in words, by how their keys begin."""


class NotingExecutor:
    """Passes graphs on to another executor, and notes which matrix each is of.

    Keys do not say it: they end in a word that is random for each graph.

    Parameters
    ----------
    executor
        Runs the tasks.
    current
        Gives the matrix of the last report that was handed over.

    Attributes
    ----------
    matrices
        Names by the ends of keys; those of graphs of which no task has reported are missing.
    """

    def __init__(self, executor: Executor, current: Callable[[], str]) -> None:
        self.client = executor.client
        self.matrices: dict[str, str] = {}
        self._executor = executor
        self._current = current

    def run(self, graph: Graph, on_report: OnReport) -> None:
        """See `Executor.run`."""

        def note(key: Key, report: Report) -> None:
            on_report(key, report)
            self.matrices[_end(key)] = self._current()

        self._executor.run(graph, note)


class Loss(msgspec.Struct, frozen=True):
    """A worker that has gone.

    Attributes
    ----------
    time
        In seconds since the epoch, by the scheduler's clock.
    worker
        Its address.
    expected
        Whether it had said that it would leave, or was told to.
    work
        Tasks that it had been given and not finished, in words; others do them again.
    lost_results
        Finished tasks whose reports went with it, in words; they are found on scratch again.
    """

    time: float
    worker: str
    expected: bool
    work: tuple[str, ...]
    lost_results: tuple[str, ...]


def losses_since(client: Client, began: float, matrices: Mapping[str, str]) -> list[Loss]:
    """Workers of a client's scheduler that have gone since a time; none if it does not answer."""
    with suppress(Exception):  # a scheduler that is gone is told of elsewhere
        return losses(client.get_events("all"), began, matrices)
    return []


def losses(
    events: Iterable[Sequence[Any]], began: float, matrices: Mapping[str, str]
) -> list[Loss]:
    """What dask's events say of lost workers.

    Parameters
    ----------
    events
        Of dask's topic ``all``: pairs of a time and a message.
    began
        Those before are left out.
    matrices
        See `NotingExecutor`.
    """
    return [
        Loss(
            seconds,
            message["worker"],
            bool(message.get("expected")),
            _in_words(message.get("processing-tasks", ()), matrices),
            _in_words(message.get("lost-computed-tasks", ()), matrices),
        )
        for seconds, message in events
        if seconds >= began
        and isinstance(message, dict)
        and message.get("action") == "remove-worker"
    ]


def _in_words(keys: Iterable[Any], matrices: Mapping[str, str]) -> tuple[str, ...]:
    """Tasks of ours among some keys, such as ``("split-01234567", 3)``."""
    known = [
        (matrices.get(_end(key), ""), str(key[0]).partition("-")[0], int(key[1]))
        for key in keys
        if isinstance(key, list | tuple) and len(key) == 2 and str(key[1]).isdigit()
    ]
    return tuple(
        _WORK[kind].format(number) + (f" of {matrix}" if matrix else "")
        for matrix, kind, number in sorted(known)
        if kind in _WORK
    )


def _end(key: Sequence[Any]) -> str:
    """What tells the graphs apart that keys belong to."""
    return str(key[0]).partition("-")[2]
