"""Runs of the command in processes of their own that can be killed at any moment.

A server that has loaded everything once forks a child for each run, so that a dozen kills take
seconds. In the child every batch is one matrix and every result is written at once.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_LOADED = [
    "moe_weights.cli",
    "moe_weights.commands.collect_data",
    "pandas",
    "pyarrow.parquet",
    "tests.support.killed_runs",
]


def start_run(run_dir: Path, *arguments: object) -> BaseProcess:
    """Begin `moe-weights collect-data`; its exit code is that of the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_LOADED)
    process = context.Process(target=_run, args=(str(run_dir), [str(a) for a in arguments]))
    process.start()
    return process


def run_and_kill(run_dir: Path, after_seconds: float, *arguments: object) -> int | None:
    """Begin a run and kill it; return its exit code if it was faster, else None."""
    process = start_run(run_dir, *arguments)
    process.join(after_seconds)
    if process.exitcode is None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return None if process.exitcode == -signal.SIGKILL else process.exitcode


def _run(run_dir: str, arguments: list[str]) -> None:
    from moe_weights.cli import main
    from moe_weights.commands import parts
    from moe_weights.commands.work import UnitResult

    commit = parts.PartStore.commit

    def slow_commit(store: Any, number: int, result: UnitResult) -> None:
        time.sleep(0.004)
        commit(store, number, result)

    parts.PartStore.commit = slow_commit  # type: ignore[method-assign]
    parts._SECONDS_BETWEEN_PARTS = 0.0
    parts._MAX_UNITS_PER_BATCH = 1
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(["collect-data", "--run-dir", run_dir, *arguments])
    raise SystemExit(code)
