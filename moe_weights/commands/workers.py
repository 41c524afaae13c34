"""Who measures: threads of this process, processes of this machine, or a Dask cluster.

The last one has its own file. All three are `concurrent.futures.Executor`s; what differs is how
they are opened, stopped, and replaced when a worker has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import Any, Literal, Protocol, TypeAlias

from moe_weights.commands import work
from moe_weights.commands.dask_workers import open_dask
from moe_weights.commands.held_interrupts import held_interrupts
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.extract.work_unit import WorkUnit

ExecutorKind: TypeAlias = Literal["threads", "processes", "dask"]
EXECUTOR_KINDS: tuple[ExecutorKind, ...] = ("threads", "processes", "dask")

# A thread that comes back from a kernel asks for the interpreter; by default it waits up to 5 ms
# for one that is between two kernels, which is longer than a kernel takes.
_SWITCH_INTERVAL_S = 0.0005
# Longer than a block takes.
_STOP_WITHIN_S = 1.0
_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold


class WorkerPool(Protocol):
    """Workers that measure batches."""

    @property
    def n_workers(self) -> int:
        """How many batches are measured at a time."""

    @property
    def died(self) -> tuple[type[BaseException], ...]:
        """What a future raises when its worker died and `renew` makes new ones."""

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        """Have a batch measured."""

    def renew(self) -> None:
        """Replace workers that died."""

    def look_after(self) -> str | None:
        """Look whether anybody is there; called now and then while nothing is finished.

        Returns:
            What a person has to know, said once; None most of the time.

        Raises:
            WorkerError: nobody has been there for too long.
        """

    def stop(self) -> None:
        """End soon; batches that were begun are left undone."""


@contextlib.contextmanager
def open_workers(
    kind: ExecutorKind, n_workers: int, scheduler: str | None = None
) -> Iterator[WorkerPool]:
    """Open a pool of workers, and close it at the end.

    Args:
        kind: Which kind.
        n_workers: How many; a cluster that exists already has its own number.
        scheduler: Address of a Dask scheduler, for kind "dask"; None starts a local cluster.

    Raises:
        UsageError: Dask is not installed, or its scheduler cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        pool: WorkerPool
        if kind == "dask":
            pool = stack.enter_context(open_dask(n_workers, scheduler))
        elif kind == "processes":
            pool = ProcessWorkers(n_workers)
        else:
            pool = ThreadWorkers(n_workers)
        try:
            yield pool
        finally:
            pool.stop()


class ThreadWorkers:
    """Threads; kernels run beside each other because they release the GIL."""

    died: tuple[type[BaseException], ...] = ()

    def __init__(self, n_workers: int) -> None:
        """Start with idle threads."""
        self.n_workers = n_workers
        self._executor = ThreadPoolExecutor(n_workers)
        self._switch_interval = sys.getswitchinterval()
        if n_workers > 1:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        """Have a batch measured."""
        return self._executor.submit(run_units, batch, settings)

    def renew(self) -> None:
        """Do nothing: threads live as long as their process."""

    def look_after(self) -> str | None:
        """Return nothing: threads are always there."""
        return None

    def stop(self) -> None:
        """Let threads stop at their next block, and wait for it."""
        work.STOPPING.set()
        self._executor.shutdown(cancel_futures=True)
        work.STOPPING.clear()
        sys.setswitchinterval(self._switch_interval)


class _SharedFlag:
    """A flag in memory that processes share; without a lock that a killed one could take along."""

    def __init__(self) -> None:
        self._value: Any = _SPAWN.RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        self._value.value = True

    def clear(self) -> None:
        self._value.value = False

    def is_set(self) -> bool:
        return bool(self._value.value)


class ProcessWorkers:
    """Processes of this machine; one that dies takes the pool with it, so that is made anew."""

    died: tuple[type[BaseException], ...] = (BrokenExecutor,)

    def __init__(self, n_workers: int) -> None:
        """Start with idle processes."""
        self.n_workers = n_workers
        self._stopping = _SharedFlag()
        self._executor = self._open()

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        """Have a batch measured."""
        with held_interrupts():  # processes that start here are never interrupted
            return self._executor.submit(run_units, batch, settings)

    def renew(self) -> None:
        """Start new processes in place of a broken pool."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._open()

    def look_after(self) -> str | None:
        """Return nothing: the pool itself tells that a process has died."""
        return None

    def stop(self) -> None:
        """Let processes stop at their next block; what still loads its packages is ended."""
        self._stopping.set()
        # Python 3.14 has a method for what follows; its predecessors forget them in `shutdown`.
        processes = list((self._executor._processes or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _STOP_WITHIN_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()  # it holds nothing that anybody needs

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.n_workers,
            mp_context=_SPAWN,
            initializer=_begin_process,
            initargs=(self._stopping,),
        )


def _begin_process(stopping: _SharedFlag) -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work.STOPPING = stopping
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
