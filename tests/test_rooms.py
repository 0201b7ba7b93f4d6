"""Private directories of runs on clusters: they go with their run, or with the next command."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import anndata as ad
import pytest
import scipy.sparse as sp
from click.testing import CliRunner
from distributed import LocalCluster
from faults import finish, start, wait_for

import dask_convert
from dask_convert.cli import main
from dask_convert.conversion.locks import STALE_SECONDS
from dask_convert.display.summary import of_result
from dask_convert.places.rooms import clear_dead_rooms, private_rooms


def hold(directory: Path) -> None:
    """Have a room with something in it until somebody ends this."""
    with private_rooms([directory]) as (room,):
        (room / "tls").mkdir()
        (room / "tls" / "key.pem").write_text("secret")
        (room / "question").write_text("?")
        time.sleep(60)


def rooms(directory: Path) -> list[Path]:
    """What looks like a room."""
    return sorted(directory.glob(".dask-convert-*"))


def test_a_room_goes_with_its_run(tmp_path: Path) -> None:
    """Also with one that fails; and it is nobody else's to look into."""
    with suppress(ZeroDivisionError), private_rooms([tmp_path, tmp_path]) as made:
        assert rooms(tmp_path) == made
        assert len(made) == 1
        assert made[0].stat().st_mode & 0o77 == 0
        (made[0] / "logs").mkdir()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["clean", "next run"])
def test_rooms_of_a_killed_driver_are_removed(tmp_path: Path, way: str) -> None:
    """Once it is dead, and not before; what is no room of ours stays."""
    process = start(hold, tmp_path)
    wait_for(lambda: list(tmp_path.glob(".dask-convert-*/question")))
    (room,) = rooms(tmp_path)
    others = [tmp_path / name for name in (".dask-convert-abcd1234", ".dask-convert-mine")]
    for other in others:
        other.mkdir()
    (others[1] / "lock-000001").touch()  # unreadable, old, and in a directory of another name
    os.utime(others[1] / "lock-000001", (1, 1))
    (tmp_path / ".dask-convert-linked12").symlink_to(others[1])
    stay = [*others, tmp_path / ".dask-convert-linked12"]
    assert clear_dead_rooms([tmp_path]) == []
    process.kill()
    assert finish(process) < 0
    if way == "clean":
        result = CliRunner().invoke(main, ["clean", str(tmp_path / "genes.zarr")])
        assert (result.exit_code, result.output) == (0, f"cleared {room}\n")
    else:
        with private_rooms([tmp_path]):
            assert not room.exists()
    assert rooms(tmp_path) == sorted(stay)


def test_a_room_of_another_machine_is_dead_when_it_is_silent(tmp_path: Path) -> None:
    """Only its lock's age tells."""
    room = tmp_path / ".dask-convert-abcd1234"
    room.mkdir()
    lock = room / "lock-000001"
    lock.write_text('{"host":"far","machine":"far","pid":1,"started_ticks":1,"since":"now"}')
    assert clear_dead_rooms([tmp_path]) == []
    silent = time.time() - STALE_SECONDS - 5
    os.utime(lock, (silent, silent))
    assert clear_dead_rooms([tmp_path]) == [room]
    assert list(tmp_path.iterdir()) == []


def test_workers_elsewhere_tell_their_own_peaks(tmp_path: Path) -> None:
    """What each process had resident by its own account; this one's is told apart."""
    source = tmp_path / "cells.h5ad"
    ad.AnnData(sp.random(60, 30, 0.3, format="csr", random_state=1, dtype="f4")).write_h5ad(source)
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="4GiB", dashboard_address="127.0.0.1:0"
    ) as cluster:
        result = dask_convert.convert(
            source, tmp_path / "genes.zarr", scheduler=cluster.scheduler_address
        )
        (node,) = {name.rpartition(":")[0] for name in result.worker_peaks}
        pids = {nanny.pid for nanny in cluster.workers.values()}
    assert node == os.uname().nodename
    assert {int(name.rpartition(":")[2]) for name in result.worker_peaks} <= pids
    assert all(30e6 < peak_bytes < 4 * 2**30 for peak_bytes in result.worker_peaks.values())
    text = of_result(result)
    assert "at most in samples of this process" in text
    assert f"at most in one ({node}:" in text
