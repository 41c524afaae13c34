from __future__ import annotations

import unittest
from pathlib import Path

from moe_weights.run_directory import INIT_FOLDERS, RunDirectory

RUN = RunDirectory(Path("/runs/org/model/first"))


class Paths(unittest.TestCase):
    def test_are_those_of_the_contract(self) -> None:
        relative = {
            RUN.manifest_path: "manifest.json",
            RUN.config_path: "analysis_config.json",
            RUN.config_schema_path: "analysis_config.schema.json",
            RUN.lock_path: "cache/run.lock",
            RUN.parts_path: "cache/parts",
            RUN.sampled_indices_path: "cache/sampled_indices",
            RUN.data_path("matrix_stats"): "data/matrix_stats",
            RUN.table_path("A_weight_layer_summary"): "tables/A_weight_layer_summary",
            RUN.log_table_path("warnings"): "logs/warnings",
            RUN.log_path("run_health.json"): "logs/run_health.json",
        }
        for path, text in relative.items():
            self.assertEqual(RUN.relative(path), text)

    def test_outside_the_run_have_no_relative_form(self) -> None:
        with self.assertRaises(ValueError):
            RUN.relative(Path("/runs/org/model/second/x"))

    def test_begin_with_the_folders_that_init_makes(self) -> None:
        self.assertEqual(
            INIT_FOLDERS,
            ("logs", "data", "tables", "cache", "cache/sampled_indices", "plots", "plots/summary",
             "plots/global", "plots/block4", "plots/layer"),
        )  # fmt: skip


if __name__ == "__main__":
    unittest.main()
