from __future__ import annotations

import unittest

from moe_weights.config.reference import ConfigKeyReference, config_reference


class ListsEveryKey(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.rows = {row.key: row for row in config_reference()}

    def test_keys_are_unique_and_described(self) -> None:
        self.assertEqual(len(self.rows), len(config_reference()))
        for row in self.rows.values():
            self.assertTrue(row.description.endswith("."), row.key)
            self.assertTrue(row.type, row.key)

    def test_a_default_that_differs_from_the_template(self) -> None:
        self.assertEqual(
            self.rows["metadata.enabled"],
            ConfigKeyReference(
                key="metadata.enabled",
                type="true or false",
                template_default="true",
                absent_default="false",
                description="Read the model's config.json and write the metadata logs.",
            ),
        )

    def test_sections_lists_and_items(self) -> None:
        found = {
            key: (row.type, row.template_default, row.absent_default)
            for key, row in self.rows.items()
        }
        for key, expected in (
            ("$schema", ("string or null", '"./analysis_config.schema.json"', "null")),
            ("scan", ("object", "", "required")),
            ("mlx", ("object", "", "")),
            ("extract_rules", ("list of objects", "", "[]")),
            ("extract_rules[].ndim", ("integer >= 1 or null", "", "null")),
            ("extract_rules[].layout.rows_axis", ("integer >= 0", "", "required")),
            ("extract_rules[].packed_split", ("object or null", "", "null")),
            ("extract_rules[].packed_split.axis", ('"rows" or "cols"', "", "required")),
            ("stats.eps", ("number >= 0", "1e-12", "required")),
            ("stats.metrics", ("list of non-empty strings or null", "", "null")),
            (
                "stats.percentiles_abs",
                (
                    "list of numbers from 0 to 100",
                    "[50.0, 99.0, 99.9]",
                    "[50.0, 99.0, 99.9]",
                ),
            ),
            ("output.compression", ("string or null", '"zstd"', "null")),
        ):
            with self.subTest(key=key):
                self.assertEqual(found[key], expected)
        self.assertEqual(found["parsing.proj_aliases"][0], "object with lists of non-empty strings")
