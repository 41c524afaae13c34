from __future__ import annotations

import unittest

import numpy as np

from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.simulate import as_quantised_dtype, not_simulated, simulate_scheme
from tests.support.matrices import DTYPES, normal_matrix

SCHEME = SchemeSpec(name="q", mode="affine", bits=4, group_size=32)
NUMBERS = {
    "w_rel_fro", "w_rel_max", "scale_mean", "scale_max", "bias_mean", "bias_max", "scale_abs_max",
}  # fmt: skip


class FailingBackend:
    name = "failing"

    def round_trip(self, matrix: np.ndarray, scheme: SchemeSpec) -> RoundTrip:
        raise RuntimeError(f"no {scheme.mode}")


class QuantisedDtype(unittest.TestCase):
    def test_is_the_stored_one_but_float32_for_float64(self) -> None:
        for name in ("bfloat16", "float16", "float32"):
            matrix = normal_matrix(2, 32, name)
            self.assertIs(as_quantised_dtype(matrix), matrix)
        wide = normal_matrix(2, 32, "float64")
        found = as_quantised_dtype(wide)
        self.assertEqual(found.dtype, np.float32)
        self.assertEqual(found.tolist(), wide.astype(np.float32).tolist())


class FailingScheme(unittest.TestCase):
    def test_gives_nulls_and_the_error_with_its_type(self) -> None:
        found = simulate_scheme(normal_matrix(2, 32), SCHEME, FailingBackend(), 1e-12)
        self.assertEqual(found, {**dict.fromkeys(NUMBERS), "error": "RuntimeError: no affine"})

    def test_that_overflows_in_the_backend_is_an_error_and_no_number(self) -> None:
        for dtype in ("bfloat16", "float32"):
            largest = np.float32(3.3895314e38)  # the largest bfloat16
            matrix = np.full((2, 32), largest).astype(DTYPES[dtype])
            matrix[:, ::2] *= -1
            found = simulate_scheme(matrix, SCHEME, MlxBackend("cpu"), 1e-12)
            self.assertEqual(
                found,
                {
                    **dict.fromkeys(NUMBERS),
                    "error": "OverflowError: a reconstructed weight is not finite; the weights are "
                    "near the limit",
                },
            )

    def test_gives_the_same_columns_as_a_success(self) -> None:
        success = simulate_scheme(normal_matrix(2, 32), SCHEME, MlxBackend("cpu"), 1e-12)
        self.assertEqual(set(success), NUMBERS | {"error"})
        self.assertEqual(set(not_simulated("Cause: text")), NUMBERS | {"error"})
        self.assertIsNone(success["error"])
        self.assertEqual(not_simulated("Cause: text")["error"], "Cause: text")

    def test_leaves_plain_python_numbers(self) -> None:
        found = simulate_scheme(normal_matrix(2, 32), SCHEME, MlxBackend("cpu"), 1e-12)
        self.assertEqual({type(found[name]) for name in NUMBERS}, {float})
