"""All units of a plan, spread over workers; finished batches are committed as they come.

The executor is the one seam: anything with `concurrent.futures.Executor`'s interface fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, Future, as_completed

from moe_weights.commands.console import ReadingProgress, Reporter
from moe_weights.commands.parts import PartStore, batch_units
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.extract.work_unit import WorkUnit


def measure_units(
    units: Sequence[WorkUnit],
    settings: WorkSettings,
    *,
    store: PartStore,
    executor: Executor,
    reporter: Reporter,
    progress_every_files: int,
) -> UnitResult:
    """Measure every unit and return all rows, in plan order whoever finished first.

    Args:
        units: The plan's units, in reading order.
        settings: What every unit is told.
        store: Where finished batches are committed, and taken from.
        executor: Runs the batches.
        reporter: Where progress is shown.
        progress_every_files: Cadence of plain progress lines, shards; 0 for none.

    Raises:
        CheckpointError: a shard cannot be read; what was finished stays committed.
        OutputError: a part cannot be written.
    """
    batches = batch_units(units)
    results: dict[int, UnitResult] = {}
    left_in_file = Counter(unit.source.header.file for unit in units)
    total_files = len(left_in_file)
    progress = ReadingProgress(
        reporter,
        total_bytes=sum(unit.nbytes for unit in units),
        total_files=total_files,
        every_files=progress_every_files,
    )

    def count(batch: Sequence[WorkUnit]) -> int:
        for unit in batch:
            left_in_file[unit.source.header.file] -= 1
        return sum(not left for left in left_in_file.values())

    with progress:
        for number, batch in enumerate(batches):
            part = store.load(number, batch)
            if part is not None:
                results[number] = part
                count(batch)
                progress.take(sum(unit.nbytes for unit in batch))
        if results:
            reporter.say(
                "collect",
                f"resumed: {len(results)} of {len(batches)} parts taken from an unfinished run",
            )
        futures = {
            executor.submit(run_units, batch, settings): number
            for number, batch in enumerate(batches)
            if number not in results
        }
        try:
            for future in as_completed(futures):
                number = futures[future]
                batch = batches[number]
                results[number] = future.result()
                store.commit(number, batch, results[number])
                progress.advance(sum(unit.nbytes for unit in batch), count(batch))
        finally:
            for future in futures:
                future.cancel()
            for future, number in futures.items():
                if number not in results and _has_result(future):
                    store.commit(number, batches[number], future.result())
    merged = UnitResult()
    for number in range(len(batches)):
        merged.extend(results[number])
    return merged


def _has_result(future: Future[UnitResult]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
