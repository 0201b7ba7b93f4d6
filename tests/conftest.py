"""What several files of tests share, and hypothesis without deadlines: kernels compile when called.

``HYPOTHESIS_PROFILE=fewer`` tries a quarter of the examples, and leaves out what is marked `once`;
CI does so where it runs the same tests with other versions of Python and packages.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import rehearsing
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, settings

from dask_convert.files import rehearsal

settings.register_profile(
    "dask_convert", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fewer", settings.get_profile("dask_convert"), max_examples=25)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "dask_convert")
settings.load_profile(PROFILE)
MOST_PROCESSES = 5

# A shell that runs the tests in its background has them ignore Ctrl-C, and so all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores, since tests wait as well; none for a part of the tests."""
    marked = config.option.markexpr not in config.getini("addopts")
    if marked or config.option.keyword or config.args != config.getini("testpaths"):
        return 0
    return min(len(os.sched_getaffinity(0)) + 1, MOST_PROCESSES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has run elsewhere."""
    if PROFILE == "fewer":
        once = [item for item in items if item.get_closest_marker("once")]
        config.hook.pytest_deselected(items=once)
        items[:] = [item for item in items if item not in once]


@pytest.fixture
def client() -> Iterator[Client]:
    """A cluster of two workers with a dashboard."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="session", autouse=True)
def rehearsals() -> Iterator[None]:
    """Processes that read files first are forked here, not started: see `rehearsing`."""
    with rehearsing.server(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "_run", rehearsing.run)
        yield
