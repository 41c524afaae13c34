"""The authority is MLX itself, called directly by the reference."""

from __future__ import annotations

import math
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.errors import BackendUnavailableError
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.round_trip import SchemeSpec
from tests.support.matrices import DTYPES, assert_close, matrix_of, normal_matrix
from tests.support.matrices import simulate as simulate_matrix
from tests.support.reference import mlx_statistics

EPS = 1e-12
AFFINE = [("affine", bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
OTHERS = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
DTYPE_NAMES = ("bfloat16", "float16", "float32")


def scheme(mode: str, bits: int, group_size: int) -> SchemeSpec:
    return SchemeSpec(name="s", mode=mode, bits=bits, group_size=group_size)


def simulate(matrix: np.ndarray, mode: str, bits: int, group_size: int) -> dict[str, Any]:
    return simulate_matrix(matrix, scheme(mode, bits, group_size), MlxBackend("cpu"), EPS)


class EveryMode(unittest.TestCase):
    def test_gives_the_numbers_of_mlx_in_every_dtype(self) -> None:
        for dtype in DTYPE_NAMES:
            matrix = normal_matrix(5, 256, dtype, sigma=0.02)
            for mode, bits, size in AFFINE + OTHERS:
                expected = mlx_statistics(matrix, mode=mode, bits=bits, group_size=size, eps=EPS)
                with self.subTest(dtype=dtype, mode=mode, bits=bits, group_size=size):
                    found = simulate(matrix, mode, bits, size)
                    self.assertIsNone(found["error"])
                    assert_close(self, found, expected)

    def test_gives_the_numbers_of_mlx_for_lopsided_and_constant_groups(self) -> None:
        rows = np.tile(np.linspace(-3.0, 1.0, 64), (2, 1))
        rows[1] = 0.75
        for dtype in DTYPE_NAMES:
            matrix = rows.astype(DTYPES[dtype])
            for mode, bits, size in [("affine", 4, 64), *OTHERS]:
                expected = mlx_statistics(matrix, mode=mode, bits=bits, group_size=size, eps=EPS)
                assert_close(self, simulate(matrix, mode, bits, size), expected)

    def test_gives_no_error_and_real_scales_for_a_zero_matrix(self) -> None:
        for dtype in DTYPE_NAMES:
            zero = matrix_of([[0.0] * 128] * 2, dtype)
            for mode, bits, size in AFFINE + OTHERS:
                found = simulate(zero, mode, bits, size)
                with self.subTest(dtype=dtype, mode=mode, bits=bits):
                    self.assertIsNone(found["error"])
                    self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.0, 0.0])
                    self.assertIsNotNone(found["scale_mean"])

    def test_has_the_known_errors_of_normal_weights_at_any_scale(self) -> None:
        # The range of 32 normal weights is 4.194 in the quadratic mean; steps divide it, and
        # rounding errs by 1 / sqrt(12) of a step. The last is the distance to the E2M1 grid under
        # the least power of two that holds a group's largest weight, over 200 000 drawn groups.
        step = 4.194 / math.sqrt(12)
        known = {
            ("affine", 4, 32): step / 15,
            ("affine", 8, 32): step / 255,
            ("mxfp4", 4, 32): 0.1154,
        }
        for sigma in (1.0, 1e-4):
            matrix = normal_matrix(512, 1024, sigma=sigma, seed=0)
            for (mode, bits, size), expected in known.items():
                found = simulate(matrix, mode, bits, size)["w_rel_fro"]
                with self.subTest(sigma=sigma, mode=mode, bits=bits):
                    self.assertAlmostEqual(found, expected, delta=0.01 * expected)

    def test_can_be_used_by_many_threads(self) -> None:
        matrix = normal_matrix(16, 128, "bfloat16")
        backend = MlxBackend("cpu")
        schemes = [scheme(*values) for values in OTHERS] * 8
        serial = [simulate_matrix(matrix, one, backend, EPS) for one in schemes]
        with ThreadPoolExecutor(4) as pool:
            threaded = list(pool.map(lambda s: simulate_matrix(matrix, s, backend, EPS), schemes))
        self.assertEqual(threaded, serial)


class Formulas(unittest.TestCase):
    def test_of_affine_reaches_the_larger_edge_with_a_negative_scale(self) -> None:
        group = np.array([[3.0, -1.0] + [0.5] * 30], dtype=np.float32)
        result = MlxBackend("cpu").round_trip(group, scheme("affine", 4, 32))
        step = -(3.0 - -1.0) / 15
        scale = 3.0 / round(3.0 / step)
        codes = np.clip(np.rint((group.astype(np.float64) - 3.0) / scale), 0, 15)
        self.assertAlmostEqual(result.scales[0, 0], scale, delta=1e-7)
        assert result.biases is not None
        self.assertEqual(result.biases[0, 0], 3.0)
        np.testing.assert_allclose(result.values, codes * scale + 3.0, atol=1e-6)

    def test_of_mxfp4_takes_a_power_of_two_and_eight_magnitudes(self) -> None:
        group = np.array([[6.0, 0.4, -1.1, 2.2] + [0.0] * 28], dtype=np.float32)
        result = MlxBackend("cpu").round_trip(group, scheme("mxfp4", 4, 32))
        self.assertEqual(result.scales.tolist(), [[1.0]])
        self.assertEqual(result.values[0, :4].tolist(), [6.0, 0.5, -1.0, 2.0])
        self.assertIsNone(result.biases)


class Refusals(unittest.TestCase):
    def test_of_mlx_become_the_rows_error(self) -> None:
        matrix = normal_matrix(2, 64)
        cases = {
            ("affine", 4, 16): "The requested group size 16 is not supported",
            ("affine", 7, 32): "The requested number of bits 7 is not supported",
            ("mxfp4", 4, 64): "mxfp4 quantization requires group size 32 but got 64.",
            ("affine", 4, 128): "divisible by the quantization group size 128",
            ("zz", 4, 32): "Invalid quantization mode 'zz'",
        }
        for (mode, bits, size), text in cases.items():
            found = simulate(matrix, mode, bits, size)
            error = found.pop("error")
            with self.subTest(mode=mode, bits=bits, size=size):
                self.assertTrue(str(error).startswith("ValueError: "), error)
                self.assertIn(text, str(error))
                self.assertEqual(set(found.values()), {None})

    def test_of_an_unknown_device_tells_the_key_to_change(self) -> None:
        with (
            mock.patch("mlx.core.is_available", return_value=False),
            self.assertRaises(BackendUnavailableError) as caught,
        ):
            MlxBackend("gpu")
        self.assertEqual(
            str(caught.exception),
            'mlx has no gpu device on this machine; set $.mlx.device to "cpu"',
        )

    def test_without_mlx_are_an_import_error(self) -> None:
        with (
            mock.patch.dict(sys.modules, {"mlx": None, "mlx.core": None}),
            self.assertRaises(ImportError),
        ):
            MlxBackend("cpu")
