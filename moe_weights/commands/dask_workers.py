"""Who measures on other machines: the workers of a Dask cluster.

The scheduler gives the batches of a dead worker to others. What is left to see here is that nobody
is there any more, or that the scheduler itself is gone.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from functools import lru_cache
from typing import Any

from moe_weights.commands.held_interrupts import held_interrupts
from moe_weights.commands.parts import code_digest
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.errors import CheckpointError, MoeWeightsError, UsageError, WorkerError
from moe_weights.extract.work_unit import WorkUnit

# A worker's own nanny starts it again within seconds, a person within a minute.
_PATIENCE_S = 60.0
_ON_ALL_WORKERS = "on all workers, restart them, and run the same command again"
_OTHER_CODE = (
    f"another version of moe-weights than this machine; install the same one {_ON_ALL_WORKERS}"
)
# For `eval`, which every worker has: a function of this package would not even arrive.
_CODE = f"__import__({code_digest.__module__!r}, fromlist=['*']).{code_digest.__name__}()"


class DaskWorkers:
    """Workers of a Dask cluster."""

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
        self._alone_since: float | None = None

    @property
    def died(self) -> tuple[type[BaseException], ...]:
        """The scheduler's own patience is at its end."""
        return (self._scheduler_error,)

    @property
    def n_workers(self) -> int:
        """Threads of all workers at present."""
        return max(1, self._n_threads())

    def submit(self, batch: Sequence[WorkUnit], settings: WorkSettings) -> Future[UnitResult]:
        """Have a batch measured."""
        future: Future[UnitResult] = self._executor.submit(
            run_units_as, self._code, tuple(batch), settings
        )
        return future

    def renew(self) -> None:
        """Do nothing: the cluster is somebody else's."""

    def look_after(self) -> str | None:
        """See `WorkerPool`."""
        if self._n_threads():
            return None
        now, address = time.monotonic(), self._client.scheduler.address
        if self._alone_since is None:
            self._alone_since = now
            return (
                f"the Dask cluster at {address} has no workers; waiting {_PATIENCE_S:.0f} s for "
                f"one: dask worker {address}"
            )
        if now - self._alone_since >= _PATIENCE_S:
            raise WorkerError(
                f"the Dask cluster at {address} has had no workers for {_PATIENCE_S:.0f} s; start "
                f"some with `dask worker {address}` where this machine's version of moe-weights is "
                "installed, then run the same command again: finished parts are kept"
            )
        return None

    def stop(self) -> None:
        """Take back what was not measured yet."""
        self._executor.shutdown(wait=False)

    def _n_threads(self) -> int:
        n_threads = sum(int(count) for count in self._client.nthreads().values())
        if n_threads:
            self._alone_since = None
        return n_threads


def run_units_as(code: str, batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
    """Measure a batch on another machine, if that has the same code.

    Raises:
        CheckpointError: it cannot read a shard.
        WorkerError: it has other code; its numbers could differ.
    """
    if _own_code() != code:
        raise WorkerError(f"the worker {socket.gethostname()} has {_OTHER_CODE}")
    try:
        return run_units(batch, settings)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (told by the worker {socket.gethostname()}, which needs the model below "
            f"{settings.root} as this machine does)"
        ) from error


@lru_cache(maxsize=1)
def _own_code() -> str:
    return code_digest()


def _refuse_other_code(client: Any) -> None:
    """Ask the workers that are there, as one without this package dies of the first batch.

    Raises:
        WorkerError: one of them cannot load this package, or has another version.
    """
    own = code_digest()
    for worker, code in sorted(client.run(eval, _CODE, on_error="return").items()):
        if isinstance(code, BaseException):
            raise WorkerError(
                f"the worker {worker} cannot load moe-weights ({code}); install this machine's "
                f"version {_ON_ALL_WORKERS}"
            )
        if code != own:
            raise WorkerError(f"the worker {worker} has {_OTHER_CODE}")


@contextlib.contextmanager
def open_dask(n_workers: int, scheduler: str | None) -> Iterator[DaskWorkers]:
    """Use a cluster, or make one of this machine's processes.

    Args:
        n_workers: How many processes; a cluster that exists already has its own number.
        scheduler: Its address; None starts a cluster.

    Raises:
        UsageError: Dask is not installed, or its scheduler cannot be reached.
        WorkerError: a worker has other code, or the scheduler was lost meanwhile.
    """
    try:
        import distributed
    except ImportError as error:
        raise UsageError(
            f"--executor dask needs the package distributed ({error}); install it with: "
            "pip install 'moe-weights[dask]'"
        ) from error
    package: Any = distributed  # its functions have no types
    level = _set_log_level()
    lost = (OSError, CancelledError, getattr(package.client, "ClosedClientError", OSError))
    with contextlib.ExitStack() as stack:
        where: Any = scheduler
        if scheduler is None:
            with held_interrupts():  # its processes have nothing to say about an interruption
                cluster = package.LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    dashboard_address=":0",
                    silence_logs=level,
                )
            where = stack.enter_context(cluster)
        try:
            client = stack.enter_context(package.Client(where, timeout="10s"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot reach the Dask scheduler at {scheduler}: {error}; start it with `dask "
                "scheduler` and give its address as --scheduler tcp://HOST:8786"
            ) from error
        try:
            _refuse_other_code(client)
            yield DaskWorkers(client, package.KilledWorker)
        except lost as error:
            if isinstance(error, MoeWeightsError):  # the cluster has nothing to do with it
                raise
            raise WorkerError(
                f"the Dask scheduler at {client.scheduler.address} was lost "
                f"({str(error) or type(error).__name__}); start it again, then run the same "
                "command again: finished parts are kept"
            ) from error


def _set_log_level() -> int:
    """Leave it to `--log-level` whether Dask tells what it does; return its level.

    It chooses levels of its own when it is imported, and its errors are tracebacks about
    connections, of which this command speaks in its own words.
    """
    asked = logging.getLogger().level
    level = asked if asked < logging.WARNING else logging.CRITICAL
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(level)
    return level
