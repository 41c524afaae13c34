from __future__ import annotations

import itertools
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.commands import matrix_blocks
from moe_weights.commands.matrix_blocks import PlainUnit, contiguous_blocks, is_row_by_row
from moe_weights.errors import CheckpointError
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.measure.scratch import Scratch
from tests.support.matrices import DTYPES
from tests.support.runs import temporary_folder
from tests.support.work_units import make_unit, plan_matrix, row_major, write_headers

# Constants so small that every way of reading is walked by matrices of a few elements.
WAYS: dict[str, dict[str, int]] = {
    "shared": {},
    "shared, in small blocks": {"BLOCK_NBYTES": 48},
    "gathered": {"SHARED_NBYTES": 0},
    "gathered in small blocks": {"SHARED_NBYTES": 0, "BLOCK_NBYTES": 48},
    "gathered, gaps skipped": {"SHARED_NBYTES": 0, "BLOCK_NBYTES": 48, "_SKIP_NBYTES": 0},
    "gathered in bands": {"SHARED_NBYTES": 0, "BLOCK_NBYTES": 48, "BAND_NBYTES": 64},
    "gathered row by row": {"SHARED_NBYTES": 0, "BLOCK_NBYTES": 1, "BAND_NBYTES": 1},
    "bands, gaps skipped": {
        "SHARED_NBYTES": 0,
        "BLOCK_NBYTES": 48,
        "BAND_NBYTES": 64,
        "_SKIP_NBYTES": 8,
    },
}


def constants(changes: Mapping[str, int]) -> Any:
    return mock.patch.multiple(matrix_blocks, **changes) if changes else mock.MagicMock()


class BlocksCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def unit(self, stored: np.ndarray, *views: MatrixView, start: int = 0) -> WorkUnit:
        header = write_headers(self.root, {"t": stored})[0]
        return make_unit(header, [plan_matrix(view) for view in views], start)

    def read(self, source: PlainUnit, view: MatrixView, dtype: np.dtype[Any]) -> np.ndarray:
        """Put a matrix together; every block must be fit for a kernel."""
        rows = []
        for block in source.blocks(view):
            self.assertTrue(block.flags.c_contiguous and block.flags.aligned)
            self.assertEqual((block.dtype, block.shape[1]), (dtype, view.cols))
            limit = max(matrix_blocks.BLOCK_NBYTES, view.cols * dtype.itemsize)
            self.assertLessEqual(block.nbytes, limit)
            rows.append(block.copy())  # the next one may be read over it
        return np.concatenate(rows)

    def assert_reads(self, unit: WorkUnit, expected: Mapping[MatrixView, np.ndarray]) -> None:
        """Read every matrix of a unit twice, in every way, from a source that stays open."""
        for name, changes in WAYS.items():
            with self.subTest(way=name), constants(changes):
                source = PlainUnit(unit, self.root, None, Scratch())
                for view, matrix in (*expected.items(), *expected.items()):
                    found = self.read(source, view, matrix.dtype)
                    self.assertEqual(found.shape, matrix.shape)
                    self.assertEqual(found.tobytes(), np.ascontiguousarray(matrix).tobytes(), view)


class EveryOrderOfAxes(BlocksCase):
    def test_gives_numpys_transpose(self) -> None:
        for dtype in (DTYPES["bfloat16"], DTYPES["float64"]):
            stored = np.arange(2 * 3 * 5 * 4).astype(dtype).reshape(2, 3, 5, 4)
            strides = [stride // stored.itemsize for stride in stored.strides]
            for axes in itertools.permutations(range(4)):
                bank = stored.transpose(axes)
                expected = {
                    MatrixView(
                        offset=layer * strides[axes[0]] + expert * strides[axes[1]],
                        rows=bank.shape[2],
                        cols=bank.shape[3],
                        row_stride=strides[axes[2]],
                        col_stride=strides[axes[3]],
                    ): bank[layer, expert]
                    for layer, expert in ((0, 0), (bank.shape[0] - 1, bank.shape[1] - 1))
                }
                self.assert_reads(self.unit(stored, *expected), expected)


class Slices(BlocksCase):
    def test_of_halves_and_interleaved_rows_and_columns_are_numpys(self) -> None:
        stored = np.arange(96, dtype=np.float32).reshape(12, 8)
        slices = {
            "all": (stored, (0, 12, 8, 8, 1)),
            "lower half": (stored[6:], (48, 6, 8, 8, 1)),
            "left half": (stored[:, :4], (0, 12, 4, 8, 1)),
            "right half, turned": (stored[:, 4:].T, (4, 4, 12, 1, 8)),
            "even rows": (stored[::2], (0, 6, 8, 16, 1)),
            "odd rows": (stored[1::2], (8, 6, 8, 16, 1)),
            "odd columns": (stored[:, 1::2], (1, 12, 4, 8, 2)),
            "odd columns, turned": (stored[:, 1::2].T, (1, 4, 12, 2, 8)),
            "a row": (stored[3:4], (24, 1, 8, 8, 1)),
            "a column": (stored[:, 2:3], (2, 12, 1, 8, 1)),
            "a column as a row": (stored[:, 2:3].T, (2, 1, 12, 1, 8)),
            "the last element": (stored[11:, 7:], (95, 1, 1, 8, 1)),
        }
        for name, (matrix, (offset, rows, cols, row_stride, col_stride)) in slices.items():
            view = MatrixView(
                offset=offset, rows=rows, cols=cols, row_stride=row_stride, col_stride=col_stride
            )
            with self.subTest(name=name):
                self.assert_reads(self.unit(stored, view), {view: matrix})

    def test_of_a_unit_count_from_its_first_element(self) -> None:
        stored = np.arange(60, dtype=np.float16).reshape(3, 4, 5)
        views = {
            row_major(4, 5): stored[1],
            MatrixView(offset=20, rows=5, cols=4, row_stride=1, col_stride=5): stored[2].T,
        }
        self.assert_reads(self.unit(stored, *views, start=20), views)

    def test_of_random_lattices_are_numpys(self) -> None:
        draw = np.random.default_rng(4)
        for _case in range(60):
            shape = draw.integers(1, 6, 4)
            stored = np.arange(shape.prod(), dtype=np.float32).reshape(shape)
            axes = draw.permutation(4)
            turned = stored.transpose(axes)
            first, second = (int(draw.integers(n)) for n in turned.shape[:2])
            row, col = (int(draw.integers(n)) for n in turned.shape[2:])
            row_step, col_step = (int(step) for step in draw.integers(1, 4, 2))
            matrix = turned[first, second, row::row_step, col::col_step]
            view = MatrixView(
                offset=int(matrix[0, 0]),
                rows=matrix.shape[0],
                cols=matrix.shape[1],
                row_stride=turned.strides[2] // 4 * row_step,
                col_stride=turned.strides[3] // 4 * col_step,
            )
            self.assert_reads(self.unit(stored, view), {view: matrix})


class WaysOfReading(BlocksCase):
    """Which way is taken for which matrix, with constants as they are."""

    def ways(self, unit: WorkUnit, view: MatrixView) -> list[str]:
        walked = []
        methods = ("_stream", "_gather_rows", "_gather_columns", "_read_shared")
        with mock.patch.multiple(
            PlainUnit,
            **{
                name: mock.Mock(side_effect=lambda *_, name=name: walked.append(name) or iter(()))
                for name in methods[:3]
            },
        ):
            list(PlainUnit(unit, self.root, None, Scratch()).blocks(view))
        return walked

    def test_depends_on_how_the_matrix_lies(self) -> None:
        stored = np.zeros((4, 6), dtype=np.float32)
        by_rows = MatrixView(offset=0, rows=2, cols=6, row_stride=12, col_stride=1)
        by_columns = MatrixView(offset=0, rows=6, cols=4, row_stride=1, col_stride=6)
        for view, way in (
            (row_major(4, 6), ["_stream"]),
            (by_rows, []),  # read once for all matrices of the unit
            (by_columns, []),
        ):
            self.assertEqual(self.ways(self.unit(stored, view), view), way)
        with mock.patch.object(matrix_blocks, "SHARED_NBYTES", stored.nbytes - 1):
            for view, way in ((by_rows, "_gather_rows"), (by_columns, "_gather_columns")):
                self.assertEqual(self.ways(self.unit(stored, view), view), [way])

    def test_reads_a_small_woven_unit_once_for_all_its_matrices(self) -> None:
        stored = np.arange(48, dtype=np.float32).reshape(6, 8)
        views = [
            MatrixView(offset=offset, rows=3, cols=8, row_stride=16, col_stride=1)
            for offset in (0, 8)
        ]
        source = PlainUnit(self.unit(stored, *views), self.root, None, Scratch())
        with mock.patch.object(
            matrix_blocks, "open_tensor", wraps=matrix_blocks.open_tensor
        ) as opened:
            for first, view in enumerate((*views, *views)):
                found = self.read(source, view, stored.dtype)
                self.assertEqual(found.tolist(), stored[first % 2 :: 2].tolist())
        self.assertEqual(opened.call_count, 1)

    def test_skips_long_gaps_and_reads_over_short_ones(self) -> None:
        wide = np.arange(3 * 20_000, dtype=np.float32).reshape(3, 20_000)
        view = MatrixView(offset=5, rows=3, cols=7, row_stride=20_000, col_stride=1)
        unit = self.unit(wide, view)
        for skip, n_bytes in ((8192, 3 * 7 * 4), (10**6, (2 * 20_000 + 7) * 4)):
            read: list[int] = []

            def note(_stored: Any, _start: int, target: memoryview, read: Any = read) -> None:
                read.append(target.nbytes)

            with (
                mock.patch.multiple(matrix_blocks, SHARED_NBYTES=0, _SKIP_NBYTES=skip),
                mock.patch.object(matrix_blocks.TensorBytes, "read_into", note),
            ):
                list(PlainUnit(unit, self.root, None, Scratch()).blocks(view))
            self.assertEqual(sum(read), n_bytes)


class RowByRow(unittest.TestCase):
    def test_means_without_gaps(self) -> None:
        self.assertTrue(is_row_by_row(row_major(3, 4)))
        self.assertTrue(
            is_row_by_row(MatrixView(offset=9, rows=1, cols=4, row_stride=100, col_stride=1))
        )
        for row_stride, col_stride in ((5, 1), (1, 3), (8, 2)):
            view = MatrixView(
                offset=0, rows=3, cols=4, row_stride=row_stride, col_stride=col_stride
            )
            self.assertFalse(is_row_by_row(view))


class Refusals(BlocksCase):
    def test_of_matrices_that_reach_beyond_the_tensor(self) -> None:
        stored = np.arange(12, dtype=np.float64)
        turned = MatrixView(offset=1, rows=4, cols=3, row_stride=1, col_stride=4)
        for view in (row_major(3, 4, 1), row_major(2, 4, -1), row_major(13, 1), turned):
            unit = self.unit(stored, view)
            for name, changes in WAYS.items():
                with self.subTest(view=view, way=name), constants(changes):
                    source = PlainUnit(unit, self.root, None, Scratch())
                    with self.assertRaisesRegex(ValueError, "not lie within"):
                        list(source.blocks(view))

    def test_of_elements_in_memory_name_the_place(self) -> None:
        for view in (row_major(3, 4, 1), row_major(2, 4, -1)):
            with self.assertRaises(ValueError) as caught:
                list(contiguous_blocks(np.arange(12.0), view))
            self.assertEqual(str(caught.exception), f"{view} does not lie within 12 elements")

    def test_of_a_shard_that_was_cut_short(self) -> None:
        view = MatrixView(offset=0, rows=6, cols=8, row_stride=1, col_stride=6)
        unit = self.unit(np.zeros((8, 6), dtype=np.float32), view)
        path = self.root / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        for name, changes in WAYS.items():
            with self.subTest(way=name), constants(changes), self.assertRaises(CheckpointError):
                list(PlainUnit(unit, self.root, None, Scratch()).blocks(view))


class DeflatedMembers(BlocksCase):
    def test_are_read_as_any_other(self) -> None:
        stored = np.arange(600, dtype=np.float32).reshape(20, 30)
        np.savez_compressed(self.root / "m.npz", t=stored)
        (header,) = read_npz_headers(self.root / "m.npz", "m.npz")
        turned = MatrixView(offset=0, rows=30, cols=20, row_stride=1, col_stride=30)
        self.assert_reads(
            make_unit(header, [plan_matrix(row_major(20, 30)), plan_matrix(turned)]),
            {row_major(20, 30): stored, turned: stored.T},
        )

    def test_leave_nothing_behind(self) -> None:
        np.savez_compressed(self.root / "m.npz", t=np.zeros((2, 3)))
        (header,) = read_npz_headers(self.root / "m.npz", "m.npz")
        scratch: Path = self.root / "scratch"
        scratch.mkdir()
        view = row_major(2, 3)
        unit = make_unit(header, [plan_matrix(view)])
        list(PlainUnit(unit, self.root, scratch, Scratch()).blocks(view))
        self.assertEqual(list(scratch.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
