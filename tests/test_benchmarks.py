from __future__ import annotations

import importlib.util
import unittest
from types import ModuleType

import ml_dtypes
import numpy as np

from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.simulate import SchemeMeter
from tests.support.documents import load_script

SETTINGS = MeasureSettings(
    eps=1e-12,
    percentiles_abs=(),
    group_outlier_percentile=95.0,
    group_sizes=(32, 64),
    sample_per_matrix=None,
    sample_seed=0,
)


class WhatTheKernelsRace(unittest.TestCase):
    """A ratio says something only where both sides do the same work."""

    by_hand: ModuleType
    bench: ModuleType

    @classmethod
    def setUpClass(cls) -> None:
        if importlib.util.find_spec("mlx") is None:
            raise unittest.SkipTest("the other side of the race is mlx")
        cls.by_hand = load_script("benchmarks/numpy_statistics.py")
        cls.bench = load_script("benchmarks/run.py")

    def setUp(self) -> None:
        normal = np.random.default_rng(0).normal(scale=0.02, size=(96, 256))
        self.weights = normal.astype(ml_dtypes.bfloat16)

    def test_has_the_numbers_of_matrix_stats(self) -> None:
        meter = MatrixMeter(*self.weights.shape, self.weights.dtype, SETTINGS)
        meter.add(self.weights)
        ours = meter.finish().values
        theirs = self.by_hand.numpy_statistics(self.weights.view(np.uint16))
        self.assertEqual(list(theirs), list(ours)[: len(theirs)])
        for name, value in theirs.items():
            with self.subTest(column=name):  # percentiles by hand are in float32
                np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=0)

    def test_has_the_numbers_of_quant_sim(self) -> None:
        for scheme in self.bench._SCHEMES:
            with self.subTest(scheme=scheme.name):
                meter = SchemeMeter(
                    *self.weights.shape, self.weights.dtype, scheme, NativeBackend(), 1e-12
                )
                meter.add(self.weights)
                ours = meter.finish()
                theirs = self.by_hand.mlx_and_numpy_errors(
                    self.weights, scheme.mode, scheme.bits, scheme.group_size
                )
                self.bench._refuse_differences(ours, theirs)
                # Beside these a row has the constant bits_per_weight, a text and two labels.
                self.assertGreaterEqual({*theirs, "bits_per_weight"}, numbers_of(ours))

    def test_is_refused_where_it_differs(self) -> None:
        with self.assertRaisesRegex(RuntimeError, "bias_mean is 1e-10 and by hand 2e-10"):
            self.bench._refuse_differences({"bias_mean": 1e-10}, {"bias_mean": 2e-10})


def numbers_of(row: dict[str, object]) -> set[str]:
    """Return the names of a row's numbers."""
    return {name for name, value in row.items() if isinstance(value, int | float)}


if __name__ == "__main__":
    unittest.main()
