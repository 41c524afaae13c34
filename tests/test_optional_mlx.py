"""What collect_data does without MLX, and with schemes that MLX refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from moe_weights.quantize.error import EXTRA_COLUMNS
from moe_weights.tables.quant_sim import quant_sim_schema
from tests.support.command_line import CommandCase

MISSING = "mlx is not importable; skipping quantization simulations"
NO_MLX = dict.fromkeys(["mlx", "mlx.core"])
REPOSITORY = Path(__file__).resolve().parent.parent


class WithoutMlx(CommandCase):
    def collect_recording(self, changes: dict[str, Any]) -> list[warnings.WarningMessage]:
        """Collect without mlx, which must succeed; return the Python warnings."""
        with mock.patch.dict(sys.modules, NO_MLX), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.collected(changes)
        return caught

    def test_gives_one_python_warning_and_one_warning_row(self) -> None:
        self.write_model()
        caught = self.collect_recording({"mlx.enabled": True})
        self.assertEqual(
            [(warning.category, str(warning.message)) for warning in caught],
            [(RuntimeWarning, MISSING)],
        )
        self.assertEqual(self.warnings(), [f"[quant_sim] {MISSING}"])

    def test_gives_no_rows_of_quant_sim_but_its_full_header(self) -> None:
        for output in ("parquet", "csv"):
            self.write_model()
            self.collect_recording({"mlx.enabled": True, "output.format": output})
            frame = self.frame("data/quant_sim")
            self.assertEqual(len(frame), 0)
            self.assertEqual(tuple(frame.columns), quant_sim_schema(EXTRA_COLUMNS).column_names)

    def test_leaves_matrix_stats_as_it_is_with_mlx(self) -> None:
        self.write_model()
        self.collected({"mlx.enabled": True})
        expected = self.frame("data/matrix_stats")
        self.collect_recording({"mlx.enabled": True})
        self.assertTrue(self.frame("data/matrix_stats").equals(expected))
        self.assertEqual(len(expected), 6)

    def test_is_not_even_noticed_when_nothing_would_be_simulated(self) -> None:
        self.write_model()
        disabled = {"name": "q", "mode": "affine", "enabled": False}
        for changes in (
            {"mlx.enabled": False},
            {"mlx.enabled": True, "quant_schemes": [], "delta_pairs": []},
            {"mlx.enabled": True, "quant_schemes": [disabled], "delta_pairs": []},
        ):
            with self.subTest(changes=changes):
                self.assertEqual(self.collect_recording(changes), [])
                self.assertEqual(self.warnings(), [])
                self.assertEqual(len(self.frame("data/quant_sim")), 0)

    def test_ends_the_script_with_zero(self) -> None:
        hidden = self.folder / "hidden" / "mlx"
        hidden.mkdir(parents=True)
        (hidden / "__init__.py").write_text("raise ImportError('hidden')\n", encoding="utf-8")
        self.write_model()
        self.configure({"mlx.enabled": True})
        done = subprocess.run(
            [sys.executable, "scripts/collect_data.py", "--run-dir", str(self.path)],
            cwd=REPOSITORY,
            capture_output=True,
            check=False,
            text=True,
            env={
                **os.environ,
                "PYTHONWARNINGS": "default",
                "PYTHONPATH": str(hidden.parent),
            },
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr, f"RuntimeWarning: {MISSING}\n")
        self.assertIn("matrix_stats rows: 6", done.stdout)
        self.assertIn("quant_sim rows: 0", done.stdout)
        self.assertEqual(self.warnings(), [f"[quant_sim] {MISSING}"])


class FailingScheme(CommandCase):
    SCHEMES = (
        {"name": "fits", "mode": "affine", "bits": 4, "group_size": 32},
        {"name": "too_wide", "mode": "affine", "bits": 4, "group_size": 64},
        {"name": "no_such_mode", "mode": "zz", "bits": 4, "group_size": 32},
    )

    def setUp(self) -> None:
        super().setUp()
        self.write_model()
        self.collected(
            {"mlx.enabled": True, "quant_schemes": list(self.SCHEMES), "delta_pairs": []}
        )

    def test_gives_a_row_per_matrix_with_the_error_and_no_numbers(self) -> None:
        frame = self.frame("data/quant_sim")
        self.assertEqual(frame.groupby("scheme").size().to_dict(),
                         {"fits": 6, "no_such_mode": 6, "too_wide": 6})  # fmt: skip
        failed = frame[frame["scheme"] == "no_such_mode"]
        self.assertEqual(
            set(failed["error"]), {"ValueError: [quantize] Invalid quantization mode 'zz'."}
        )
        for name in ("w_rel_fro", "w_rel_max", "scale_mean", "scale_max", "scale_abs_max"):
            self.assertTrue(failed[name].isna().all(), name)

    def test_fails_only_where_the_group_does_not_divide_the_columns(self) -> None:
        frame = self.frame("data/quant_sim")
        wide = frame[frame["scheme"] == "too_wide"]
        self.assertEqual(set(wide[wide["error"].notna()]["proj"]), {"down_proj"})
        self.assertEqual(set(wide[wide["error"].isna()]["proj"]), {"gate_proj", "up_proj"})

    def test_leaves_the_others_alone(self) -> None:
        fits = self.frame("data/quant_sim").query("scheme == 'fits'")
        self.assertTrue(fits["error"].isna().all())
        self.assertTrue(fits["w_rel_fro"].between(0.05, 0.12).all())

    def test_gives_one_warning_per_scheme_and_cause(self) -> None:
        found = self.warnings()
        self.assertEqual(len(found), 2, found)
        self.assertEqual(
            found[0],
            "[quant_sim] scheme=no_such_mode failed: ValueError: [quantize] Invalid quantization "
            "mode 'zz'. [6 matrices (model.layers.0.mlp.experts.0.down_proj.weight::down_proj, "
            "model.layers.0.mlp.experts.0.gate_proj.weight::gate_proj, "
            "model.layers.0.mlp.experts.0.up_proj.weight::up_proj, ...)]",
        )
        self.assertIn("scheme=too_wide failed: ValueError: ", found[1])
        self.assertIn("[2 matrices (", found[1])


if __name__ == "__main__":
    unittest.main()
