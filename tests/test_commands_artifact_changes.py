"""Which artifacts come and go with config, packages and content."""

from __future__ import annotations

import contextlib
import sys
import unittest
from collections.abc import Mapping
from typing import Any
from unittest import mock

import pandas as pd

from moe_weights.commands import collected_artifacts
from moe_weights.errors import OutputError
from tests.support.checkpoints import shard_name
from tests.support.command_line import CommandCase, random_weights, run_command

SUMMARIES = [
    f"tables/{kind}_{level}_summary"
    for kind in ("A_weight", "B_quant")
    for level in ("layer", "block4", "global")
]


class WithoutPyarrow(CommandCase):
    def test_a_run_and_its_tables_come_as_csv(self) -> None:
        self.write_model()
        self.collected()
        parquet = self.frame("data/matrix_stats")
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                mock.patch.dict(sys.modules, {"pyarrow": None, "pyarrow.parquet": None})
            )
            self.collected()
            entry = self.log("write_manifest.json")["artifacts"]["matrix_stats"]
            self.assertTrue(entry["fallback"])
            self.assertRegex(entry["error"], "^(ImportError|ModuleNotFoundError): ")
            self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 0)
        self.assertEqual(
            [file for file in self.files("data", "tables") if file.endswith(".parquet")], []
        )
        csv = self.frame("data/matrix_stats")
        csv["stack"] = csv["stack"].fillna("")  # CSV has one form for an empty text and for null
        pd.testing.assert_frame_equal(csv, parquet, check_dtype=False)


class EmptyRun(CommandCase):
    def test_carries_every_column_through_to_the_tables(self) -> None:
        self.write_model({"model.norm.weight": random_weights(8)}, n_shards=1)
        full = self.collected()
        self.assertIn("[collect] matrix_stats rows: 0 (data/matrix_stats.parquet)\n", full.out)
        for file_format in ("parquet", "csv"):
            self.collected({"output.format": file_format})
            for name in ("matrix_stats", "quant_sim", "unmatched_tensors"):
                frame = self.frame(f"data/{name}")
                self.assertEqual(len(frame), 0)
                self.assertGreater(len(frame.columns), 5)
            self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 0)
            for name in SUMMARIES:
                frame = self.frame(name)
                self.assertEqual(len(frame), 0)
                self.assertGreater(len(frame.columns), 5)


class ReplacedRun(CommandCase):
    def test_loses_the_artifacts_that_no_longer_apply(self) -> None:
        self.write_model(n_shards=2, index=True, config={"hidden_size": 64})
        self.collected({"metadata.enabled": True, "unknown": 1})
        optional = ["index_report.json", "model_config.raw.json", "model_shape_budget.json"]
        self.assertLessEqual({f"logs/{name}" for name in optional}, set(self.files("logs")))
        self.collected({"scan.use_safetensors_index_json": False})
        self.assertEqual(
            self.files("logs"),
            [
                f"logs/{name}.json"
                for name in ("coverage", "run_context", "run_health", "write_manifest")
            ],
        )
        self.assertEqual(
            set(self.log("write_manifest.json")["json_artifacts"]),
            {"coverage", "run_context", "run_health"},
        )

    def test_takes_away_the_summaries_of_the_data_it_replaces(self) -> None:
        self.write_model()
        self.collected()
        run_command("build-tables", "--run-dir", self.path)
        self.assertEqual(len(self.files("tables")), 7)
        self.collected()
        self.assertEqual(self.files("tables"), [])
        self.assertNotIn("logs/tables_write_manifest.json", self.files("logs"))

    def test_takes_away_why_those_could_not_be_made(self) -> None:
        self.write_model()
        self.collected()
        with mock.patch("moe_weights.commands.build_tables.read_sources", side_effect=OutputError):
            run_command("build-tables", "--run-dir", self.path)
        self.assertIn("logs/tables_failure.json", self.files("logs"))
        self.collected()
        self.assertNotIn("logs/tables_failure.json", self.files("logs"))

    def test_leaves_no_two_tables_of_different_runs_when_it_is_stopped_between_them(self) -> None:
        self.write_model()
        self.collected()
        write_table = collected_artifacts.write_table

        def stop(run: Any, table: Any, *arguments: Any, **options: Any) -> Any:
            if table.schema.name == "quant_sim":
                raise KeyboardInterrupt
            return write_table(run, table, *arguments, **options)

        self.configure({"stats.eps": 1e-3})
        with mock.patch.object(collected_artifacts, "write_table", stop):
            self.assertEqual(self.collect().code, 130)
        outcome = run_command("build-tables", "--run-dir", self.path)
        self.assertEqual(outcome.code, 5)
        self.assertIn("no quant_sim in this run", outcome.err)

    def test_does_not_list_what_build_tables_wrote(self) -> None:
        self.write_model()
        self.collected()
        run_command("build-tables", "--run-dir", self.path)
        self.collected()
        self.assertEqual(
            set(self.log("write_manifest.json")["json_artifacts"]),
            {"coverage", "run_context", "run_health"},
        )


class ModelConfigLogs(CommandCase):
    ON: Mapping[str, Any] = {"metadata.enabled": True}

    def test_hold_the_config_and_its_budget(self) -> None:
        config = {
            "model_type": "x",
            "hidden_size": 64,
            "n_layer": "2",
            "num_experts": True,
            "mlp_only_layers": [0, "1"],
            "time_step_limit": [0.0, float("inf")],
        }
        self.write_model(config=config)
        outcome = self.collected(self.ON)
        self.assertEqual(outcome.out.splitlines()[0], "[meta] hidden=64 layers=2")
        self.assertEqual(
            self.log("model_config.raw.json"), config | {"time_step_limit": [0.0, "Infinity"]}
        )
        budget = self.log("model_shape_budget.json")
        self.assertEqual(budget["config_path"], f"{self.model}/config.json")
        self.assertEqual(
            {key: value for key, value in budget["shape_budget"].items() if value is not None},
            {"hidden_size": 64, "num_hidden_layers": 2, "mlp_only_layers": [0, 1]},
        )
        self.assertIsNone(budget["shape_budget"]["num_experts"])

    def test_tell_where_a_nested_value_came_from(self) -> None:
        self.write_model(config={"text_config": {"hidden_size": 64, "num_experts": 2}})
        outcome = self.collected(self.ON)
        self.assertEqual(outcome.out.splitlines()[0], "[meta] hidden=64 experts=2")
        self.assertEqual(
            self.log("model_shape_budget.json")["origins"],
            {"hidden_size": "text_config.hidden_size", "num_experts": "text_config.num_experts"},
        )

    def test_are_trimmed_when_the_config_is_huge(self) -> None:
        self.write_model(config={"hidden_size": 64, "vocabulary": "x" * 200_000})
        self.collected(self.ON)
        raw = self.log("model_config.raw.json")
        self.assertEqual(raw["hidden_size"], 64)
        self.assertNotIn("vocabulary", raw)
        self.assertEqual(set(raw["_meta_trimmed"]), {"original_keys", "original_chars"})

    def test_come_from_the_named_file_first(self) -> None:
        self.write_model(config={"hidden_size": 1})
        (self.model / "hf").mkdir()
        (self.model / "hf" / "other.json").write_text('{"hidden_size": 64}', encoding="utf-8")
        self.collected(self.ON | {"metadata.config_path": "hf/other.json"})
        self.assertEqual(
            self.log("model_shape_budget.json")["config_path"], f"{self.model}/hf/other.json"
        )


class IndexColumns(CommandCase):
    def test_stand_in_the_inventory_of_an_indexed_run_only(self) -> None:
        self.write_model(n_shards=2, index=True)
        self.collected()
        inventory = self.frame("data/tensor_inventory")
        self.assertEqual(list(inventory.columns)[-3:], ["in_index", "index_shard", "role"])
        self.assertTrue(inventory["in_index"].all())
        self.assertEqual(list(inventory["index_shard"]), list(inventory["file"]))
        self.assertEqual(set(inventory["file"]), {shard_name(1, 2), shard_name(2, 2)})


if __name__ == "__main__":
    unittest.main()
