"""All units of a plan, spread over workers; finished batches are committed as they come."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from moe_weights.commands.console import ReadingProgress, Reporter
from moe_weights.commands.parts import PartStore, batch_units
from moe_weights.commands.work import UnitResult, WorkSettings
from moe_weights.commands.workers import WorkerPool
from moe_weights.errors import WorkerError
from moe_weights.extract.work_unit import WorkUnit

# Batches that wait beside each one that is measured, so that no worker has to.
_QUEUED_PER_WORKER = 2
# A batch that was being measured this often when a worker died is given up.
_MAX_ATTEMPTS = 4
# So long nothing may be finished before somebody looks whether the workers are still there.
_LOOK_EVERY_S = 5.0


def measure_units(
    units: Sequence[WorkUnit],
    settings: WorkSettings,
    *,
    store: PartStore,
    pool: WorkerPool,
    reporter: Reporter,
    progress_every_files: int,
) -> list[UnitResult]:
    """Measure every unit and return all results, in plan order whoever finished first.

    Args:
        units: The plan's units, in reading order.
        settings: What every unit is told.
        store: Where finished batches are committed, and taken from.
        pool: Who measures.
        reporter: Where progress is shown.
        progress_every_files: Cadence of plain progress lines, shards; 0 for none.

    Raises:
        CheckpointError: a shard cannot be read, or one has changed; what was committed stays.
        OutputError: a part cannot be written.
        WorkerError: a batch has killed several workers, or nobody is there to measure.
    """
    batches = batch_units(units)
    left_in_file = Counter(unit.source.header.file for unit in units)
    progress = ReadingProgress(
        reporter,
        total_bytes=sum(unit.nbytes for unit in units),
        total_files=len(left_in_file),
        every_files=progress_every_files,
    )

    def count(batch: Sequence[WorkUnit]) -> int:
        for unit in batch:
            left_in_file[unit.source.header.file] -= 1
        return sum(not left for left in left_in_file.values())

    results = {
        number: result
        for number, result in store.load().items()
        if number < len(batches) and len(result.constant) == _n_matrices(batches[number])
    }
    if results:
        reporter.say(
            "collect",
            f"resumed: {len(results)} of {len(batches)} parts taken from an unfinished run",
        )
    with progress:
        for number in results:
            count(batches[number])
            progress.take(sum(unit.nbytes for unit in batches[number]))
        loop = _Loop(batches, settings, pool, reporter)
        loop.waiting.extend(number for number in range(len(batches)) if number not in results)
        try:
            while loop.is_busy:
                for number, result in loop.step():
                    results[number] = result
                    store.commit(number, result)
                    batch = batches[number]
                    progress.advance(sum(unit.nbytes for unit in batch), count(batch))
        finally:
            store.flush()
    return [results[number] for number in range(len(batches))]


def _n_matrices(batch: Sequence[WorkUnit]) -> int:
    return sum(len(unit.matrices) for unit in batch)


class _Loop:
    """Batches that wait and batches that are being measured."""

    def __init__(
        self,
        batches: Sequence[Sequence[WorkUnit]],
        settings: WorkSettings,
        pool: WorkerPool,
        reporter: Reporter,
    ) -> None:
        self.waiting: deque[int] = deque()
        self._batches = batches
        self._settings = settings
        self._pool = pool
        self._reporter = reporter
        self._running: dict[Future[UnitResult], int] = {}
        self._attempts: Counter[int] = Counter()

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self._running)

    def step(self) -> Iterator[tuple[int, UnitResult]]:
        """Submit what there is room for, wait, and yield what was finished, by number."""
        limit = self._pool.n_workers * (1 + _QUEUED_PER_WORKER)
        try:
            while self.waiting and len(self._running) < limit:
                number = self.waiting[0]
                future = self._pool.submit(self._batches[number], self._settings)
                self._running[future] = self.waiting.popleft()
        except self._pool.died as error:
            self._replace_workers(error)
            return
        done, _running = wait(self._running, _LOOK_EVERY_S, return_when=FIRST_COMPLETED)
        if not done:
            news = self._pool.look_after()
            if news is not None:
                self._reporter.warn(f"[warn] {news}")
        for future in sorted(done, key=self._rank):
            try:
                result = future.result()
            except self._pool.died as error:
                self._replace_workers(error)
                return
            yield self._running.pop(future), result

    def _rank(self, future: Future[UnitResult]) -> tuple[bool, int]:
        """Finished batches first, so that a failure beside them does not lose them."""
        has_failed = future.cancelled() or future.exception() is not None
        return has_failed, self._running[future]

    def _replace_workers(self, error: BaseException) -> None:
        """Give everything that was being measured to new workers."""
        numbers = sorted(self._running.values())
        self._running.clear()
        self._attempts.update(numbers)
        worn = [number for number in numbers if self._attempts[number] >= _MAX_ATTEMPTS]
        if worn:
            unit = self._batches[worn[0]][0]
            raise WorkerError(
                f"workers died {_MAX_ATTEMPTS} times while they measured "
                f"{unit.source.header.name} of {unit.source.header.file} or its neighbours "
                f"({type(error).__name__}: {error}); the machine may lack memory: use fewer "
                "--workers or a smaller --max-memory, then run the same command again: finished "
                "parts are kept"
            ) from error
        self._reporter.warn(
            f"[warn] a worker died; {len(numbers)} batches are measured again by new ones"
        )
        self.waiting.extendleft(reversed(numbers))
        self._pool.renew()
