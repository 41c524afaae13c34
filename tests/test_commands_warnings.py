"""The texts of the warning catalogue, produced by collect_data and compared in full.

Those about projections stand in `test_commands_projection_warnings`.
"""

from __future__ import annotations

import sys
import unittest
from unittest import mock

import numpy as np

from moe_weights.audit.index_report import IndexReport
from tests.support.checkpoints import shard_name, write_safetensors
from tests.support.command_line import CommandCase, bank_rule, expert_tensors, random_weights

BANK = "model.layers.0.mlp.experts.{}.weight"
ON = {"metadata.enabled": True}


class Index(CommandCase):
    def test_parse_failure(self) -> None:
        self.write_model(index=True)
        path = self.model / "model.safetensors.index.json"
        path.write_bytes(b"[1]")
        self.collected()
        self.assertEqual(
            self.warnings(), [f"[index] failed to parse index {path}: it is not a JSON object"]
        )

    def test_every_list(self) -> None:
        # What can be scanned is what the index names, so extra scanned shards cannot occur by
        # themselves; the report's text is pinned all the same.
        self.write_model(index=True)
        report = IndexReport(
            expected_shards=("a",),
            scanned_shards=("b",),
            missing_shards=("a", "c"),
            extra_scanned_shards=("b", "d"),
            missing_tensors=("t", "u"),
            extra_tensors=("x", "y"),
            misplaced_tensors=(),
            not_scanned_due_to_max_files=(),
            extra_safetensors_files_on_disk=("e.safetensors", "f.safetensors"),
            extra_files_not_read=("sub/g.safetensors", "sub/h.safetensors"),
            index_metadata={},
            total_size_found=None,
        )
        with mock.patch("moe_weights.commands.survey.compare_index", return_value=report):
            self.collected()
        self.assertEqual(
            self.warnings(),
            [
                "[index] missing shards: a, c",
                "[index] extra scanned shards: b, d",
                "[index] missing tensors: t, u",
                "[index] extra tensors: x, y",
                "[index] extra safetensors files on disk: e.safetensors, f.safetensors",
                "[index] extra files not read: sub/ (2 files)",
            ],
        )
        self.assertEqual(list(self.frame("logs/warnings")["count"]), [2] * 6)


class Metadata(CommandCase):
    def test_no_config(self) -> None:
        self.write_model()
        self.collected(ON)
        self.assertEqual(self.warnings(), ["[meta] config.json not found; skipping"])

    def test_named_config_missing(self) -> None:
        self.write_model()
        self.collected(ON | {"metadata.config_path": "sub/c.json"})
        self.assertEqual(
            self.warnings(),
            [
                f"[meta] config_path not found: {self.model}/sub/c.json",
                "[meta] config.json not found; skipping",
            ],
        )

    def test_empty_or_invalid_config(self) -> None:
        self.write_model()
        path = self.model / "config.json"
        for content in ("", "{", "[]", "{}"):
            path.write_text(content, encoding="utf-8")
            self.collected(ON)
            self.assertEqual(self.warnings(), [f"[meta] config.json empty or invalid: {path}"])
            self.assertEqual([file for file in self.files("logs") if "model_" in file], [])

    def test_nothing_recognised(self) -> None:
        self.write_model(config={"foo": 1})
        self.collected(ON)
        self.assertEqual(
            self.warnings(), [f"[meta] no recognized fields in {self.model}/config.json"]
        )

    def test_none_when_switched_off(self) -> None:
        self.write_model()
        self.collected()
        self.assertEqual(self.warnings(), [])
        self.assertEqual(self.files("logs").count("logs/warnings.parquet"), 0)


class Extraction(CommandCase):
    def test_packed_split_failed(self) -> None:
        name = BANK.format("gate_proj")
        self.write_model({name: random_weights(2, 8, 64)})
        rule = bank_rule(
            r".*gate_proj\.weight$",
            packed_split={"axis": "rows", "splits": [4, 5], "projs": ["gate_proj", "up_proj"]},
        )
        loose = {"parsing.strict_packed_split": False}
        self.collected(loose | {"extract_rules": [rule]})
        self.assertEqual(
            self.warnings()[0],
            f"[extract] packed_split failed for rule=mine tensor={name}: splits [4, 5] sum to 9, "
            "the axis has 8",
        )
        self.assertEqual(
            set(self.frame("data/matrix_stats")["extracted_via"]), {"fallback_after_packed_split"}
        )
        summary = self.log("run_health.json")["extraction_summary"]
        self.assertEqual(summary["fallback_after_packed_split"], [name])
        self.assertEqual((summary["extracted_by_rule"], summary["extracted_by_fallback"]), (0, 1))

    def test_packed_split_lengths_differ(self) -> None:
        name = BANK.format("gate_proj")
        self.write_model({name: random_weights(2, 8, 64)})
        rule = bank_rule(
            r".*gate_proj\.weight$",
            packed_split={"axis": "rows", "splits": [4, 4], "projs": ["gate_proj"]},
        )
        self.collected({"extract_rules": [rule], "parsing.strict_packed_split": False})
        self.assertEqual(
            self.warnings()[0],
            f"[extract] packed_split projs and splits length mismatch for rule=mine tensor={name}",
        )

    def test_rule_failed_and_fallback_failed(self) -> None:
        name = "model.layers.0.mlp.experts.3.gate_proj.weight"
        self.write_model({name: random_weights(2, 8, 64)})
        rule = bank_rule(r".*experts\.(\d+)\.gate_proj\.weight$") | {
            "layout": {"expert_axis": None, "layer_axis": None, "rows_axis": 0, "cols_axis": 1}
        }
        del rule["ndim"]
        self.collected({"extract_rules": [rule]})
        self.assertEqual(
            self.warnings(),
            [
                (
                    f"[extract] rule application failed for {name}: layout axes [0, 1] do not "
                    "cover ndim=3; name each of the 3 axes of shape [2, 8, 64] once"
                ),
                (
                    f"[extract] fallback failed for {name}: the name says expert 3, the expert "
                    "axis holds 2; drop expert_axis from the rule's layout or mend "
                    "parsing.expert_regex"
                ),
            ],
        )

    def test_expert_id_unknown(self) -> None:
        name = "model.layers.0.mlp.experts.gate_proj.weight"
        self.write_model({name: random_weights(8, 64)})
        self.collected()
        self.assertEqual(self.warnings(), [f"[extract] expert id unknown for {name}"])
        row = self.frame("data/matrix_stats").iloc[0]
        self.assertEqual((row["expert_id"], row["is_shared_expert"]), (-1, False))


class Scanning(CommandCase):
    def test_duplicate_tensor_name(self) -> None:
        self.write_model()
        name = next(iter(expert_tensors()))
        write_safetensors(self.model / "z.safetensors", {name: random_weights(32, 64, seed=50)})
        self.collected()
        self.assertEqual(
            self.warnings(),
            [f"[scan] duplicate tensor name: {name} (model.safetensors, z.safetensors)"],
        )
        rows = self.frame("data/matrix_stats")
        self.assertEqual(
            list(rows[rows["source_tensor"] == name]["file"]),
            ["model.safetensors", "z.safetensors"],
        )

    def test_unknown_config_keys(self) -> None:
        self.write_model()
        self.collected({"scan.max_file": 3, "colour": "red"})
        warnings = self.frame("logs/warnings")
        self.assertEqual(
            list(warnings["warning"]),
            ["[config] unknown key: colour", "[config] unknown key: scan.max_file"],
        )
        self.assertEqual(list(warnings["hint"])[1], 'did you mean "max_files"?')


class Weights(CommandCase):
    def test_worth_a_second_look(self) -> None:
        name = "model.layers.0.mlp.experts.{}.{}_proj.weight"
        tensors = {
            name.format(0, "gate"): np.zeros((8, 64), np.float32),
            name.format(1, "gate"): np.full((8, 64), 2.5, np.float32),
            name.format(0, "up"): random_weights(8, 64),
            name.format(1, "up"): random_weights(8, 64),
            name.format(0, "down"): random_weights(64, 8),
            name.format(1, "down"): random_weights(64, 8, seed=2),
        }
        tensors[name.format(1, "down")][3, 4] = np.nan
        self.write_model(tensors)
        self.collected()

        def described(expert: int, proj: str) -> str:
            return f"{name.format(expert, proj)}::{proj}_proj expert {expert}"

        self.assertEqual(
            self.warnings(),
            [
                f"[weights] NaN or Inf in {described(1, 'down')}",
                f"[weights] all weights are zero in {described(0, 'gate')}",
                f"[weights] all weights are equal in {described(1, 'gate')}",
                (
                    f"[weights] identical weights in 2 matrices ({described(0, 'up')}, "
                    f"{described(1, 'up')})"
                ),
            ],
        )
        broken = (
            self.frame("data/matrix_stats").set_index("source_tensor").loc[name.format(1, "down")]
        )
        self.assertEqual(broken["n_nan"], 1)
        self.assertTrue(np.isnan(broken["mean"]))


class Simulation(CommandCase):
    def test_mlx_missing(self) -> None:
        self.write_model()
        missing = dict.fromkeys(["mlx", "mlx.core"])
        with (
            mock.patch.dict(sys.modules, missing),
            self.assertWarnsRegex(
                RuntimeWarning, "^mlx is not importable; skipping quantization simulations$"
            ) as caught,
        ):
            self.collected({"mlx.enabled": True})
        self.assertEqual(len(caught.warnings), 1)
        self.assertEqual(
            self.warnings(),
            ["[quant_sim] mlx is not importable; skipping quantization simulations"],
        )
        quant_sim = self.frame("data/quant_sim")
        self.assertEqual(len(quant_sim), 0)
        self.assertIn("w_rel_fro", quant_sim.columns)
        self.assertEqual(len(self.frame("data/matrix_stats")), 6)

    def test_mlx_is_not_even_tried_without_need(self) -> None:
        self.write_model()
        with mock.patch.dict(sys.modules, dict.fromkeys(["mlx", "mlx.core"])):
            self.collected({"mlx.enabled": False})
            self.collected({"mlx.enabled": True, "quant_schemes": [], "delta_pairs": []})
        self.assertEqual(self.warnings(), [])

    def test_scheme_failed(self) -> None:
        name = "model.layers.0.mlp.experts.{}.gate_proj.weight"
        self.write_model({name.format(e): random_weights(8, 48, seed=e) for e in range(4)})
        scheme = {"name": "odd", "mode": "affine", "bits": 4, "group_size": 32, "enabled": True}
        self.collected({"mlx.enabled": True, "quant_schemes": [scheme]})
        rows = self.frame("data/quant_sim")
        causes = set(rows["error"])
        self.assertEqual(len(causes), 1)
        cause = causes.pop()
        self.assertTrue(cause.startswith("ValueError: [quantize] "), cause)
        names = ", ".join(f"{name.format(e)}::gate_proj" for e in range(3))
        self.assertEqual(
            self.warnings(),
            [f"[quant_sim] scheme=odd failed: {cause} [4 matrices ({names}, ...)]"],
        )
        self.assertTrue(rows["w_rel_fro"].isna().all())
        self.assertEqual(len(self.frame("data/matrix_stats")), 4)


class WarningsTable(CommandCase):
    def test_has_the_text_first_and_says_what_it_is_about(self) -> None:
        self.write_model(n_shards=2, index=True)
        (self.model / shard_name(2, 2)).unlink()
        self.collected()
        warnings = self.frame("logs/warnings")
        self.assertEqual(
            list(warnings.columns), ["warning", "kind", "file", "tensor", "count", "hint"]
        )
        self.assertEqual(set(warnings["kind"]), {"index", "coverage"})

    def test_is_pointed_at_when_the_console_shows_only_ten(self) -> None:
        self.write_model()
        outcome = self.collected({f"key{number:02d}": 1 for number in range(12)})
        shown = [line for line in outcome.out.splitlines() if line.startswith("[warn]")]
        self.assertEqual(len(shown), 11)
        self.assertEqual(shown[9], "[warn] [config] unknown key: key09")
        self.assertEqual(shown[10], "[warn] ... and 2 more in logs/warnings.parquet")
        self.assertIn("[collect] warnings rows: 12 (logs/warnings.parquet)\n", outcome.out)

    def test_goes_away_with_its_reasons(self) -> None:
        self.write_model()
        self.collected({"colour": 1})
        self.assertEqual(self.files("logs").count("logs/warnings.parquet"), 1)
        self.collected()
        self.assertEqual(self.files("logs").count("logs/warnings.parquet"), 0)
        health = self.log("run_health.json")["outputs_written"]
        self.assertEqual((health["wrote_warnings"], health["warnings_rows"]), (False, 0))


if __name__ == "__main__":
    unittest.main()
