"""Conversions under random kills, each continued with the same command until it is done.

    PYTHONPATH=.:tests python tests/soak/kills.py --conversions 100 --seed 1

Each store is compared byte by byte with that of an undisturbed run, and that one with scipy. Every
conversion has a seed of its own, which is printed, so that it can be repeated alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from engine import convert
from faults import (
    CUTS,
    contents,
    disturb,
    failpoint,
    finish,
    group,
    leftovers,
    make_source,
    run_cluster,
    start,
    wait_for,
)
from oracle import assert_converted

KINDS = ["worker", "worker", "driver", "driver", "SIGTERM", "SIGINT", "SIGSTOP"]
SLOW = "block report: opened=sleep:0.02;region report: opened=sleep:0.02"
EXPECTED_CODES = {-15, -9, 0, 9, 130}
"""Ended by a SIGTERM that it did not listen for yet, killed, done, workers lost, interrupted."""
MOST_RUNS = 20


def main() -> None:
    """Run the soak; exits with an error at the first store that differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversions", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "source.h5ad")
        matrix = make_source(source)
        convert(source, Path(name, "undisturbed.zarr"), **CUTS)
        assert_converted(Path(name, "undisturbed.zarr"), matrix)
        expected = contents(Path(name, "undisturbed.zarr"))
        for seed in range(options.seed, options.seed + options.conversions):
            target = Path(name, f"{seed}.zarr")
            kinds = soak(source, target, random.Random(seed))
            counts.update(kinds)
            if contents(target) != expected or leftovers(target):
                sys.exit(f"seed {seed}: the store differs, or something is left: {kinds}")
            print(f"seed {seed}: {' '.join(kinds)}", flush=True)
    total = sum(counts.values())
    print(f"{options.conversions} conversions, {total} runs and disturbances: {dict(counts)}")


def soak(source: Path, target: Path, dice: random.Random) -> list[str]:
    """One conversion, disturbed and continued until it is done; what happened."""
    happened = []
    for _ in range(MOST_RUNS):
        process = start(
            run_cluster, source, target, {"worker_ttl_seconds": 5.0}, environment=failpoint(SLOW)
        )
        # Later runs are left alone more and more often, so that there is an end.
        for _ in range(dice.choice([1, 1, 2]) if dice.random() > 0.1 * len(happened) else 0):
            time.sleep(dice.random() * 2.5)
            kind = dice.choice(KINDS)
            disturb(process, dice, kind)
            happened.append(kind)
        code = finish(process, 180)
        for stopped in group(process.pid or 0):  # it cannot see that its driver is gone
            with suppress(psutil.Error):
                stopped.resume()
        wait_for(lambda leader=process.pid: not group(leader or 0), 60)
        happened.append(f"ended:{code}")
        if code not in EXPECTED_CODES and not (code == 4 and target.exists()):
            message = target.with_name("message")
            sys.exit(f"{target}: {happened} {message.read_text() if message.exists() else ''}")
        if target.exists() and not leftovers(target):
            return happened
    sys.exit(f"{target}: not done after {MOST_RUNS} runs: {happened}")


if __name__ == "__main__":
    main()
