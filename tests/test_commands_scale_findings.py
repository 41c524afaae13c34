from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import ml_dtypes
import numpy as np

from moe_weights.commands.scale_findings import scale_findings
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.work_unit import WorkUnit
from tests.support.command_line import CommandCase
from tests.support.work_units import write_headers

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


class DamagedCodes(unittest.TestCase):
    """Which bytes of a scale are NaN depends on what reads them."""

    def found(
        self, encoding: str, scale: np.ndarray, role: str = "scale"
    ) -> list[tuple[str | None, int]]:
        with tempfile.TemporaryDirectory() as folder:
            codes = np.zeros((2, 4), dtype=np.uint8)
            weights, companion = write_headers(Path(folder), {"w": codes, "w_scale": scale})
            tensor = StoredTensor(
                name="w",
                encoding=encoding,
                header=weights,
                shape=weights.shape,
                companions=((role, companion),),
            )
            unit = WorkUnit(
                source=tensor,
                extracted_via="rule:r",
                layout_evidence="rule",
                start=0,
                stop=tensor.n_elements,
                matrices=(),
            )
            rows = [{"file": weights.file, "source_tensor": "w", "n_nan": 1, "n_inf": 0}]
            findings = scale_findings(rows, [unit], Path(folder))
        return [(finding.tensor, finding.count) for finding in findings]

    def test_of_exponents_is_the_highest_one(self) -> None:
        for encoding in ("mxfp4", "fp8", "mlx_mxfp4", "mlx_mxfp8"):
            self.assertEqual(self.found(encoding, np.uint8([127, 255])), [("w_scale", 1)])
            self.assertEqual(self.found(encoding, np.uint8([127, 254])), [])

    def test_of_e4m3_numbers_has_either_sign(self) -> None:
        for code in (0x7F, 0xFF):
            self.assertEqual(self.found("mlx_nvfp4", np.uint8([1, code])), [("w_scale", 1)])
        self.assertEqual(self.found("mlx_nvfp4", np.uint8([0x7E, 0x80])), [])

    def test_are_looked_for_in_scales_alone(self) -> None:
        self.assertEqual(self.found("bitsandbytes_4bit", np.uint8([255]), role="absmax"), [])
        self.assertEqual(self.found("packed_int", np.int32([-1]), role="zero_point"), [])

    def test_are_found_at_the_end_of_a_scale_of_many_pieces(self) -> None:
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
            scale = np.ones(3 * 2**19 + 1, dtype=dtype)
            self.assertEqual(self.found("fp8", scale), [])
            scale[-1] = np.nan
            self.assertEqual(self.found("fp8", scale), [("w_scale", 1)])

    def test_are_not_what_only_float64_can_hold(self) -> None:
        self.assertEqual(self.found("fp8", np.array([1e300])), [])
        for value in (np.uint8([0x7F]), np.uint8([0xFF])):
            found = self.found("nvfp4", value.view(ml_dtypes.float8_e4m3fn))
            self.assertEqual(found, [("w_scale", 1)])


if __name__ == "__main__":
    unittest.main()
