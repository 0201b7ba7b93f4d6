"""The board: sums over finished tasks, whoever did them, and a scheduler that shows them."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

import dask_convert
from dask_convert.display.board import (
    HISTORY_SAMPLES,
    RATE_SECONDS,
    Board,
    Ended,
    MatrixTasks,
    PartsDone,
    Run,
    Series,
    Started,
    TaskDone,
)
from dask_convert.display.board_plugin import ConversionPlugin
from dask_convert.example.synthetic import write_synthetic_h5ad

STARTED = Started("run", "a.h5ad", "a.zarr", 2**30, 2**28, (MatrixTasks("X", 4, 2, 1000),))


def done(stage: str, **moved: int) -> TaskDone:
    """A task of X that moved some bytes."""
    return TaskDone("run", "X", stage, moved)


def test_counts_and_bytes_add_up() -> None:
    """Stages and bytes are sums over the events."""
    board = Board()
    board.apply(STARTED, 0.0)
    for _ in range(3):
        board.apply(done("split", source=10, fragments=7), 1.0)
    board.apply(done("combine", target=5), 2.0)
    run = board.newest()
    assert run is not None
    assert list(run.stages()) == [("split X", 3, 4), ("combine X", 1, 2)]
    assert run.bytes == {"source": 30, "fragments": 21, "target": 5} == board.total_bytes
    assert board.running() == [run]
    board.apply(PartsDone("run", "X", 2, 9), 2.5)
    assert list(run.stages())[2:] == [("verify X", 2, 9)]
    board.apply(Ended("run", "done"), 3.0)
    assert board.running() == []
    assert (run.state, run.seconds(99.0)) == ("done", 3.0)


def test_events_of_unknown_runs_are_ignored() -> None:
    """A scheduler that came late does not fall over."""
    board = Board()
    board.apply(done("split", source=1), 0.0)
    board.apply(Ended("run", "done"), 0.0)
    assert board.newest() is None
    assert board.total_bytes == {}


def test_old_runs_are_forgotten_but_stay_in_the_totals() -> None:
    """A counter never falls: Prometheus would take that for a restart."""
    board = Board()
    for number in range(Board.KEPT + 5):
        name = str(number)
        board.apply(Started(name, "s", "t", 1, 1, (MatrixTasks("X", 1, 1, 1),)), 0.0)
        board.apply(TaskDone(name, "X", "split", {"source": 2}), 0.0)
    assert len(board.runs) == Board.KEPT
    assert board.total_bytes == {"source": 2 * (Board.KEPT + 5)}


def test_rate_is_of_the_last_seconds() -> None:
    """Half a minute at 100 bytes a second, then nothing for as long as rates look back."""
    run = Run(STARTED, 0.0)
    for second in range(30):
        run.bytes["source"] = 100 * second
        run.sample(float(second), {"0": 1.0})
    assert run.rate("source") == pytest.approx(100.0)
    for second in range(30, 30 + int(RATE_SECONDS) + 2):
        run.sample(float(second), {"0": 1.0})
    assert run.rate("source") == 0.0
    assert run.memory.of("0")[0] == [float(second) for second in range(42)]


def test_time_left_is_a_share() -> None:
    """Half of all stages done: as long again."""
    run = Run(STARTED, 0.0)
    assert run.seconds_left(10.0) is None
    run.done["X", "split"] = 4
    assert run.seconds_left(10.0) == pytest.approx(10.0)


@given(count=st.integers(0, 5 * HISTORY_SAMPLES))
def test_history_is_thinned_evenly(count: int) -> None:
    """However long a run is, samples are few, in order, from all over it."""
    series = Series()
    for number in range(count):
        series.add(float(number), {"x": number})
    seconds, values = series.of("x")
    assert seconds == values == sorted(values)
    assert len(values) <= HISTORY_SAMPLES
    assert len(values) >= min(count, HISTORY_SAMPLES // 2)
    steps = {int(b - a) for a, b in itertools.pairwise(seconds)}
    assert len(steps) <= 1


def board_of(client: Client) -> Board:
    """The board of the scheduler, which is in this process."""
    plugin = client.cluster.scheduler.plugins[ConversionPlugin.name]
    return plugin.board


def converted(client: Client, directory: Path) -> dask_convert.ConversionResult:
    """A conversion of a dozen tasks."""
    source = directory / "cells.h5ad"
    if not source.exists():
        write_synthetic_h5ad(source, n_obs=3_000, n_vars=300, seed=1, processes=1)
    return dask_convert.convert(
        source, directory / "genes.zarr", memory="4GiB", client=client, overwrite=True
    )


def test_a_scheduler_knows_what_a_conversion_did(client: Client, tmp_path: Path) -> None:
    """What the board says at the end is what the result says."""
    result = converted(client, tmp_path)
    run = board_of(client).newest()
    assert run is not None
    assert run.state == "done"
    matrix, plan = result.matrices[0], result.plan.matrices[0]
    assert run.done["X", "split"] == len(plan.blocks)
    assert run.done["X", "combine"] == len(plan.regions)
    assert run.bytes["source"] == matrix.source_bytes
    assert run.bytes["fragments"] == matrix.fragment_bytes
    assert run.bytes["target"] == matrix.target_bytes


def test_two_conversions_share_one_page(client: Client, tmp_path: Path) -> None:
    """The plugin and its page are there once, however many conversions there are."""
    converted(client, tmp_path)
    converted(client, tmp_path)
    assert len(board_of(client).runs) == 2
    from distributed.dashboard.scheduler import template_variables

    assert template_variables(client.cluster.scheduler)["pages"].count("conversion") == 1


def test_a_lost_worker_is_counted(client: Client, tmp_path: Path) -> None:
    """One that is killed while a conversion runs; none that leaves between two."""
    converted(client, tmp_path)
    board = board_of(client)
    board.apply(STARTED, time.time())
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while board.runs["run"].lost_workers == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert board.runs["run"].lost_workers == 1
    assert [run.lost_workers for run in board.runs.values()] == [0, 1]
