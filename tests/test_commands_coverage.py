"""What is held against config.json: verdicts, exit codes, roles, presets, stacks."""

from __future__ import annotations

import shutil
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
    CommandCase,
    expert_tensors,
    random_weights,
    run_command,
)

ON: dict[str, Any] = {"metadata.enabled": True}
STRICT: dict[str, Any] = {**ON, "scan.strict_coverage": True}
ODD = "model.layers.0.mlp.experts.0.odd"
GATE = "model.layers.0.mlp.experts.{}.gate_proj.weight"
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


def declared(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "of_nobody",
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "num_experts": 2,
        "num_hidden_layers": 1,
        **changes,
    }


class CoverageCase(CommandCase):
    def write(self, tensors: Mapping[str, np.ndarray], **changes: Any) -> None:
        shutil.rmtree(self.model, ignore_errors=True)
        self.write_model(tensors, config=declared(**changes))


class Verdict(CoverageCase):
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


class StrictCoverage(CoverageCase):
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


class NothingMeasured(CoverageCase):
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


class Roles(CoverageCase):
    ROLES: Mapping[str, str] = {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.input_layernorm.weight": "norm",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.mlp.gate.e_score_correction_bias": "router_bias",
        "model.layers.0.mlp.experts.e_score_correction_bias": "router_bias",
        "model.layers.0.mlp.shared_expert.up_proj.weight": "shared_expert",
        "model.layers.0.mlp.shared_expert_gate.weight": "router",
        "model.layers.1.mlp.up_proj.weight": "dense_mlp",
        "model.layers.0.odd_thing": "other",
    }

    def test_sort_every_byte_of_the_checkpoint_once(self) -> None:
        tensors = expert_tensors() | {
            name: random_weights(4, 4, seed=seed) for seed, name in enumerate(self.ROLES)
        }
        self.write(tensors)
        self.collected(ON)
        inventory = self.frame("data/tensor_inventory")
        found = dict(zip(inventory["tensor_name"], inventory["role"], strict=True))
        expected = {name: self.ROLES.get(name, "routed_expert") for name in tensors}
        self.assertEqual(found, expected)
        by_role = inventory.groupby("role")["nbytes"].sum()
        self.assertEqual(by_role.sum(), sum(array.nbytes for array in tensors.values()))
        self.assertEqual(by_role["routed_expert"], 2 * 3 * 4 * HIDDEN * WIDTH)

    def test_of_companions_are_those_of_the_weights_they_explain(self) -> None:
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        codes, scale = GATE.format(0), f"{GATE.format(0)}_scale"
        tensors[codes] = np.ones((WIDTH, HIDDEN), np.int8)
        tensors[scale] = np.ones((WIDTH, 1), np.float32)
        self.write(tensors)
        self.collected(ON)
        inventory = self.frame("data/tensor_inventory").set_index("tensor_name")
        self.assertEqual(inventory["role"][scale], "routed_expert")
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        self.assertEqual(
            tuple(rows.loc[codes][["dtype", "encoding", "mean"]]), ("int8", "int8", 1.0)
        )
        ledger = self.log("coverage.json")
        self.assertIs(ledger["complete"], True)
        self.assertEqual(ledger["bytes"]["measured"], 4 * 5 * 2048 + 2048 + 4 * WIDTH)


class PresetInUse(CoverageCase):
    def test_stands_in_console_health_plan_and_rows(self) -> None:
        self.write(expert_tensors(), model_type="qwen3_moe")
        outcome = self.collected(ON)
        self.assertIn("[collect] preset: qwen_moe\n", outcome.out)
        health = self.log("run_health.json")
        self.assertEqual(health["preset"], "qwen_moe")
        summary = health["extraction_summary"]
        self.assertEqual((summary["extracted_by_preset"], summary["extracted_by_rule"]), (6, 0))
        rows = self.frame("data/matrix_stats")
        self.assertEqual(set(rows["extracted_via"]), {"preset:qwen_moe"})
        self.assertEqual(set(rows["layout_evidence"]), {"config"})
        self.assertIn("[collect] preset: qwen_moe\n", self.collect("--plan").out)

    def test_of_another_name_than_config_json_asks_for_is_warned_of(self) -> None:
        self.write(expert_tensors(), model_type="qwen3_moe")
        self.collected({**ON, "parsing.preset": "olmoe"})
        warnings = self.frame("logs/warnings")
        self.assertEqual(
            list(warnings["warning"]),
            ['[config] parsing.preset is "olmoe", config.json asks for "qwen_moe"'],
        )
        self.assertEqual(
            list(warnings["hint"]), ['set parsing.preset to "auto" unless this is on purpose']
        )
        self.assertEqual(self.log("run_health.json")["preset"], "olmoe")

    def test_of_its_own_name_or_of_a_model_nobody_knows_is_not(self) -> None:
        for model_type, preset in (("qwen3_moe", "qwen_moe"), ("of_nobody", "olmoe")):
            self.write(expert_tensors(), model_type=model_type)
            self.collected({**ON, "parsing.preset": preset})
            self.assertEqual(self.warnings(), [])

    def test_switched_off_leaves_the_generic_rules(self) -> None:
        self.write(expert_tensors(), model_type="qwen3_moe")
        self.collected({**ON, "parsing.preset": None})
        self.assertIsNone(self.log("run_health.json")["preset"])
        self.assertEqual(
            set(self.frame("data/matrix_stats")["extracted_via"]),
            {"rule:generic_2d_per_expert_separate"},
        )
        self.assertIn("[collect] preset: none\n", self.collect("--plan").out)

    def test_is_not_looked_for_when_config_json_is_not_read(self) -> None:
        self.write(expert_tensors(), model_type="qwen3_moe")
        self.collected()
        self.assertIsNone(self.log("run_health.json")["preset"])

    def test_of_no_known_name_is_found_before_any_file_is_looked_at(self) -> None:
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(b"no header")
        for changes in ({}, {"model_path": str(self.folder / "nowhere")}):
            self.assertEqual(
                self.refused(2, {"parsing.preset": "qwen-moe", **changes}),
                f"ConfigError: {self.path}/analysis_config.json: 1 problem\n"
                '  $.parsing.preset: there is no preset named "qwen-moe"; did you mean "qwen_moe"?',
            )

    def test_of_no_known_name_ends_with_2(self) -> None:
        self.write(expert_tensors())
        self.assertEqual(
            self.refused(2, {**ON, "parsing.preset": "qwen-moe"}),
            f"ConfigError: {self.run_directory.config_path}: 1 problem\n"
            '  $.parsing.preset: there is no preset named "qwen-moe"; did you mean "qwen_moe"?',
        )


class Descriptions(CoverageCase):
    """Small tensors that describe others are read while the plan is made; large ones are not."""

    def test_are_read_where_the_shape_stands_in_one(self) -> None:
        stem = GATE.format(0).removesuffix(".weight")
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        # Codes of 0 mean -8; the last word of a row is not full.
        tensors[f"{stem}.weight_packed"] = np.zeros((WIDTH, HIDDEN // 8), np.int32)
        tensors[f"{stem}.weight_scale"] = np.full((WIDTH, 1), 0.5, np.float32)
        tensors[f"{stem}.weight_shape"] = np.array([WIDTH, HIDDEN - 1], np.int64)
        self.write(tensors)
        self.collected(ON)
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        row = rows.loc[f"{stem}.weight_packed"]
        self.assertEqual(
            (row["encoding"], row["rows"], row["cols"], row["mean"]),
            ("packed_int", WIDTH, HIDDEN - 1, -4.0),
        )
        self.assertEqual(set(self.frame("data/coverage")["status"]), {"complete", "wrong_shape"})

    def test_beyond_the_limit_are_none(self) -> None:
        codes = GATE.format(0).removesuffix(".weight")
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        tensors[f"{codes}.weight_packed"] = np.zeros((WIDTH, HIDDEN // 8), np.int32)
        tensors[f"{codes}.weight_scale"] = np.ones((WIDTH, 1), np.float32)
        tensors[f"{codes}.weight_shape"] = np.zeros(8193, np.int64)
        self.write(tensors)
        self.collected(ON)  # its shape alone says that it is no description, so nobody reads it
        state = GATE.format(0) + ".quant_state.bitsandbytes__nf4"
        tensors = expert_tensors() | {
            GATE.format(0): np.zeros((WIDTH * HIDDEN // 2, 1), np.uint8),
            f"{GATE.format(0)}.absmax": np.ones(WIDTH * HIDDEN // 64, np.float32),
            f"{GATE.format(0)}.quant_map": np.ones(16, np.float32),
            state: np.zeros(65_537, np.uint8),
        }
        self.write(tensors)
        self.collected(ON)
        name = GATE.format(0)
        self.assertIn(
            f"[read] refused (bad_companion): state {state} U8 [65537] of codes {name} U8 "
            f"[{WIDTH * HIDDEN // 2}, 1] is too large for the short text that bitsandbytes writes: "
            f"{name}",
            self.warnings(),
        )
        unmatched = self.frame("data/unmatched_tensors").set_index("tensor_name")
        self.assertEqual(unmatched["reason"][name], "bad_companion")


class SeveralStacks(CoverageCase):
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
        self.assertEqual(len(deltas), 48)
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
