"""What is held against config.json: verdicts, exit codes, stacks."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint import tensor_reader
from tests.support.command_line import (
    HIDDEN,
    SHAPES,
    WIDTH,
    expert_tensors,
    random_weights,
    run_command,
)
from tests.support.declared_models import GATE, ODD, ON, DeclaredCase

STRICT: dict[str, Any] = {**ON, "scan.strict_coverage": True}
HEADER_FILES = [
    "data/coverage.parquet",
    "data/tensor_inventory.parquet",
    "data/unmatched_tensors.parquet",
    "logs/coverage.json",
    "logs/model_config.raw.json",
    "logs/model_shape_budget.json",
    "logs/run_failure.json",
    "logs/warnings.parquet",
]


class Verdict(DeclaredCase):
    def test_complete_stands_in_console_health_ledger_and_table(self) -> None:
        self.write(expert_tensors())
        outcome = self.collected(STRICT)
        line = "coverage complete: every expert matrix that config.json declares will be measured"
        self.assertIn(f"[collect] {line}\n", outcome.out)
        self.assertIs(self.log("run_health.json")["coverage"]["complete"], True)
        self.assertIs(self.log("coverage.json")["complete"], True)
        self.assertEqual(set(self.frame("data/coverage")["status"]), {"complete"})
        self.assertIn(f"[collect] {line}\n", self.collect("--plan").out)

    def test_incomplete_heads_the_closing_summary_also_when_quiet(self) -> None:
        tensors = expert_tensors() | {ODD: random_weights(2, 2)}
        del tensors[GATE.format(1)]
        self.write(tensors)
        outcome = self.collected(ON)
        place = "text layer 0 gate_proj: 1 of 2 experts"
        verdict = (
            "coverage INCOMPLETE: missing: 1; tensors refused or unmatched: 1, for example " + ODD
        )
        closing = outcome.out.splitlines()
        position = closing.index(f"[warn] {verdict}; see logs/coverage.json")
        self.assertTrue(closing[position + 1].startswith("[collect] finished in "))
        self.assertIs(self.log("run_health.json")["coverage"]["complete"], False)
        self.assertEqual(
            self.warnings(),
            [f"[coverage] missing: 1 (layer, projection) pairs ({place})"],
        )
        self.assertIn(
            f"[warn] {verdict}; see logs/coverage.json\n", self.collected(ON, "--quiet").out
        )
        self.assertIn(f"[collect] {verdict}\n", self.collect("--plan").out)

    def test_unknown_without_a_declaration(self) -> None:
        self.write_model()
        line = "coverage unknown: config.json declares no experts to hold the tensors against"
        self.assertIn(f"[collect] {line}\n", self.collected(ON).out)
        self.assertIsNone(self.log("run_health.json")["coverage"]["complete"])
        self.assertIsNone(self.log("coverage.json")["complete"])


class StrictCoverage(DeclaredCase):
    """Exit 4 with everything that headers tell, and nothing that was measured."""

    def test_refuses_what_is_not_complete(self) -> None:
        self.write(expert_tensors())
        self.collected(ON)
        tensors = expert_tensors()
        del tensors[GATE.format(1)]
        self.write(tensors)
        message = (
            "ExtractionError: scan.strict_coverage: coverage INCOMPLETE: missing: 1; the warnings "
            "and the coverage ledger say where; mend that, or set it to false"
        )
        with mock.patch.object(tensor_reader, "open_descriptor", side_effect=AssertionError):
            self.assertEqual(self.refused(4, STRICT), message)
        self.assertEqual(self.files("data", "logs"), HEADER_FILES)
        self.assertEqual(len(self.frame("data/tensor_inventory")), len(tensors))
        self.assertEqual(list(self.frame("data/coverage")["found_experts"]), [1, 2, 2])
        self.assertEqual(self.log("run_failure.json")["error"]["type"], "ExtractionError")
        self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 5)

    def test_in_a_plan_prints_it_and_writes_nothing(self) -> None:
        self.write(expert_tensors(1))
        self.configure(STRICT)
        outcome = self.collect("--plan")
        self.assertEqual(outcome.code, 4)
        self.assertIn("[collect] coverage INCOMPLETE: missing: 3\n", outcome.out)
        self.assertEqual(self.files("data", "logs", "cache"), [])

    def test_refuses_a_unit_that_was_refused(self) -> None:
        tensors = expert_tensors()
        tensors[GATE.format(1)] = np.zeros((WIDTH, HIDDEN), np.int8)
        self.write(tensors)
        self.collected(ON)  # a warning and an unmatched row without strictness
        self.assertEqual(
            dict(self.frame("data/unmatched_tensors")[["tensor_name", "reason"]].to_numpy()),
            {GATE.format(1): "missing_companion"},
        )
        self.assertEqual(
            self.log("run_health.json")["coverage"]["statuses"], {"complete": 2, "refused": 1}
        )
        self.assertIn("coverage INCOMPLETE: refused: 1; ", self.refused(4, STRICT))

    def test_refuses_where_nothing_is_declared(self) -> None:
        self.write_model()
        self.assertIn("scan.strict_coverage: coverage unknown: ", self.refused(4, STRICT))

    def test_off_by_default(self) -> None:
        self.write(expert_tensors(1))
        self.collected(ON)
        self.assertIs(self.log("coverage.json")["complete"], False)


class NothingMeasured(DeclaredCase):
    TENSORS: Mapping[str, np.ndarray] = {
        f"tensor.{size}": random_weights(size, 8) for size in range(1, 8)
    }

    def test_where_experts_are_declared_ends_with_4_and_names_the_largest(self) -> None:
        self.write(self.TENSORS)
        self.assertEqual(
            self.refused(4, ON),
            "ExtractionError: config.json declares experts and none was found; the largest tensors "
            "are tensor.7, tensor.6, tensor.5, tensor.4, tensor.3; describe them in extract_rules",
        )
        self.assertEqual(self.files("data", "logs"), HEADER_FILES)
        self.assertEqual(
            self.log("coverage.json")["bytes"],
            dict.fromkeys(("measured", "excluded", "refused", "unmatched", "lookalike"), 0),
        )

    def test_of_files_without_tensors_says_so(self) -> None:
        self.write({})
        self.assertEqual(
            self.refused(4, ON),
            "ExtractionError: config.json declares experts and none was found; the files hold no "
            "tensors: point model_path at the weights",
        )

    def test_of_a_dense_model_is_an_empty_run(self) -> None:
        self.write(self.TENSORS, num_experts=0)
        outcome = self.collected(ON)
        self.assertIn("no expert matrix was found", outcome.out)


class SeveralStacks(DeclaredCase):
    """Encoder and decoder with equal layer ids, through to the tables."""

    def tensors(self, *stacks: str) -> dict[str, np.ndarray]:
        return {
            f"{stack}.block.layers.{layer}.mlp.experts.{expert}.{proj}.weight": random_weights(
                *shape, seed=1000 * number + 100 * layer + 10 * expert
            )
            for number, stack in enumerate(stacks)
            for layer in (0, 1)
            for expert in (0, 1)
            for proj, shape in SHAPES.items()
        }

    def test_stand_in_rows_plan_and_tables(self) -> None:
        self.write(self.tensors("decoder", "encoder"))
        self.collected({**ON, "mlx.enabled": True})
        for name, n_rows in (("matrix_stats", 24), ("quant_sim", 72)):
            rows = self.frame(f"data/{name}")
            self.assertEqual(len(rows), n_rows)
            self.assertEqual(
                dict(rows["stack"].value_counts()),
                dict.fromkeys(("decoder", "encoder"), n_rows // 2),
            )
        self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 0)
        summary = self.frame("tables/A_weight_layer_summary")
        self.assertEqual(list(summary.columns)[-2:], ["stack", "n"])
        self.assertEqual(
            list(
                zip(summary["stack"], summary["layer"], summary["proj"], summary["n"], strict=True)
            ),
            [
                (stack, layer, proj, 2)
                for stack in ("decoder", "encoder")
                for layer in (0, 1)
                for proj in SHAPES
            ],
        )
        rows = self.frame("data/matrix_stats")
        one = rows[
            (rows["stack"] == "encoder") & (rows["layer"] == 1) & (rows["proj"] == "up_proj")
        ]
        of_group = summary[(summary["stack"] == "encoder") & (summary["layer"] == 1)]
        mean = of_group[of_group["proj"] == "up_proj"]["rms__mean"].item()
        self.assertAlmostEqual(mean, one["rms"].mean(), places=15)
        deltas = self.frame("tables/B_quant_deltas")
        self.assertEqual(deltas.columns[-1], "stack")
        self.assertEqual(len(deltas), 2 * len(rows))  # the pairs of the template
        self.assertFalse(deltas["delta_w_rel_fro"].isna().any())

    def test_that_are_one_leave_the_column_empty_and_the_tables_as_they_were(self) -> None:
        self.write(self.tensors("encoder"))
        self.collected({**ON, "mlx.enabled": True})
        self.assertEqual(set(self.frame("data/matrix_stats")["stack"]), {""})
        self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 0)
        for file in self.files("tables"):
            self.assertNotIn("stack", self.frame(file.removesuffix(".parquet")).columns)


if __name__ == "__main__":
    unittest.main()
