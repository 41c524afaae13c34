from __future__ import annotations

import contextlib
import math
import tempfile
import tracemalloc
import unittest
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.commands import encoded_rows, encoded_unit, matrix_blocks
from moe_weights.commands.encoded_unit import EncodedUnit, encoded_nbytes
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.resolve import codes_of_parts, decode_parts
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import WorkUnit
from tests.support.encoded_forms import FP8, FUSED, EncodedForm, every_form
from tests.support.work_units import plan_matrix

FORMS = every_form()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def whole(tensor: StoredTensor, root: Path, turn: Callable[..., np.ndarray]) -> np.ndarray:
    parts = {
        role: view_raw(
            read_tensor_bytes(root, header, 0, header.nbytes), header.dtype_code
        ).reshape(header.shape)
        for role, header in tensor.parts
    }
    return np.ascontiguousarray(turn(tensor, parts)).reshape(-1)


def picked(flat: np.ndarray, view: MatrixView) -> np.ndarray:
    rows = np.arange(view.rows)[:, None] * view.row_stride
    return flat[view.offset + rows + np.arange(view.cols) * view.col_stride]


def unit_of(tensor: StoredTensor, *views: MatrixView, start: int = 0) -> WorkUnit:
    return WorkUnit(
        source=tensor,
        extracted_via="rule:r",
        layout_evidence="rule",
        start=start,
        stop=tensor.n_elements,
        matrices=tuple(plan_matrix(view.shifted(-start)) for view in views),
    )


def views_of(shape: tuple[int, ...]) -> dict[str, MatrixView]:
    """Return places of matrices, counted from the tensor's first element, in its last entry."""
    rows, cols = shape[-2:]
    origin = math.prod(shape[:-2]) * rows * cols - rows * cols

    def view(offset: int, *place: int) -> MatrixView:
        names = ("rows", "cols", "row_stride", "col_stride")
        return MatrixView(offset=origin + offset, **dict(zip(names, place, strict=True)))

    views = {
        "as it is": view(0, rows, cols, cols, 1),
        "lower half": view(rows // 2 * cols, rows - rows // 2, cols, cols, 1),
        "odd rows": view(cols, rows // 2, cols, 2 * cols, 1),
        "right half": view(cols // 2, rows, cols - cols // 2, cols, 1),
        "transposed": view(0, cols, rows, 1, cols),
        "right half, transposed": view(cols // 2, cols - cols // 2, rows, 1, cols),
        "odd columns, transposed": view(1, cols // 2, rows, 2, cols),
        "odd rows, transposed": view(cols, cols, rows // 2, 1, 2 * cols),
        "one row": view(cols, 1, cols, 7, 1),
        "one column": view(2, rows, 1, cols, 5),
        "every sixth row": view(0, -(-rows // 6), cols, 6 * cols, 1),
        "neither rows nor columns": view(0, 3, cols // 2 - 1, 2, 2),
    }
    if len(shape) > 2:
        views["rows of several entries"] = MatrixView(
            offset=cols, rows=shape[-3], cols=cols, row_stride=rows * cols, col_stride=1
        )
    return views


@contextlib.contextmanager
def small_pieces(piece: int, band: int) -> Iterator[None]:
    with (
        mock.patch.object(encoded_rows, "PIECE_NBYTES", piece),
        mock.patch.object(encoded_unit, "PIECE_NBYTES", piece),
        mock.patch.object(matrix_blocks, "BLOCK_NBYTES", piece),
        mock.patch.object(encoded_unit, "BAND_NBYTES", band),
    ):
        yield


class EveryForm(unittest.TestCase):
    def test_gives_the_elements_and_codes_of_every_kind_of_place_in_small_blocks(self) -> None:
        for label, form in FORMS.items():
            with folder() as root:
                tensor = form.write(root)
                values = whole(tensor, root, decode_parts)
                codes = whole(tensor, root, codes_of_parts)
                start = tensor.n_elements - math.prod(tensor.shape[-2:])
                for place, view in views_of(tensor.shape).items():
                    first = 0 if view.offset < start else start
                    unit = unit_of(tensor, view, start=first)
                    planned = unit.matrices[0].view
                    with self.subTest(form=label, place=place), small_pieces(1500, 4000):
                        source = EncodedUnit(unit, root, None)
                        for _pass in range(2):
                            blocks = [block.copy() for block in source.blocks(planned)]
                            self.assertTrue(all(block.ndim == 2 for block in blocks))
                            self.assertEqual({block.dtype.name for block in blocks}, {"float32"})
                            np.testing.assert_array_equal(
                                np.concatenate(blocks).view(np.uint32),
                                picked(values, view).view(np.uint32),
                            )
                        found = [block.reshape(-1).copy() for block in source.code_blocks(planned)]
                        np.testing.assert_array_equal(
                            np.sort(np.concatenate(found)), np.sort(picked(codes, view).reshape(-1))
                        )

    def test_gives_contiguous_blocks_of_bounded_size(self) -> None:
        with folder() as root:
            for label in ("fp8 stacked block", "mxfp4 along rows", "packed int packed zero points"):
                tensor = FORMS[label].write(root)
                for view in views_of(tensor.shape).values():
                    with small_pieces(1500, 4000):
                        blocks = list(EncodedUnit(unit_of(tensor, view), root, None).blocks(view))
                        self.assertEqual(sum(map(len, blocks)), view.rows)
                        for block in blocks:
                            self.assertTrue(block.flags.c_contiguous and block.flags.aligned)
                            self.assertLessEqual(block.nbytes, max(1500, view.cols * 4))


class Memory(unittest.TestCase):
    """What is allocated while blocks are read, by NumPy's own account."""

    def peak(self, source: EncodedUnit, unit: WorkUnit) -> int:
        tracemalloc.start()
        try:
            for matrix in unit.matrices:
                for _block in source.blocks(matrix.view):
                    pass
                for _codes in source.code_blocks(matrix.view):
                    pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def test_stays_below_what_the_plan_says(self) -> None:
        for label, form in FORMS.items():
            with folder() as root:
                tensor = form.write(root)
                for place, view in views_of(tensor.shape).items():
                    unit = unit_of(tensor, view)
                    with self.subTest(form=label, place=place), small_pieces(1500, 4000):
                        self.peak(EncodedUnit(unit, root, None), unit)  # kernels are compiled
                        taken = self.peak(EncodedUnit(unit, root, None), unit)
                        planned = encoded_nbytes(unit)
                    # Python's own objects weigh more than such small arrays: up to 21 kB here.
                    self.assertLess(taken, planned + 25_000)

    def test_is_that_of_the_packed_words_where_rows_are_their_columns(self) -> None:
        for label in ("gptq", "awq"):
            form = FORMS[label]
            arrays = {
                name: np.tile(array, (16, 32) if array.ndim > 1 else 16)
                for name, array in form.arrays.items()
            }
            rows, cols = 32 * form.shape[0], 16 * form.shape[1]
            large = replace(form, arrays=arrays, shape=(rows, cols), quantization={
                **form.quantization, "group_size": cols // 32
            })  # fmt: skip
            with folder() as root, small_pieces(2**16, 2**18):
                tensor = large.write(root)
                upper = MatrixView(
                    offset=0, rows=rows // 2, cols=cols, row_stride=cols, col_stride=1
                )
                unit = unit_of(tensor, upper, upper.shifted(rows // 2 * cols))
                self.peak(EncodedUnit(unit, root, None), unit)  # kernels are compiled
                taken = self.peak(EncodedUnit(unit, root, None), unit)
                self.assertGreater(taken, tensor.nbytes)
                self.assertLess(taken, encoded_nbytes(unit))
                self.assertLess(encoded_nbytes(unit), tensor.nbytes + 2**19)

    def test_does_not_grow_with_the_matrix(self) -> None:
        rng = np.random.default_rng(0)
        rows, cols = 1024, 4096
        form = EncodedForm(
            encoding="fp8",
            shape=(2, rows, cols),
            arrays={
                FUSED: rng.integers(0, 120, (2, rows, cols), dtype=np.uint8).view(
                    ml_dtypes.float8_e4m3fn
                ),
                f"{FUSED}_scale_inv": np.ones((2, 64, 256), dtype=np.float32),
            },
            quantization=FP8,
        )
        with folder() as root:
            tensor = form.write(root)
            gate = MatrixView(offset=0, rows=rows // 2, cols=cols, row_stride=cols, col_stride=1)
            up = gate.shifted(rows // 2 * cols)
            turned = MatrixView(offset=0, rows=cols, cols=rows, row_stride=1, col_stride=cols)
            for views, most in (((gate, up), 4), ((turned,), 18)):
                unit = unit_of(tensor, *views)
                self.peak(EncodedUnit(unit, root, None), unit)  # kernels are compiled
                taken = self.peak(EncodedUnit(unit, root, None), unit)
                self.assertLess(taken, most * 2**20)
                self.assertLess(taken, encoded_nbytes(unit))
                self.assertLess(encoded_nbytes(unit), 2 * most * 2**20)


class WhatIsPassedWhole(unittest.TestCase):
    def test_is_read_once_for_the_matrices_that_share_it(self) -> None:
        for label in ("gptq", "awq"):
            with self.subTest(form=label), folder() as root:
                tensor = FORMS[label].write(root)
                length = tensor.shape[1]
                upper = MatrixView(offset=0, rows=20, cols=length, row_stride=length, col_stride=1)
                halves = [upper, upper.shifted(20 * length)]
                source = EncodedUnit(unit_of(tensor, *halves), root, None)
                decoded = list(source.blocks(halves[0]))
                (root / "model.safetensors").unlink()
                decoded += list(source.blocks(halves[1]))
                codes = [block for half in halves for block in source.code_blocks(half)]
                self.assertEqual(np.concatenate(decoded).shape, tensor.shape)
                self.assertEqual(np.concatenate(codes).shape, tensor.shape)


class WhatCannotBeCut(unittest.TestCase):
    def test_is_decoded_once_for_the_matrices_that_share_it(self) -> None:
        with folder() as root:
            tensor = FORMS["packed int ragged packed zero points, 3 bits"].write(root)
            halves = [
                MatrixView(offset=offset, rows=10, cols=96, row_stride=96, col_stride=1)
                for offset in (0, 10 * 96)
            ]
            source = EncodedUnit(unit_of(tensor, *halves), root, None)
            decoded = list(source.blocks(halves[0]))
            (root / "model.safetensors").unlink()
            decoded += list(source.blocks(halves[1]))
            self.assertEqual(np.concatenate(decoded).shape, (20, 96))

    def test_is_cut_between_experts_where_its_parts_are(self) -> None:
        with folder() as root:
            tensor = FORMS["fp8 stacked block"].write(root)
            view = views_of(tensor.shape)["neither rows nor columns"]
            unit = unit_of(tensor, view)
            elements = math.prod(tensor.shape[1:])
            self.assertLess(encoded_nbytes(unit), 2 * 19 * elements)


if __name__ == "__main__":
    unittest.main()
