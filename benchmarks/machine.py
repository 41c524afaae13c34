"""What this machine gives at most: how fast memory is copied, what a second core adds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

import numpy as np

# Measures one block, which stays in the cache, again and again for a second once it is told to.
_KERNELS_ALONE = """
import sys, time
import ml_dtypes, numpy as np
from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.settings import MeasureSettings

settings = MeasureSettings(
    eps=1e-12, percentiles_abs=(), group_outlier_percentile=95.0, group_sizes=(32, 64),
    sample_per_matrix=None, sample_seed=0,
)
block = np.random.default_rng(0).normal(size=(128, 1024)).astype(ml_dtypes.bfloat16)
meter = MatrixMeter(128 * 10**5, 1024, block.dtype, settings)
meter.add(block)
print("ready", flush=True)
sys.stdin.readline()
n_blocks, started = 0, time.perf_counter()
while time.perf_counter() < started + 1:
    meter.add(block)
    n_blocks += 1
print(n_blocks / (time.perf_counter() - started))
"""


def memcpy_rate() -> float:
    """Return how many bytes a second one thread copies."""
    source = np.ones(2**27, dtype=np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return source.nbytes / min(seconds)


def scaling_without_sharing(n_processes: int) -> float:
    """Return how many times the work of one process several do that share nothing but the machine.

    They run the kernels of matrix_stats on data in their own caches: no program can do better.
    """
    (alone,) = _kernel_rates(1)
    return sum(_kernel_rates(n_processes)) / alone


def _kernel_rates(n_processes: int) -> list[float]:
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _KERNELS_ALONE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(n_processes)
        ]
        for process in running:  # they would not run side by side if one still loaded its packages
            assert process.stdout is not None
            process.stdout.readline()
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return [float(process.communicate()[0]) for process in running]
