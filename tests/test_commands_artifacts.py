"""Every artifact of a run is there, whole, and agrees with the others."""

from __future__ import annotations

import hashlib
import json
import re
import unittest
from collections.abc import Mapping
from typing import Any

from moe_weights.config.load import load_config
from moe_weights.config.schema import AnalysisConfig
from tests.support.command_line import CommandCase, expert_tensors, random_weights, run_command

TABLES = ("tensor_inventory", "matrix_stats", "quant_sim", "unmatched_tensors")
ALL_TABLES = (*TABLES, "coverage")
STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
RAW = "model.layers.0.mlp.experts.raw.weight"
SUMMARIES = [
    f"tables/{kind}_{level}_summary"
    for kind in ("A_weight", "B_quant")
    for level in ("layer", "block4", "global")
]


class WholeRun(CommandCase):
    """A run with an index, a config.json, an unmatched tensor, a raw token and warnings."""

    CHANGES: Mapping[str, Any] = {}
    SUFFIX = "parquet"

    def setUp(self) -> None:
        super().setUp()
        self.write_model(
            expert_tensors()
            | {
                "model.layers.0.mlp.experts.0.odd.weight": random_weights(2, 32),
                RAW: random_weights(2, 8, 64),
            },
            n_shards=3,
            index=True,
            config={"hidden_size": 64, "moe_intermediate_size": 32, "num_local_experts": 2},
        )
        (self.model / "extra.safetensors").write_bytes(b"never opened")
        self.rule = {
            "name": "raw",
            "match": r".*experts\.(raw)\.weight$",
            "layout": {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
            "proj_group": 1,
        }
        self.changes = {
            "mlx.enabled": True,
            "metadata.enabled": True,
            "extract_rules[2]": self.rule,
            "unknown": 1,
            **self.CHANGES,
        }
        self.outcome = self.collected(self.changes)
        self.manifest = self.log("write_manifest.json")
        self.health = self.log("run_health.json")

    def test_has_every_artifact(self) -> None:
        self.assertEqual(
            self.files("data", "logs", "tables"),
            sorted(
                [
                    *(f"data/{name}.{self.SUFFIX}" for name in ALL_TABLES),
                    f"logs/proj_canonicalization_report.{self.SUFFIX}",
                    f"logs/warnings.{self.SUFFIX}",
                    "logs/coverage.json",
                    "logs/index_report.json",
                    "logs/model_config.raw.json",
                    "logs/model_shape_budget.json",
                    "logs/run_context.json",
                    "logs/run_health.json",
                    "logs/write_manifest.json",
                ]
            ),
        )
        self.assertEqual(self.files("cache"), ["cache/run.lock"])

    def test_counts_agree_between_files_manifest_health_and_console(self) -> None:
        written = self.health["outputs_written"]
        for name in (*ALL_TABLES, "warnings", "proj_canonicalization_report"):
            entry = self.manifest["artifacts"][name]
            n_rows = len(self.frame(entry["path"]))
            self.assertEqual(entry["rows"], n_rows, name)
            if name in TABLES or name == "warnings":
                self.assertEqual(written[f"{name}_rows"], n_rows, name)
                self.assertIn(
                    f"[collect] {name} rows: {n_rows} ({entry['path']})\n", self.outcome.out
                )
        self.assertEqual(
            {name: written[name] for name in written if not name.endswith("_rows")},
            {
                "format": self.CHANGES.get("output.format", "parquet"),
                "wrote_unmatched_tensors": True,
                "wrote_warnings": True,
                "wrote_index_report": True,
            },
        )
        self.assertEqual(len(self.frame("data/matrix_stats")), 8)
        self.assertEqual(len(self.frame("data/quant_sim")), 24)

    def test_manifest_names_each_table_and_hashes_each_other_log(self) -> None:
        self.assertEqual(
            set(self.manifest["artifacts"]),
            {*ALL_TABLES, "warnings", "proj_canonicalization_report"},
        )
        for entry in self.manifest["artifacts"].values():
            self.assertEqual(set(entry), {"path", "format", "fallback", "error", "rows"})
            self.assertTrue((self.path / entry["path"]).is_file())
        self.assertEqual(
            self.manifest["json_artifacts"],
            {
                name: {
                    "path": f"logs/{name}.json",
                    "sha256": hashlib.sha256(
                        (self.path / "logs" / f"{name}.json").read_bytes()
                    ).hexdigest(),
                }
                for name in (
                    "coverage",
                    "index_report",
                    "model_config.raw",
                    "model_shape_budget",
                    "run_context",
                    "run_health",
                )
            },
        )

    def test_health_tells_what_was_done(self) -> None:
        self.assertEqual(self.health["status"], "success")
        self.assertGreater(self.health["duration_seconds"], 0)
        self.assertEqual(
            self.health["run"],
            {
                "run_dir": str(self.path),
                "model_id": "org/model",
                "run_name": "first",
                "created_at": "2026-01-02T03:04:05Z",
                "model_path": str(self.model),
            },
        )
        self.assertEqual(self.health["scan_summary"], {"files_scanned": 3, "tensors_observed": 9})
        summary = self.health["extraction_summary"]
        self.assertEqual(
            {
                key: summary[key]
                for key in (
                    "extracted_by_rule",
                    "extracted_by_preset",
                    "extracted_by_fallback",
                    "unmatched_expertish",
                )
            },
            {
                "extracted_by_rule": 7,
                "extracted_by_preset": 0,
                "extracted_by_fallback": 0,
                "unmatched_expertish": 1,
            },
        )
        self.assertIsNone(self.health["preset"])
        self.assertEqual(
            self.health["tensor_name_examples"]["unmatched_expertish"],
            ["model.layers.0.mlp.experts.0.odd.weight"],
        )
        self.assertEqual(len(self.health["tensor_name_examples"]["rule_extracted"]), 7)
        self.assertEqual(
            [rule["name"] for rule in self.health["tensor_name_formats"]["enabled_extract_rules"]],
            ["generic_3d_expert_bank_separate", "generic_2d_per_expert_separate", "raw"],
        )

    def test_health_holds_a_config_that_gives_the_same_run_again(self) -> None:
        loaded = load_config(self.run_directory.config_path)
        used = self.health["config_used"]
        self.assertEqual(used["model_path"], str(self.model))
        self.run_directory.config_path.write_text(json.dumps(used), encoding="utf-8")
        again = load_config(self.run_directory.config_path)
        self.assertEqual(again.config.model_dump(), AnalysisConfig.model_dump(loaded.config))

    def test_times_have_one_form(self) -> None:
        for name in ("run_context.json", "run_health.json", "write_manifest.json"):
            self.assertRegex(self.log(name)["generated_at"], STAMP)

    def test_json_logs_have_sorted_keys_and_two_spaces(self) -> None:
        paths = list((self.path / "logs").glob("*.json"))
        self.assertIn("run_health.json", {path.name for path in paths})
        for path in paths:
            text = path.read_text(encoding="utf-8")
            dumped = json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False)
            self.assertEqual(text, dumped + "\n", path.name)

    def test_context_and_health_agree_on_the_index(self) -> None:
        summary, state = self.health["index_summary"], self.log("run_context.json")["index"]
        for key in ("active", "parsed", "used_for_scan", "index_path"):
            self.assertEqual(summary[key], state[key])
        self.assertEqual(summary["expected_shards_count"], 3)
        self.assertEqual(summary["extra_safetensors_files_on_disk_count"], 1)

    def test_tables_are_built_from_it(self) -> None:
        outcome = run_command("build-tables", "--run-dir", self.path)
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertTrue(outcome.out.endswith("[build_tables] wrote tables/ A_* and B_*\n"))
        self.assertEqual(
            self.files("tables"),
            sorted(f"{name}.{self.SUFFIX}" for name in [*SUMMARIES, "tables/B_quant_deltas"]),
        )
        artifacts = self.log("tables_write_manifest.json")["artifacts"]
        for name, entry in artifacts.items():
            self.assertEqual(entry["path"], f"tables/{name}.{self.SUFFIX}")
            self.assertEqual(entry["rows"], len(self.frame(entry["path"])))

    def test_a_second_run_gives_the_same_content(self) -> None:
        def content() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for file in self.files("data", "logs"):
                if not file.endswith(".json"):
                    found[file] = (self.path / file).read_bytes()
                    continue
                log = dict(json.loads((self.path / file).read_text(encoding="utf-8")))
                for key in ("generated_at", "duration_seconds", "json_artifacts", "memory"):
                    log.pop(key, None)
                (log.get("quantisation_self_check") or {}).pop("seconds", None)
                found[file] = log
            return found

        first = content()
        self.collected(self.changes, "--workers", 1)
        self.assertEqual(content(), first)


class WholeCsvRun(WholeRun):
    CHANGES: Mapping[str, Any] = {"output.format": "csv"}
    SUFFIX = "csv"

    def test_replaced_by_parquet_leaves_no_csv(self) -> None:
        self.collected(self.changes | {"output.format": "parquet"})
        self.assertEqual([file for file in self.files("data", "logs") if file.endswith(".csv")], [])


class WholeRunWithAnInvalidCodec(WholeRun):
    CHANGES: Mapping[str, Any] = {"output.compression": "invalid-codec"}
    SUFFIX = "csv"

    def test_tells_of_each_fallback(self) -> None:
        for name, entry in self.manifest["artifacts"].items():
            self.assertEqual((entry["format"], entry["fallback"]), ("csv", True), name)
            self.assertRegex(entry["error"], r"^\w+: .*invalid-codec", name)
            self.assertIn(
                f"[warn] parquet write failed ({entry['error']}); wrote {entry['path']}\n",
                self.outcome.out,
            )
        self.assertEqual(self.manifest["requested_format"], "parquet")
        self.assertEqual(self.manifest["requested_compression"], "invalid-codec")
        self.assertEqual(self.health["outputs_written"]["format"], "parquet")

    def test_tables_tell_of_theirs(self) -> None:
        outcome = run_command("build-tables", "--run-dir", self.path)
        entry = self.log("tables_write_manifest.json")["artifacts"]["A_weight_layer_summary"]
        self.assertTrue(entry["fallback"])
        self.assertIn(f"[warn] parquet write failed ({entry['error']}); wrote", outcome.out)


if __name__ == "__main__":
    unittest.main()
