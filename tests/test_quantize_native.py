"""Native kernels against MLX itself and against a slow twin, bit for bit."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_weights.decode.scale_codes import decode_e4m3
from moe_weights.quantize.check_matrices import check_matrices
from moe_weights.quantize.error import ErrorSums, NonFiniteWeights
from moe_weights.quantize.mlx_backend import PIECE_WEIGHTS, MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.self_check import describe_difference
from tests.support.matrices import DTYPES, assert_close, normal_matrix
from tests.support.quantizers import EVERY_SCHEME, slow_numbers, slow_quantise

NATIVE = NativeBackend()
MLX = MlxBackend("cpu")
DTYPE_NAMES = ("bfloat16", "float16", "float32")


def scheme(mode: str, bits: int, group_size: int) -> SchemeSpec:
    return SchemeSpec(name="s", mode=mode, bits=bits, group_size=group_size)


def twin(matrix: np.ndarray, one: SchemeSpec) -> RoundTrip:
    found = slow_quantise(matrix, one.mode, one.bits, one.group_size)
    if one.mode == "affine":
        assert found.biases is not None
        scales, biases = found.scales.astype(np.float64), found.biases.astype(np.float64)
        return RoundTrip(found.values, scales, biases, found.codes)
    exponents = found.scales.astype(np.float64) - 127
    with np.errstate(over="ignore"):  # float32, as MLX reads them: 2**128 is infinite
        powers = np.exp2(exponents).astype(np.float32).astype(np.float64)
    real = decode_e4m3(found.scales) if one.mode == "nvfp4" else powers
    return RoundTrip(found.values, real, None, found.codes, found.scales)


class EverySchemeAndDtype(unittest.TestCase):
    def test_equals_mlx_and_the_twin_on_matrices_that_are_hard_to_follow_on(self) -> None:
        for dtype in DTYPE_NAMES:
            for mode, bits, size in EVERY_SCHEME:
                one = scheme(mode, bits, size)
                for name, matrix in check_matrices(one, DTYPES[dtype]):
                    with self.subTest(dtype=dtype, mode=mode, bits=bits, size=size, matrix=name):
                        ours = NATIVE.round_trip(matrix, one)
                        self.assertEqual(describe_difference(MLX.round_trip(matrix, one), ours), "")
                        self.assertEqual(describe_difference(twin(matrix, one), ours), "")

    def test_equals_the_twin_whatever_the_largest_weight_of_a_group_is(self) -> None:
        draw = np.random.default_rng(3)
        for dtype in ("bfloat16", "float16"):
            stop = 0x7F80 if dtype == "bfloat16" else 0x7C00
            largest = np.arange(stop, dtype=np.uint16).view(DTYPES[dtype])[:, None]
            share = draw.uniform(-1, 1, (stop, 32)).astype(np.float32)
            matrix = (share * largest.astype(np.float32)).astype(DTYPES[dtype])
            matrix[:, :1] = matrix[:, 16:17] = largest
            for mode, bits, size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
                one = scheme(mode, bits, size)
                difference = describe_difference(twin(matrix, one), NATIVE.round_trip(matrix, one))
                self.assertEqual(difference, "", f"{dtype} {mode}")

    def test_equals_mlx_around_every_power_of_two_in_float32(self) -> None:
        exponents = np.arange(-149, 126)[:, None]
        draw = np.random.default_rng(4)
        for mode, bits, size, top in (("mxfp4", 4, 32, 6.0), ("mxfp8", 8, 32, 448.0)):
            largest = np.minimum(top * np.exp2(exponents.astype(np.float64)), 3e38)
            for ulps in (-1, 0, 1):
                heads = (largest.astype(np.float32).view(np.int32) + ulps).view(np.float32)
                matrix = (draw.uniform(-1, 1, (len(heads), 32)) * heads).astype(np.float32)
                matrix[:, :1] = heads
                one = scheme(mode, bits, size)
                ours = NATIVE.round_trip(matrix, one)
                difference = describe_difference(MLX.round_trip(matrix, one), ours)
                self.assertEqual(difference, "", f"{mode} {ulps}")

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPE_NAMES), st.sampled_from(EVERY_SCHEME))
    def test_equals_mlx_on_random_bit_patterns(
        self, seed: int, dtype: str, case: tuple[str, int, int]
    ) -> None:
        draw = np.random.default_rng(seed)
        stored = DTYPES[dtype]
        rows, groups = int(draw.integers(1, 6)), int(draw.integers(1, 20))
        rows += rows * groups % 2  # MLX packs nvfp4 two groups at a time
        raw = draw.integers(0, 256, (rows, groups * case[2] * stored.itemsize), dtype=np.uint8)
        matrix = raw.view(stored)
        matrix = np.where(np.isfinite(matrix.astype(np.float32)), matrix, stored.type(0))
        one = scheme(*case)
        theirs, ours = MLX.round_trip(matrix, one), NATIVE.round_trip(matrix, one)
        self.assertEqual(describe_difference(theirs, ours), "")


class SumsOfErrors(unittest.TestCase):
    def test_are_those_of_slow_loops_over_the_round_trip_of_mlx(self) -> None:
        for dtype in DTYPE_NAMES:
            matrix = normal_matrix(5, 1152, dtype, sigma=0.02)
            matrix[1, :200] = 0
            matrix[2, 64:96] *= np.float32(300)
            for mode, bits, size in EVERY_SCHEME:
                one = scheme(mode, bits, size)
                sums = ErrorSums(one, matrix.dtype)
                NATIVE.add_errors(matrix, one, sums)
                back = MLX.round_trip(matrix, one)
                values = (back.values, back.scales, back.biases)
                expected = slow_numbers(matrix, *values, mode=mode, bits=bits)
                with self.subTest(dtype=dtype, mode=mode, bits=bits, size=size):
                    assert_close(self, sums.cells(0.0), expected)

    def test_are_the_same_bits_for_a_round_trip_of_mlx(self) -> None:
        for dtype in DTYPE_NAMES:
            for mode, bits, size in EVERY_SCHEME:
                one = scheme(mode, bits, size)
                for name, matrix in check_matrices(one, DTYPES[dtype]):
                    native, mlx = ErrorSums(one, matrix.dtype), ErrorSums(one, matrix.dtype)
                    NATIVE.add_errors(matrix, one, native)
                    mlx.add_restored(matrix, MLX.round_trip(matrix, one))
                    with self.subTest(dtype=dtype, mode=mode, bits=bits, size=size, matrix=name):
                        np.testing.assert_array_equal(native.places, mlx.places)

    def test_are_the_same_bits_for_a_row_that_mlx_takes_in_pieces(self) -> None:
        one, columns = scheme("affine", 4, 32), PIECE_WEIGHTS + 1024
        matrix = np.random.default_rng(8).normal(size=(2, columns)).astype(np.float32)
        theirs, ours = ErrorSums(one, matrix.dtype), ErrorSums(one, matrix.dtype)
        MLX.add_errors(matrix, one, theirs)
        NATIVE.add_errors(matrix, one, ours)
        self.assertEqual(theirs.cells(0.0), ours.cells(0.0))

    def test_are_the_same_bits_where_a_scale_is_beyond_all_powers_of_two(self) -> None:
        # 2**-126 / 6 rounds up to 2**-128, whose code is -1: MLX keeps its low byte, 255.
        for dtype in ("bfloat16", "float32"):
            matrix = np.full((2, 32), 2.0**-126).astype(DTYPES[dtype])
            one = scheme("mxfp4", 4, 32)
            found = [backend.round_trip(matrix, one) for backend in (NATIVE, MLX)]
            for result in found:
                assert result.scale_codes is not None
                self.assertEqual(result.scale_codes.tolist(), [[255], [255]])
                self.assertEqual(result.scales.tolist(), [[np.inf], [np.inf]])
            native, mlx = ErrorSums(one, matrix.dtype), ErrorSums(one, matrix.dtype)
            NATIVE.add_errors(matrix, one, native)
            mlx.add_restored(matrix, found[1])
            np.testing.assert_array_equal(native.places, mlx.places)
            with self.assertRaises(OverflowError):
                native.cells(0.0)

    def test_count_equal_weights_without_a_scale_that_come_back_exactly(self) -> None:
        for size, expected in ((3.3e31, 0), (3.5e31, 1)):
            matrix = np.full((1, 32), size, dtype=np.float32)
            numbers = self.numbers(matrix, "affine", 4, 32)
            self.assertEqual((numbers["w_rel_fro"], numbers["n_zero_scale"]), (0.0, expected))

    def test_count_weights_that_were_clipped_and_groups_without_a_scale(self) -> None:
        matrix = np.zeros((1, 64), dtype=np.float32)
        matrix[0, 16:20] = [4000.0, -4000.0, 3136.0, 3137.0]  # 7 * 448 = 3136
        matrix[0, 32] = 2.0**-9 * 6 / 2  # half of the least scale: rounds to zero, the even one
        numbers = self.numbers(matrix, "nvfp4", 4, 16)
        self.assertEqual((numbers["n_saturated"], numbers["n_zero_scale"]), (4, 3))
        matrix = np.array([[-1.06, 1.0, 0.96] + [0.0] * 29], dtype=np.float32)
        # -1.06 / (2.06 / 15) = -7.72 takes 8 steps of 0.1325: 15 of them end at 0.9275.
        self.assertEqual(self.numbers(matrix, "affine", 4, 32)["n_saturated"], 1)

    @staticmethod
    def numbers(matrix: np.ndarray, *case: Any) -> dict[str, Any]:
        one = scheme(*case)
        sums = ErrorSums(one, matrix.dtype)
        NATIVE.add_errors(matrix, one, sums)
        return sums.cells(0.0)


class Refusals(unittest.TestCase):
    def test_are_those_of_mlx_in_its_words(self) -> None:
        matrix = normal_matrix(2, 96)
        cases = [
            ("affine", 4, 16), ("affine", 4, 256), ("affine", 7, 32), ("affine", 0, 32),
            ("affine", 9, 32), ("affine", 4, 64), ("affine", 4, -32), ("mxfp4", 4, 16),
            ("mxfp4", 8, 32), ("mxfp8", 4, 32), ("nvfp4", 4, 32), ("nvfp4", 8, 16), ("zz", 4, 32),
            ("zz", 4, 7), ("nvfp4", 4, 7),
        ]  # fmt: skip
        for case in cases:
            with self.assertRaises(ValueError) as theirs:
                MLX.round_trip(matrix, scheme(*case))
            for call in (NATIVE.round_trip, self.add_errors):
                with self.subTest(case=case), self.assertRaises(ValueError) as ours:
                    call(matrix, scheme(*case))
                self.assertEqual(str(ours.exception), str(theirs.exception))

    def test_of_an_odd_number_of_groups_of_nvfp4_are_those_of_mlx(self) -> None:
        for rows, cols in ((1, 16), (5, 208)):
            for backend in (MLX, NATIVE):
                with self.assertRaises(ValueError) as caught:
                    backend.round_trip(normal_matrix(rows, cols), scheme("nvfp4", 4, 16))
                size = rows * cols
                self.assertEqual(
                    str(caught.exception),
                    f"[reshape] Cannot reshape array of size {size} into shape ({size // 32},4,8).",
                )
        for rows, cols in ((2, 16), (1, 32)):
            matrix = normal_matrix(rows, cols)
            theirs, ours = (
                backend.round_trip(matrix, scheme("nvfp4", 4, 16)) for backend in (MLX, NATIVE)
            )
            self.assertEqual(describe_difference(theirs, ours), "")

    def test_of_groups_without_columns_do_not_end_the_process(self) -> None:
        expected = {
            "affine": "[quantize] The requested group size 0 is not supported. "
            "The supported group sizes are 32, 64, and 128.",
            "mxfp4": "[quantize] mxfp4 quantization requires group size 32 but got 0.",
            "nvfp4": "[quantize] nvfp4 quantization requires group size 16 but got 0.",
        }
        for mode, text in expected.items():
            for backend in (NATIVE, MLX):
                with self.assertRaises(ValueError) as caught:
                    backend.round_trip(normal_matrix(2, 32), scheme(mode, 4, 0))
                self.assertEqual(str(caught.exception), text)

    def test_of_weights_that_are_not_finite_name_the_cause(self) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            matrix = normal_matrix(2, 32, "bfloat16")
            matrix[1, 3] = bad
            with self.assertRaises(NonFiniteWeights) as caught:
                NATIVE.round_trip(matrix, scheme("affine", 4, 32))
            self.assertEqual(str(caught.exception), "a weight is NaN or infinite")

    def test_of_other_arrays_say_what_is_taken(self) -> None:
        cases = {
            "[quantize] Only real floating types can be quantized but w has type int32.":
                np.zeros((2, 32), dtype=np.int32),
            "[quantize] The matrix to be quantized must have 2 dimensions but it has 1.":
                np.zeros(32, dtype=np.float32),
        }  # fmt: skip
        for text, matrix in cases.items():
            with self.assertRaises(ValueError) as caught:
                NATIVE.round_trip(matrix, scheme("affine", 4, 32))
            self.assertEqual(str(caught.exception), text)

    @staticmethod
    def add_errors(matrix: np.ndarray, one: SchemeSpec) -> None:
        NATIVE.add_errors(matrix, one, ErrorSums(one, matrix.dtype))


class Input(unittest.TestCase):
    def test_may_be_read_only_strided_and_of_any_height(self) -> None:
        wide = normal_matrix(7, 256, "bfloat16")
        one = scheme("nvfp4", 4, 16)
        whole = NATIVE.round_trip(wide, one)
        strided = NATIVE.round_trip(wide[::2, 64:192], one)
        np.testing.assert_array_equal(strided.values, whole.values[::2, 64:192])
        wide.flags.writeable = False
        np.testing.assert_array_equal(NATIVE.round_trip(wide[3:4], one).values, whole.values[3:4])
