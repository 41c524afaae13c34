"""Which preset a run uses, and where it says so."""

from __future__ import annotations

import unittest

from tests.support.command_line import expert_tensors
from tests.support.declared_models import ON, DeclaredCase


class PresetInUse(DeclaredCase):
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


if __name__ == "__main__":
    unittest.main()
