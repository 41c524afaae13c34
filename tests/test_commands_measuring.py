from __future__ import annotations

import contextlib
import io
import random
import time
import unittest
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.commands import measuring, parts, workers
from moe_weights.commands.console import Reporter
from moe_weights.commands.measuring import measure_units
from moe_weights.commands.parts import Fingerprint, PartStore
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.commands.workers import ThreadWorkers, WorkerPool, open_workers
from moe_weights.errors import CheckpointError, WorkerError
from moe_weights.extract.work_unit import WorkUnit
from tests.support.matrices import normal_matrix
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    bank_units,
    content_of,
    make_work_settings,
    write_headers,
)
from tests.support.worker_pools import MortalPool

OWN = Fingerprint(checkpoint="c", config="f", code="v")


class MeasuringCase(unittest.TestCase):
    """Twelve units of three banks; every unit is a batch and every batch a part of its own."""

    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        tensors = {
            f"bank{number}": np.stack(
                [normal_matrix(8, 64, "bfloat16", seed=10 * number + e) for e in range(4)]
            )
            for number in range(3)
        }
        self.units = bank_units(write_headers(self.folder, tensors))
        self.settings = make_work_settings(
            self.folder, schemes=[AFFINE_Q4, MXFP4], sample_per_matrix=50
        )
        self.enterContext(mock.patch.object(parts, "_MAX_UNITS_PER_BATCH", 1))
        self.enterContext(mock.patch.object(parts, "_SECONDS_BETWEEN_PARTS", 0.0))
        self.store = PartStore(self.folder / "parts", OWN)
        self.expected = content_of([run_units([unit], self.settings) for unit in self.units])
        self.said = ""

    def measure_in(self, pool: WorkerPool) -> list[object]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                results = measure_units(
                    self.units,
                    self.settings,
                    store=self.store,
                    pool=pool,
                    reporter=Reporter(quiet=False),
                    progress_every_files=1,
                )
            finally:
                self.said = out.getvalue()
        return content_of(results)

    def measure(self, n_workers: int = 1) -> list[object]:
        with open_workers("threads", n_workers) as pool:
            return self.measure_in(pool)

    def committed(self) -> list[int]:
        return sorted(PartStore(self.folder / "parts", OWN).load())

    @contextlib.contextmanager
    def running(self, failing: dict[int, BaseException] | None = None) -> Iterator[list[int]]:
        """Note which units are measured, and fail on some."""
        measured: list[int] = []

        def run(batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
            number = self.units.index(batch[0])
            measured.append(number)
            if failing and number in failing:
                raise failing[number]
            return run_units(batch, settings)

        with mock.patch.object(workers, "run_units", run):
            yield measured


class NobodyThere(MeasuringCase):
    def test_is_looked_for_and_told_while_nothing_is_finished(self) -> None:
        news = iter(["the cluster has no workers", None])
        looked = []

        class Dawdling(ThreadWorkers):
            def look_after(self) -> str | None:
                looked.append(1)
                return next(news, None)

        def run(batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
            while len(looked) < 3:
                time.sleep(0.001)
            return run_units(batch, settings)

        pool = Dawdling(1)
        self.addCleanup(pool.stop)
        with (
            mock.patch.object(workers, "run_units", run),
            mock.patch.object(measuring, "_LOOK_EVERY_S", 0.001),
        ):
            self.assertEqual(self.measure_in(pool), self.expected)
        self.assertEqual(self.said.count("[warn] the cluster has no workers\n"), 1)


class AnyNumberOfWorkers(MeasuringCase):
    def test_gives_the_results_of_a_plain_loop_in_plan_order(self) -> None:
        for n_workers in (1, 4):
            with self.subTest(workers=n_workers):
                self.assertEqual(self.measure(n_workers), self.expected)
                self.store.discard()

    def test_may_finish_in_any_order(self) -> None:
        drawn = random.Random(3)

        def run(batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
            time.sleep(drawn.random() / 50)
            return run_units(batch, settings)

        for _time in range(3):
            with mock.patch.object(workers, "run_units", run):
                self.assertEqual(self.measure(7), self.expected)
            self.store.discard()

    def test_commits_every_batch(self) -> None:
        self.measure(4)
        self.assertEqual(self.committed(), list(range(12)))

    def test_is_handed_no_more_than_it_can_begin_soon(self) -> None:
        most = 0

        class CountingPool(ThreadWorkers):
            def submit(pool, batch: Any, settings: Any) -> Any:  # noqa: N805
                nonlocal most
                future = super().submit(batch, settings)
                most = max(most, pool._executor._work_queue.qsize())
                return future

        pool = CountingPool(2)
        self.assertEqual(self.measure_in(pool), self.expected)
        pool.stop()
        self.assertLessEqual(most, 6)


class NoUnits(MeasuringCase):
    def test_give_no_results(self) -> None:
        self.units = []
        self.assertEqual(self.measure(), [])
        self.assertFalse((self.folder / "parts").exists())


class Resuming(MeasuringCase):
    def part(self, number: int) -> Any:
        return self.folder / "parts" / OWN.folder / f"part-{number:07d}.json"

    def test_takes_exactly_what_is_whole_and_measures_the_rest(self) -> None:
        self.measure()
        self.part(0).unlink()
        content = self.part(3).read_bytes()
        self.part(3).write_bytes(content[: len(content) // 2])
        self.part(5).write_bytes(b"")
        with self.running() as measured:
            self.assertEqual(self.measure(), self.expected)
        self.assertEqual(sorted(measured), [0, 3, 5])
        self.assertEqual(
            self.said, "[collect] resumed: 9 of 12 parts taken from an unfinished run\n"
        )
        self.assertEqual(self.part(3).read_bytes(), content)

    def test_of_a_finished_run_measures_nothing(self) -> None:
        self.measure()
        with self.running() as measured:
            self.assertEqual(self.measure(), self.expected)
        self.assertEqual(measured, [])

    def test_says_nothing_when_there_is_nothing_to_take(self) -> None:
        self.measure()
        self.assertNotIn("resumed", self.said)


class EndingEarly(MeasuringCase):
    def test_by_a_failing_unit_keeps_what_was_finished(self) -> None:
        with (
            self.running({6: CheckpointError("unit 6 cannot be read")}),
            self.assertRaises(CheckpointError) as caught,
        ):
            self.measure()
        self.assertEqual(str(caught.exception), "unit 6 cannot be read")
        finished = self.committed()
        self.assertNotIn(6, finished)
        self.assertEqual(finished[:6], list(range(6)))
        with self.running() as measured:
            self.assertEqual(self.measure(), self.expected)
        self.assertEqual(sorted([*measured, *finished]), list(range(12)))

    def test_by_the_keyboard_writes_what_is_not_on_disk_yet(self) -> None:
        waits = []

        def wait(*arguments: Any, **options: Any) -> Any:
            waits.append(1)
            if len(waits) > 4:
                raise KeyboardInterrupt
            return measuring_wait(*arguments, **options)

        measuring_wait = measuring.wait
        with (
            mock.patch.object(parts, "_SECONDS_BETWEEN_PARTS", 1e9),
            mock.patch.object(measuring, "wait", wait),
            self.assertRaises(KeyboardInterrupt),
        ):
            self.measure()
        finished = self.committed()
        self.assertGreaterEqual(len(finished), 4)
        with self.running() as measured:
            self.assertEqual(self.measure(), self.expected)
        self.assertEqual(sorted([*measured, *finished]), list(range(12)))


class DyingWorkers(MeasuringCase):
    def test_have_their_batches_measured_again(self) -> None:
        pool = MortalPool(dying=lambda number: number in {3, 9})
        self.assertEqual(self.measure_in(pool), self.expected)
        self.assertEqual(pool.n_renewed, 2)
        self.assertEqual(self.committed(), list(range(12)))
        self.assertEqual(self.said.count("[warn] a worker died; "), 2)
        self.assertRegex(
            self.said, r"\[warn\] a worker died; \d batches are measured again by new ones\n"
        )

    def test_may_be_found_dead_at_the_next_submission(self) -> None:
        pool = MortalPool(refusing=lambda number: number in {0, 5})
        self.assertEqual(self.measure_in(pool), self.expected)
        self.assertEqual(pool.n_renewed, 2)

    def test_are_given_up_after_four_times(self) -> None:
        pool = MortalPool(n_workers=1)
        pool.dying = lambda number: self.units[7] in pool.submitted[number]
        with self.assertRaises(WorkerError) as caught:
            self.measure_in(pool)
        self.assertRegex(
            str(caught.exception),
            r"^workers died 4 times while they measured bank\d of model\.safetensors or its "
            r"neighbours \(BrokenExecutor: a process ended abruptly\); the machine may lack "
            r"memory: use fewer --workers or a smaller --max-memory, then run the same command "
            r"again: finished parts are kept$",
        )
        finished = self.committed()
        self.assertEqual(finished[:5], list(range(5)))
        self.assertNotIn(7, finished)
        self.assertEqual(self.measure(), self.expected)


if __name__ == "__main__":
    unittest.main()
