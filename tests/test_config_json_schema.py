from __future__ import annotations

import json
import unittest
from typing import Any

import jsonschema

from moe_weights.config.json_schema import analysis_config_json_schema
from moe_weights.config.validation import validate_document
from tests.support.config_documents import (
    ABSENT,
    make_config_document,
    make_strange_documents,
)


class ServesEditors(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.schema: dict[str, Any] = json.loads(json.dumps(analysis_config_json_schema()))
        cls.validator = jsonschema.Draft202012Validator(cls.schema)

    def faults(self, changes: dict[str, Any]) -> list[str]:
        document = make_config_document(changes)
        return sorted(error.json_path for error in self.validator.iter_errors(document))

    def test_is_a_schema_of_draft_2020_12(self) -> None:
        self.assertEqual(self.schema["$schema"], "https://json-schema.org/draft/2020-12/schema")
        jsonschema.Draft202012Validator.check_schema(self.schema)

    def test_accepts_the_template(self) -> None:
        self.assertEqual(self.faults({}), [])
        self.assertEqual(self.faults({"$schema": ABSENT}), [])

    def test_refuses_wrong_types_and_values(self) -> None:
        for key, value in (
            ("model_path", 3),
            ("scan", []),
            ("scan.experts_only", "false"),
            ("scan.max_files", 0),
            ("scan.strict_coverage", "true"),
            ("parsing.preset", ""),
            ("parsing.lookalikes", [{"match": "router"}]),
            ("extract_rules[0].proj_map", {"fc1": ""}),
            ("extract_rules[0].encodings", "plain"),
            ("mlx.backend", "gpu"),
            ("stats.eps", -1),
            ("stats.metrics", [1]),
            ("stats.percentiles_abs[0]", 101),
            ("output.format", "xls"),
            ("extract_rules[0].layout.rows_axis", None),
            ("extract_rules[2].packed_split.axis", "row"),
        ):
            with self.subTest(key=key):
                self.assertEqual(len(self.faults({key: value})), 1)

    def test_refuses_missing_keys(self) -> None:
        self.assertEqual(self.faults({"stats.eps": ABSENT}), ["$.stats"])

    def test_flags_unknown_keys_at_every_level(self) -> None:
        for key, place in (
            ("modelpath", "$"),
            ("stats.smaple_seed", "$.stats"),
            ("extract_rules[0].layout.foo", "$.extract_rules[0].layout"),
        ):
            self.assertEqual(self.faults({key: 1}), [place])

    def test_every_key_has_a_description(self) -> None:
        models = [self.schema, *self.schema["$defs"].values()]
        self.assertGreater(len(models), 10)
        for model in models:
            for key, described in model["properties"].items():
                with self.subTest(model=model["title"], key=key):
                    # a section without its own words shows those of its model
                    reference = described.get("$ref", "/").rsplit("/", 1)[1]
                    shown = {**self.schema["$defs"].get(reference, {}), **described}
                    self.assertTrue(shown["description"])

    def test_accepts_whatever_a_run_accepts(self) -> None:
        n_accepted = 0
        for place, document in make_strange_documents():
            validation = validate_document(document)
            if validation.config is not None and not validation.unknown_keys:
                n_accepted += 1
                with self.subTest(place=place):
                    self.assertEqual(list(self.validator.iter_errors(document)), [])
        self.assertGreater(n_accepted, 100)
