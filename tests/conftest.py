"""Hypothesis without deadlines: the first call of a kernel compiles it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "dask_convert", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("dask_convert")
