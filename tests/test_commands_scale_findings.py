from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from tests.support.command_line import CommandCase

NAME = "model.layers.0.mlp.experts.0.gate_proj.weight"


class DamagedScales(CommandCase):
    def collect_with_scale(self, scale: float) -> list[str]:
        scales = np.array([[1.0, scale]], dtype=np.float32)
        codes = np.ones((16, 256), dtype=np.float32).astype(ml_dtypes.float8_e4m3fn)
        self.write_model({NAME: codes, f"{NAME}_scale_inv": scales}, n_shards=1)
        self.collected()
        if "logs/warnings.parquet" not in self.files("logs"):
            return []
        return self.frame("logs/warnings")["warning"].tolist()

    def test_are_named_beside_the_weight_they_damage(self) -> None:
        for value in (np.nan, np.inf):
            told = self.collect_with_scale(value)
            self.assertIn(f"[weights] NaN or Inf in scale {NAME}_scale_inv", told)
            self.assertIn(f"[weights] NaN or Inf in {NAME}::gate_proj expert 0", told)

    def test_are_not_suspected_where_the_weights_are_finite(self) -> None:
        told = self.collect_with_scale(2.0)
        self.assertEqual([text for text in told if "scale " in text], [])


if __name__ == "__main__":
    unittest.main()
