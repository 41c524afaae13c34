"""Who measures: threads of this process, processes of this machine, or a Dask cluster.

All three are `concurrent.futures.Executor`s; what differs is how they are opened, stopped, and
replaced when a worker has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias

from moe_weights.commands import work
from moe_weights.commands.parts import code_digest
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.errors import MoeWeightsError, UsageError, WorkerError
from moe_weights.extract.work_unit import WorkUnit

ExecutorKind: TypeAlias = Literal["threads", "processes", "dask"]
EXECUTOR_KINDS: tuple[ExecutorKind, ...] = ("threads", "processes", "dask")

# A thread that comes back from a kernel asks for the interpreter; by default it waits up to 5 ms
# for one that is between two kernels, which is longer than a kernel takes.
_SWITCH_INTERVAL_S = 0.0005
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
            pool = stack.enter_context(_open_dask(n_workers, scheduler))
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
        with _without_interrupts():  # processes that start here are never interrupted
            return self._executor.submit(run_units, batch, settings)

    def renew(self) -> None:
        """Start new processes in place of a broken pool."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._open()

    def stop(self) -> None:
        """Let processes stop at their next block, and wait for it."""
        self._stopping.set()
        self._executor.shutdown(cancel_futures=True)

    def _open(self) -> Executor:
        return ProcessPoolExecutor(
            self.n_workers,
            mp_context=_SPAWN,
            initializer=_begin_process,
            initargs=(self._stopping,),
        )


class DaskWorkers:
    """Workers of a Dask cluster; the scheduler gives a dead worker's batches to others."""

    def __init__(self, client: Any, scheduler_error: type[BaseException]) -> None:
        """Use a cluster.

        Args:
            client: A `distributed.Client`.
            scheduler_error: What a future raises when workers died too often.
        """
        self._client = client
        self._executor = client.get_executor(pure=False)  # a batch that failed is measured anew
        self._code = code_digest()
        self._scheduler_error = scheduler_error

    @property
    def died(self) -> tuple[type[BaseException], ...]:
        """The scheduler's own patience is at its end."""
        return (self._scheduler_error,)

    @property
    def n_workers(self) -> int:
        """Threads of all workers at present."""
        return max(1, sum(int(count) for count in self._client.nthreads().values()))

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        """Have a batch measured."""
        future: Future[UnitResult] = self._executor.submit(
            run_units_as, self._code, tuple(batch), settings
        )
        return future

    def renew(self) -> None:
        """Do nothing: the cluster is somebody else's."""

    def stop(self) -> None:
        """Take back what was not measured yet."""
        self._executor.shutdown(wait=False)


def run_units_as(code: str, batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
    """Measure a batch on another machine, if that has the same code.

    Raises:
        WorkerError: it has not; its numbers could differ.
    """
    if _own_code() != code:
        raise WorkerError(
            "a worker has another version of moe-weights than this machine; install the same one "
            "on all workers, restart them, and run the same command again"
        )
    return run_units(batch, settings)


@lru_cache(maxsize=1)
def _own_code() -> str:
    return code_digest()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back from this thread; processes that are started meanwhile inherit that."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


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


@contextlib.contextmanager
def _open_dask(n_workers: int, scheduler: str | None) -> Iterator[DaskWorkers]:
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            f"--executor dask needs the package distributed ({error}); install it with: "
            "pip install 'moe-weights[dask]'"
        ) from error
    package: Any = distributed  # its functions have no types
    # It chooses a level of its own when it is imported: INFO, whatever the person asked for.
    logging.getLogger("distributed").setLevel(logging.getLogger().level)
    with contextlib.ExitStack() as stack:
        where: Any = scheduler
        if scheduler is None:
            where = stack.enter_context(
                package.LocalCluster(
                    n_workers=n_workers, threads_per_worker=1, dashboard_address=":0"
                )
            )
        try:
            client = stack.enter_context(package.Client(where, timeout="10s"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot reach the Dask scheduler at {scheduler}: {error}; start it with `dask "
                "scheduler` and give its address as --scheduler tcp://HOST:8786"
            ) from error
        try:
            yield DaskWorkers(client, package.KilledWorker)
        except (OSError, CancelledError) as error:
            if isinstance(error, MoeWeightsError):  # the cluster has nothing to do with it
                raise
            raise WorkerError(
                f"the Dask scheduler at {client.scheduler.address} was lost ({error}); start it "
                "again, then run the same command again: finished parts are kept"
            ) from error
