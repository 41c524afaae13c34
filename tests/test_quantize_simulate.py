from __future__ import annotations

import unittest
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_weights.columns import Cell
from moe_weights.quantize import mlx_backend
from moe_weights.quantize.error import NUMBER_COLUMNS, ErrorSums
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import QuantBackend, RoundTrip, SchemeSpec
from moe_weights.quantize.simulate import (
    SchemeMeter,
    as_quantised_dtype,
    not_simulated,
)
from tests.support.matrices import DTYPES, assert_close, normal_matrix, simulate
from tests.support.quantizers import EVERY_SCHEME

SCHEME = SchemeSpec(name="q", mode="affine", bits=4, group_size=32)
NUMBERS = {column.name for column in NUMBER_COLUMNS}
BACKENDS: tuple[QuantBackend, ...] = (MlxBackend("cpu"), NativeBackend())


class FailingBackend:
    """Fails on the second block."""

    name = "failing"

    def __init__(self) -> None:
        self.n_calls = 0

    def round_trip(self, matrix: np.ndarray, scheme: SchemeSpec) -> RoundTrip:
        raise NotImplementedError

    def add_errors(self, block: np.ndarray, scheme: SchemeSpec, sums: ErrorSums) -> None:
        self.n_calls += 1
        if self.n_calls == 2:
            raise RuntimeError(f"no {scheme.mode}")


def meter_blocks(
    matrix: np.ndarray, cuts: list[int], backend: QuantBackend, scheme: SchemeSpec = SCHEME
) -> dict[str, Cell]:
    rows, cols = matrix.shape
    meter = SchemeMeter(rows, cols, matrix.dtype, scheme, backend, 1e-12)
    for block in np.split(matrix, sorted(cuts)):
        meter.add(block)
    return meter.finish()


class QuantisedDtype(unittest.TestCase):
    def test_is_the_stored_one_but_float32_for_float64(self) -> None:
        for name in ("bfloat16", "float16", "float32"):
            matrix = normal_matrix(2, 32, name)
            self.assertIs(as_quantised_dtype(matrix), matrix)
        wide = normal_matrix(2, 32, "float64")
        found = as_quantised_dtype(wide)
        self.assertEqual(found.dtype, np.float32)
        self.assertEqual(found.tolist(), wide.astype(np.float32).tolist())


class Blocks(unittest.TestCase):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 23), max_size=8), st.sampled_from(EVERY_SCHEME))
    def test_of_any_height_give_the_same_numbers(
        self, cuts: list[int], case: tuple[str, int, int]
    ) -> None:
        scheme = SchemeSpec(name="s", mode=case[0], bits=case[1], group_size=case[2])
        matrix = normal_matrix(23, 256, "bfloat16", sigma=0.02)
        for backend in BACKENDS:
            whole = simulate(matrix, scheme, backend, 1e-12)
            self.assertIsNone(whole["error"])
            self.assertEqual(meter_blocks(matrix, cuts, backend, scheme), whole)

    def test_give_the_same_numbers_by_mlx_and_by_native_kernels(self) -> None:
        for dtype in ("bfloat16", "float16", "float32"):
            matrix = normal_matrix(9, 384, dtype)
            for mode, bits, size in EVERY_SCHEME:
                scheme = SchemeSpec(name="s", mode=mode, bits=bits, group_size=size)
                mlx, native = (simulate(matrix, scheme, one, 1e-12) for one in BACKENDS)
                with self.subTest(dtype=dtype, mode=mode, bits=bits, size=size):
                    self.assertEqual(mlx, native)

    def test_that_are_too_much_for_mlx_at_once_go_to_it_in_pieces(self) -> None:
        matrix = normal_matrix(5, 1024, "float16")
        expected = simulate(matrix, SCHEME, BACKENDS[0], 1e-12)
        for limit in (100, 1024, 2500):
            with mock.patch.object(mlx_backend, "PIECE_WEIGHTS", limit):
                found = simulate(matrix, SCHEME, BACKENDS[0], 1e-12)
                parts = meter_blocks(matrix, [1, 4], BACKENDS[0])
            self.assertEqual(found, parts)
            assert_close(self, found, expected, relative=1e-14)

    def test_with_an_odd_number_of_nvfp4_groups_are_fine_in_a_matrix_of_an_even_number(
        self,
    ) -> None:
        scheme = SchemeSpec(name="n", mode="nvfp4", bits=4, group_size=16)
        matrix = normal_matrix(6, 48, "bfloat16")
        found = [meter_blocks(matrix, cuts, one, scheme) for one in BACKENDS for cuts in ([], [1])]
        self.assertIsNone(found[0]["error"])
        self.assertEqual(found, [found[0]] * 4)
        for backend in BACKENDS:
            self.assertEqual(
                meter_blocks(matrix[:5], [2], backend, scheme)["error"],
                "ValueError: [reshape] Cannot reshape array of size 240 into shape (7,4,8).",
            )


class FailingScheme(unittest.TestCase):
    def test_gives_nulls_and_the_error_with_its_type_and_ignores_later_rows(self) -> None:
        backend = FailingBackend()
        found = meter_blocks(normal_matrix(8, 32), [2, 4, 6], backend)
        self.assertEqual(found, {**dict.fromkeys(NUMBERS), "error": "RuntimeError: no affine"})
        self.assertEqual(backend.n_calls, 2)

    def test_names_the_shape_of_the_matrix_and_not_of_the_block(self) -> None:
        for backend in BACKENDS:
            found = meter_blocks(normal_matrix(6, 48), [2], backend)
            self.assertEqual(
                found["error"],
                "ValueError: [quantize] The last dimension of the matrix needs to be divisible by "
                "the quantization group size 32. However the provided  matrix has shape (6,48)",
            )

    def test_that_overflows_in_the_backend_is_an_error_and_no_number(self) -> None:
        for dtype in ("bfloat16", "float32"):
            largest = np.float32(3.3895314e38)  # the largest bfloat16
            matrix = np.full((2, 32), largest).astype(DTYPES[dtype])
            matrix[:, ::2] *= -1
            for backend in BACKENDS:
                found = simulate(matrix, SCHEME, backend, 1e-12)
                self.assertEqual(
                    found,
                    {
                        **dict.fromkeys(NUMBERS),
                        "error": "OverflowError: a reconstructed weight is not finite: this scheme "
                        "has no scale for weights near the largest number of their type, or for a "
                        "group of denormals",
                    },
                )

    def test_of_weights_that_are_not_finite_names_them(self) -> None:
        matrix = normal_matrix(2, 32)
        matrix[0, 5] = np.inf
        for backend in BACKENDS:
            found = simulate(matrix, SCHEME, backend, 1e-12)
            self.assertEqual(found["error"], "NonFiniteWeights: a weight is NaN or infinite")

    def test_without_rows_is_an_error(self) -> None:
        for backend in BACKENDS:
            found = simulate(normal_matrix(0, 32), SCHEME, backend, 1e-12)
            self.assertEqual(found["error"], "ValueError: the matrix is empty")

    def test_gives_the_same_columns_as_a_success(self) -> None:
        for backend in BACKENDS:
            success = simulate(normal_matrix(2, 32), SCHEME, backend, 1e-12)
            self.assertEqual(set(success), NUMBERS | {"error"})
            self.assertIsNone(success["error"])
        self.assertEqual(set(not_simulated("Cause: text")), NUMBERS | {"error"})
        self.assertEqual(not_simulated("Cause: text")["error"], "Cause: text")

    def test_leaves_plain_python_numbers(self) -> None:
        for backend in BACKENDS:
            found = simulate(normal_matrix(2, 32), SCHEME, backend, 1e-12)
            self.assertEqual({type(found[name]) for name in NUMBERS}, {float, int})
            self.assertEqual({type(found[name]) for name in ("n_saturated", "n_zero_scale")}, {int})
