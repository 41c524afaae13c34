from __future__ import annotations

import contextlib
import io
import unittest
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.commands import measuring, parts
from moe_weights.commands.console import Reporter
from moe_weights.commands.measuring import measure_units
from moe_weights.commands.parts import PartStore
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.errors import CheckpointError
from moe_weights.extract.work_unit import WorkUnit
from tests.support.matrices import normal_matrix
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    bank_units,
    make_work_settings,
    write_headers,
)


class MeasuringCase(unittest.TestCase):
    """Twelve units of three banks; every unit is a batch of its own."""

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
        self.store = PartStore(self.folder / "parts", "f")
        patch = mock.patch.object(parts, "TARGET_UNIT_BYTES", self.units[0].nbytes)
        patch.start()
        self.addCleanup(patch.stop)
        self.said = ""

    def measure(self, workers: int = 1, executor: Executor | None = None) -> UnitResult:
        out = io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            executor or ThreadPoolExecutor(workers) as pool,
        ):
            try:
                return measure_units(
                    self.units,
                    self.settings,
                    store=self.store,
                    executor=pool,
                    reporter=Reporter(quiet=False),
                    progress_every_files=1,
                )
            finally:
                self.said = out.getvalue()

    def committed(self) -> list[int]:
        return [number for number, unit in enumerate(self.units) if self.store.load(number, [unit])]

    @contextlib.contextmanager
    def recording(self, failing: Sequence[int] = ()) -> Any:
        """Note which units are measured, and fail on some."""
        measured: list[int] = []

        def run(batch: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
            numbers = [self.units.index(unit) for unit in batch]
            measured.extend(numbers)
            if set(numbers) & set(failing):
                raise CheckpointError(f"unit {numbers[0]} cannot be read")
            return run_units(batch, settings)

        with mock.patch.object(measuring, "run_units", run):
            yield measured


class AnyNumberOfWorkers(MeasuringCase):
    def test_gives_the_rows_of_a_plain_loop_in_plan_order(self) -> None:
        expected = run_units(self.units, self.settings)
        for workers in (1, 4):
            with self.subTest(workers=workers):
                self.assertEqual(self.measure(workers), expected)
                self.store.discard()

    def test_commits_every_batch(self) -> None:
        self.measure(4)
        self.assertEqual(self.committed(), list(range(12)))


class NoUnits(MeasuringCase):
    def test_give_no_rows(self) -> None:
        self.units = []
        self.assertEqual(self.measure(), UnitResult())


class Resuming(MeasuringCase):
    def test_takes_what_is_committed_and_measures_the_rest(self) -> None:
        expected = self.measure()
        for number in (0, 5, 11):
            part_path(self.folder, number).unlink()
        with self.recording() as measured:
            self.assertEqual(self.measure(), expected)
        self.assertEqual(sorted(measured), [0, 5, 11])
        self.assertEqual(
            self.said, "[collect] resumed: 9 of 12 parts taken from an unfinished run\n"
        )

    def test_measures_damaged_parts_again_and_mends_them(self) -> None:
        expected = self.measure()
        content = part_path(self.folder, 3).read_bytes()
        part_path(self.folder, 3).write_bytes(content[: len(content) // 2])
        part_path(self.folder, 4).write_bytes(b"")
        with self.recording() as measured:
            self.assertEqual(self.measure(4), expected)
        self.assertEqual(sorted(measured), [3, 4])
        self.assertEqual(part_path(self.folder, 3).read_bytes(), content)

    def test_says_nothing_when_there_is_nothing_to_take(self) -> None:
        self.measure()
        self.assertNotIn("resumed", self.said)

    def test_never_takes_parts_of_another_plan(self) -> None:
        self.measure()
        self.units.reverse()
        expected = run_units(self.units, self.settings)
        self.assertEqual(self.measure(), expected)


class FailingWorker(MeasuringCase):
    def test_ends_the_run_and_keeps_what_was_finished(self) -> None:
        with self.recording(failing=[6]), self.assertRaises(CheckpointError) as caught:
            self.measure()
        self.assertEqual(str(caught.exception), "unit 6 cannot be read")
        finished = self.committed()
        self.assertEqual(finished[:6], list(range(6)))
        self.assertNotIn(6, finished)
        with self.recording() as measured:
            self.assertEqual(self.measure(), run_units(self.units, self.settings))
        self.assertEqual(sorted([*measured, *finished]), list(range(12)))

    def test_keeps_results_that_nobody_had_looked_at(self) -> None:
        with (
            self.recording(failing=[0]),
            mock.patch.object(measuring, "as_completed", list),
            self.assertRaises(CheckpointError),
        ):
            self.measure(executor=EagerExecutor())
        self.assertEqual(self.committed(), list(range(1, 12)))


class EagerExecutor(ThreadPoolExecutor):
    """Every unit is finished before the first result is looked at."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(fn, *args, **kwargs)
        future.exception()
        return future


def part_path(folder: Path, number: int) -> Path:
    return folder / "parts" / "f" / f"part-{number:07d}.json"
