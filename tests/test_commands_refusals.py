"""What a config, a run directory or a strict rule that cannot work ends with."""

from __future__ import annotations

import unittest
from unittest import mock

from moe_weights.errors import BackendUnavailableError
from moe_weights.quantize.mlx_backend import MlxBackend
from tests.support.command_line import CommandCase, expert_tensors, random_weights, run_command


class BadConfig(CommandCase):
    def test_all_problems_are_told_at_once_and_nothing_is_touched(self) -> None:
        self.write_model()
        message = self.refused(
            2,
            {
                "scan.experts_only": "false",
                "scan.max_file": 1,
                "parsing.layer_regex": "layers.(",
                "extract_rules[0].proj_group": 2,
                "extract_rules[1].name": "generic_3d_expert_bank_separate",
                "extract_rules[2].packed_split.axis": "colums",
                "stats.eps": "tiny",
            },
        )
        lines = message.splitlines()
        self.assertEqual(lines[0], f"ConfigError: {self.run_directory.config_path}: 7 problems")
        self.assertEqual(
            [line.split(": ")[0].strip() for line in lines[1:]],
            [
                "$.extract_rules[0].proj_group",
                "$.extract_rules[1].name",
                "$.extract_rules[2].packed_split.axis",
                "$.parsing.layer_regex",
                "$.scan.experts_only",
                "$.scan.max_file",
                "$.stats.eps",
            ],
        )
        self.assertIn("position", lines[4])
        self.assertIn('did you mean "max_files"?', lines[6])
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
        self.assertEqual(self.log("run_failure.json")["error"]["type"], "ConfigError")

    def test_model_path_problems(self) -> None:
        fix = "\n  how to fix: set model_path in analysis_config.json or pass --model-path"
        self.assertEqual(
            self.refused(2), f"UsageError: model_path does not exist: {self.model}{fix}"
        )
        self.assertEqual(
            self.refused(2, {"model_path": ""}), f"UsageError: model_path is empty{fix}"
        )
        odd = self.folder / "weights.bin"
        odd.write_bytes(b"")
        self.assertEqual(
            self.refused(2, {"model_path": str(odd)}),
            'UsageError: model_path is a file whose suffix ".bin" is not in scan.extensions '
            f"(.safetensors, .npz): {odd}\n"
            "  how to fix: pass the model directory or a file with one of these suffixes",
        )

    def test_an_empty_override_is_refused(self) -> None:
        self.assertEqual(
            self.refused(2, None, "--model-path", ""),
            "UsageError: --model-path is empty; give a model directory or a shard",
        )


class MissingDevice(CommandCase):
    def test_ends_with_2_before_anything_is_measured(self) -> None:
        self.write_model()
        missing = BackendUnavailableError("mlx has no gpu device on this machine")
        with mock.patch.object(MlxBackend, "__init__", side_effect=missing):
            self.assertEqual(
                self.refused(2, {"mlx.enabled": True, "mlx.device": "gpu"}),
                "BackendUnavailableError: mlx has no gpu device on this machine",
            )
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])


class BadRunDirectory(CommandCase):
    def test_missing(self) -> None:
        for command in ("collect-data", "build-tables"):
            outcome = run_command(command, "--run-dir", self.path)
            self.assertEqual(outcome.code, 2)
            self.assertEqual(
                outcome.err,
                f"error: UsageError: run directory not found: {self.path}; run init_run first\n",
            )
            self.assertFalse(self.path.exists())

    def test_no_run(self) -> None:
        self.path.mkdir(parents=True)
        outcome = self.collect()
        self.assertEqual(outcome.code, 2)
        self.assertIn("is not a run directory: it lacks manifest.json", outcome.err)
        self.assertEqual(list(self.path.iterdir()), [])


class StrictPackedSplit(CommandCase):
    """Exit 4 before a weight is read; what headers tell is written all the same."""

    NAME = "model.layers.9.mlp.experts.gate_up_proj.weight"

    def setUp(self) -> None:
        super().setUp()
        self.write_model(expert_tensors() | {self.NAME: random_weights(2, 8, 64)})
        self.rule = {
            "name": "fused",
            "match": r".*gate_up_proj\.weight$",
            "ndim": 3,
            "layout": {"layer_axis": None, "expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
            "packed_split": {"axis": "rows", "splits": [4, 5], "projs": ["gate_proj", "up_proj"]},
        }

    def test_ends_the_run_and_withdraws_an_earlier_success(self) -> None:
        self.collected()
        self.assertIn("data/matrix_stats.parquet", self.files("data"))
        self.assertEqual(
            self.refused(4, {"extract_rules[2]": self.rule, "colour": 1}),
            f"PackedSplitError: packed_split failed for rule=fused tensor={self.NAME}: splits "
            "[4, 5] sum to 9, the axis has 8\n"
            "fix extract_rules[].packed_split, or set parsing.strict_packed_split to false to warn "
            "and fall back",
        )
        self.assertEqual(
            self.files("data", "logs"),
            [
                "data/coverage.parquet",
                "data/tensor_inventory.parquet",
                "data/unmatched_tensors.parquet",
                "logs/coverage.json",
                "logs/run_failure.json",
                "logs/warnings.parquet",
            ],
        )
        self.assertEqual(len(self.frame("data/tensor_inventory")), 8)
        unmatched = self.frame("data/unmatched_tensors")
        self.assertEqual(
            list(zip(unmatched["tensor_name"], unmatched["reason"], strict=True)),
            [(self.NAME, "packed_split_failed")],
        )
        self.assertEqual(self.warnings(), ["[config] unknown key: colour"])
        failure = self.log("run_failure.json")
        self.assertEqual(
            (failure["status"], failure["error"]["type"]), ("error", "PackedSplitError")
        )
        self.assertNotIn("traceback", failure)

    def test_tables_are_not_built_from_what_is_gone(self) -> None:
        self.collected()
        self.refused(4, {"extract_rules[2]": self.rule})
        self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 5)

    def test_in_a_plan_writes_nothing(self) -> None:
        message = self.refused(4, {"extract_rules[2]": self.rule}, "--plan")
        self.assertTrue(message.startswith("PackedSplitError: "))
        self.assertEqual(self.files("data", "logs", "cache"), [])

    def test_mended_the_run_succeeds_and_the_failure_goes_away(self) -> None:
        self.refused(4, {"extract_rules[2]": self.rule})
        self.rule["packed_split"]["splits"] = [4, 4]
        self.collected({"extract_rules[2]": self.rule})
        self.assertNotIn("logs/run_failure.json", self.files("logs"))
        self.assertNotIn("logs/warnings.parquet", self.files("logs"))
        rows = self.frame("data/matrix_stats")
        self.assertEqual(
            set(rows[rows["source_tensor"] == self.NAME]["derived_tensor"]),
            {f"{self.NAME}::split[rows]::gate_proj", f"{self.NAME}::split[rows]::up_proj"},
        )


class SeveralLayersInOneBank(CommandCase):
    def test_whose_axes_only_a_rule_can_name_are_refused_by_name(self) -> None:
        bank = random_weights(2, 3, 8, 16)
        self.write_model({"decoder.experts.gate_proj": bank}, n_shards=1)
        self.configure()
        outcome = self.collect()
        self.assertEqual(outcome.code, 4)
        self.assertIn("for example decoder.experts.gate_proj", outcome.err)


if __name__ == "__main__":
    unittest.main()
