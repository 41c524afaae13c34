from __future__ import annotations

import sys
import unittest
import warnings
from unittest import mock

from moe_weights.commands.memory import DEFAULT_MAX_MEMORY
from moe_weights.measure.settings import ADDITIVE_METRICS
from moe_weights.quantize.error import EXTRA_COLUMNS
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from tests.support.command_line import CommandCase

QUANT_EXTRA = tuple(column.name for column in EXTRA_COLUMNS)
NO_MLX = dict.fromkeys(["mlx", "mlx.core"])
SCHEME = {"name": "q4", "mode": "affine", "bits": 4, "group_size": 32}
SIMULATED = {"mlx.enabled": True, "quant_schemes": [SCHEME], "delta_pairs": []}


class ChosenMetrics(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_model()

    def columns(self, table: str) -> list[str]:
        additive = {*ADDITIVE_METRICS, *QUANT_EXTRA}
        return [name for name in self.frame(table).columns if name in additive]

    def test_are_all_of_them_by_default_after_the_seeds_columns(self) -> None:
        self.collected(SIMULATED)
        self.assertEqual(self.columns("data/matrix_stats"), list(ADDITIVE_METRICS))
        self.assertEqual(self.columns("data/quant_sim"), list(QUANT_EXTRA))
        names = list(self.frame("data/matrix_stats").columns)
        self.assertLess(max(names.index(n) for n in ("std", "p999_abs", "g32_max_outlier")),
                        names.index(ADDITIVE_METRICS[0]))  # fmt: skip
        names = list(self.frame("data/quant_sim").columns)
        self.assertLess(names.index("error"), names.index(QUANT_EXTRA[0]))

    def test_stand_in_their_own_order_whatever_the_configs(self) -> None:
        self.collected(SIMULATED)
        everything = {name: self.frame(name) for name in ("data/matrix_stats", "data/quant_sim")}
        chosen = ["cosine", "frobenius", "n_zero", "kurtosis", "sqnr_db"]
        self.collected(SIMULATED | {"stats.metrics": chosen})
        self.assertEqual(self.columns("data/matrix_stats"), ["kurtosis", "n_zero", "frobenius"])
        self.assertEqual(self.columns("data/quant_sim"), ["sqnr_db", "cosine"])
        for name, frame in everything.items():
            found = self.frame(name)
            self.assertTrue(found.equals(frame[list(found.columns)]))

    def test_may_be_none(self) -> None:
        self.collected(SIMULATED | {"stats.metrics": []})
        for table in ("data/matrix_stats", "data/quant_sim"):
            self.assertEqual(self.columns(table), [])

    def test_of_unknown_names_are_refused_with_the_list_also_by_a_plan(self) -> None:
        known = ", ".join(
            ["mean", "std", "mean_abs", "rms", "max_abs", "p50_abs", "p99_abs", "p999_abs"]
        )
        for arguments in ((), ("--plan",)):
            message = self.refused(
                2, {"stats.metrics": ["kurtosis", "Kurtosis", "größe"]}, *arguments
            )
            lines = message.splitlines()
            self.assertEqual(lines[0], f"ConfigError: {self.run_directory.config_path}: 2 problems")
            for line, place, name in (
                (lines[1], 1, '"Kurtosis"'),
                (lines[2], 2, '"größe"'),
            ):
                self.assertTrue(
                    line.startswith(
                        f"  $.stats.metrics[{place}]: {name} is no metric; known are {known}, "
                    ),
                    line,
                )
                for metric in (*ADDITIVE_METRICS, *QUANT_EXTRA):
                    self.assertIn(metric, line)
            self.assertEqual(self.files("data"), [])

    def test_that_leave_out_counts_still_warn_of_damaged_weights(self) -> None:
        import numpy as np

        name = "model.layers.0.mlp.experts.0.up_proj.weight"
        weights = np.ones((4, 32), dtype=np.float32)
        weights[1, 2] = np.nan
        self.write_model({name: weights})
        self.collected({"stats.metrics": ["crest"]})
        chosen = self.warnings()
        self.assertTrue(any("NaN" in text for text in chosen), chosen)
        self.collected()
        self.assertEqual(self.warnings(), chosen)


class Backend(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_model()

    def backends(self) -> set[str]:
        return set(self.frame("data/quant_sim")["backend"])

    def test_native_needs_no_mlx_and_warns_of_nothing(self) -> None:
        with mock.patch.dict(sys.modules, NO_MLX), warnings.catch_warnings():
            warnings.simplefilter("error")
            self.collected(SIMULATED | {"mlx.backend": "native"})
        self.assertEqual((self.backends(), self.warnings()), ({"native"}, []))
        found = self.frame("data/quant_sim")
        self.assertTrue(found["error"].isna().all())
        self.assertIsNone(self.log("run_context.json")["quantisation_self_check"])
        self.collected(SIMULATED | {"mlx.backend": "mlx"})
        self.assertEqual(self.backends(), {"mlx"})
        expected = self.frame("data/quant_sim")
        self.assertTrue(found.drop(columns="backend").equals(expected.drop(columns="backend")))

    def test_auto_is_verified_and_says_so_in_the_context(self) -> None:
        self.collected(SIMULATED | {"mlx.backend": "auto"})
        self.assertEqual(self.backends(), {"native_verified"})
        check = self.log("run_context.json")["quantisation_self_check"]
        self.assertEqual(
            [(pair["scheme"], pair["dtype"], pair["difference"]) for pair in check["pairs"]],
            [("q4", "float32", "")],
        )
        self.assertLess(check["seconds"], 1)

    def test_auto_falls_back_to_an_mlx_that_differs_with_a_finding(self) -> None:
        round_trip = MlxBackend.round_trip

        def differing(backend: MlxBackend, matrix: object, scheme: object) -> object:
            result = round_trip(backend, matrix, scheme)  # type: ignore[arg-type]
            result.values[...] *= 1.0000001
            result.values[0, 0] += 1
            return result

        with mock.patch.object(MlxBackend, "round_trip", differing):
            self.collected(SIMULATED | {"mlx.backend": "auto"})
        self.assertEqual(self.backends(), {"mlx"})
        (warning,) = self.warnings()
        self.assertTrue(
            warning.startswith(
                "[quant_sim] native kernels differ from the installed MLX, which is used instead: "
            ),
            warning,
        )

    def test_auto_and_mlx_without_mlx_warn_once_and_write_no_rows(self) -> None:
        for backend in ("auto", "mlx"):
            with (
                mock.patch.dict(sys.modules, NO_MLX),
                warnings.catch_warnings(record=True) as caught,
            ):
                warnings.simplefilter("always")
                self.collected(SIMULATED | {"mlx.backend": backend})
            self.assertEqual(len(caught), 1)
            self.assertEqual(len(self.frame("data/quant_sim")), 0)
            self.assertEqual(
                self.warnings(),
                ["[quant_sim] mlx is not importable; skipping quantization simulations"],
            )
            self.assertEqual(len(self.frame("data/matrix_stats")), 6)

    def test_is_not_opened_where_nothing_is_simulated(self) -> None:
        with (
            mock.patch.object(MlxBackend, "__init__", side_effect=AssertionError),
            mock.patch.object(NativeBackend, "__init__", side_effect=AssertionError),
        ):
            self.collected({"mlx.enabled": False})
            self.collected(SIMULATED | {"quant_schemes": []})
        self.assertEqual(len(self.frame("data/quant_sim")), 0)


class Defaults(unittest.TestCase):
    def test_leave_a_gibibyte(self) -> None:
        self.assertEqual(DEFAULT_MAX_MEMORY, 2**30)


if __name__ == "__main__":
    unittest.main()
