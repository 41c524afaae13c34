"""The catalogued lines about projection tokens, produced by collect_data."""

from __future__ import annotations

import unittest

from tests.support.command_line import CommandCase, bank_rule, random_weights

BANK = "model.layers.0.mlp.experts.{}.weight"
REPORT = "logs/proj_canonicalization_report.parquet"


class Projections(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_model(
            {BANK.format(token): random_weights(2, 8, 64, seed=n) for n, token in enumerate("ab")}
        )
        self.group_rule = bank_rule(r".*experts\.(\w+)\.weight$", proj_group=1)

    def test_kept_raw_in_one_line(self) -> None:
        split = bank_rule(
            r".*experts\.a\.weight$",
            packed_split={"axis": "rows", "splits": [4, 4], "projs": ["left", "gate_proj"]},
        )
        group = self.group_rule | {"name": "group"}
        self.collected({"extract_rules": [split, group]})
        self.assertEqual(
            self.warnings(),
            [
                (
                    "[proj] unmapped proj tokens kept raw: packed_split=1, proj_group=1 "
                    f"(unique=2, occurrences=2). See {REPORT}"
                )
            ],
        )
        self.assertEqual(
            self.log("write_manifest.json")["artifacts"]["proj_canonicalization_report"]["path"],
            REPORT,
        )

    def test_unique_counts_context_rule_and_token(self) -> None:
        self.write_model(
            {
                f"model.layers.{layer}.mlp.experts.a.weight": random_weights(2, 8, 64, seed=layer)
                for layer in range(3)
            }
        )
        self.collected({"extract_rules": [self.group_rule]})
        self.assertEqual(
            self.warnings(),
            [
                (
                    "[proj] unmapped proj tokens kept raw: packed_split=0, proj_group=3 "
                    f"(unique=1, occurrences=3). See {REPORT}"
                )
            ],
        )
        report = self.frame("logs/proj_canonicalization_report")
        self.assertEqual(list(report["count"]), [3])

    def test_strict_drops_in_one_line_and_not_among_the_kept(self) -> None:
        self.collected({"extract_rules": [self.group_rule], "parsing.proj_group_strict": True})
        self.assertEqual(
            self.warnings(),
            [
                (
                    "[proj] strict proj_group dropped tensors due to unmapped proj tokens: "
                    f"occurrences=2 (unique=2). See {REPORT}"
                )
            ],
        )
        self.assertEqual(
            list(self.frame("data/unmatched_tensors")["reason"]), ["proj_group_strict_unmapped"] * 2
        )

    def test_kept_and_dropped_stand_in_two_lines_that_count_apart(self) -> None:
        split = bank_rule(
            r".*experts\.a\.weight$",
            packed_split={"axis": "rows", "splits": [4, 4], "projs": ["left", "right"]},
        )
        self.collected(
            {
                "extract_rules": [split, self.group_rule | {"name": "group"}],
                "parsing.proj_group_strict": True,
            }
        )
        self.assertEqual(
            self.warnings(),
            [
                (
                    "[proj] unmapped proj tokens kept raw: packed_split=2, proj_group=0 "
                    f"(unique=2, occurrences=2). See {REPORT}"
                ),
                (
                    "[proj] strict proj_group dropped tensors due to unmapped proj tokens: "
                    f"occurrences=1 (unique=1). See {REPORT}"
                ),
            ],
        )

    def test_point_at_the_csv_report(self) -> None:
        self.collected({"extract_rules": [self.group_rule], "output.format": "csv"})
        self.assertTrue(self.warnings()[0].endswith(". See logs/proj_canonicalization_report.csv"))

    def test_empty_aliases_under_strictness(self) -> None:
        changes = {
            "extract_rules": [self.group_rule],
            "parsing.proj_group_strict": True,
            "parsing.proj_aliases": {},
        }
        start = (
            "[config] parsing.proj_group_strict=true but parsing.proj_aliases is empty; strict "
            "proj_group drops occurred (occurrences=2). "
        )
        dropped = (
            "[proj] strict proj_group dropped tensors due to unmapped proj tokens: "
            f"occurrences=2 (unique=2). See {REPORT}"
        )
        self.collected(changes)
        self.assertEqual(
            self.warnings(),
            [dropped, f"{start}See data/unmatched_tensors.parquet for details."],
        )
        self.assertEqual(
            list(self.frame("data/unmatched_tensors")["reason"]),
            ["proj_group_strict_no_alias_map"] * 2,
        )
        self.collected(changes | {"debug.dump_unmatched_tensors": False})
        self.assertEqual(
            self.warnings(),
            [
                dropped,
                f"{start}Enable debug.dump_unmatched_tensors=true to write unmatched_tensors.*.",
            ],
        )
        self.assertEqual(self.files("data").count("data/unmatched_tensors.parquet"), 0)

    def test_empty_aliases_are_told_of_without_the_expert_filter_too(self) -> None:
        self.collected(
            {
                "extract_rules": [self.group_rule],
                "parsing.proj_group_strict": True,
                "parsing.proj_aliases": {},
                "scan.experts_only": False,
            }
        )
        self.assertIn("(occurrences=2). ", self.warnings()[1])


if __name__ == "__main__":
    unittest.main()
