from __future__ import annotations

import json
import pickle
import unittest
from typing import Any

from pydantic import ValidationError

from moe_weights.config.load import parse_config
from moe_weights.config.rules import ExtractRule, RuleLayout
from moe_weights.config.schema import AnalysisConfig, QuantScheme, StatsConfig
from moe_weights.config.validation import validate_document
from moe_weights.errors import ConfigError
from tests.support.config_documents import make_config_document, make_strange_documents


class IsAFrozenValue(unittest.TestCase):
    def setUp(self) -> None:
        self.config = parse_config(make_config_document())

    def test_cannot_be_changed(self) -> None:
        with self.assertRaises(ValidationError):
            self.config.stats.eps = 1.0  # type: ignore[misc]

    def test_pickles_with_and_without_compiled_expressions(self) -> None:
        self.assertEqual(pickle.loads(pickle.dumps(self.config)), self.config)
        _ = self.config.parsing.layer_pattern, self.config.extract_rules[0].pattern
        again = pickle.loads(pickle.dumps(self.config))
        self.assertEqual(again, self.config)
        self.assertEqual(again.parsing.layer_pattern, self.config.parsing.layer_pattern)

    def test_compiled_expressions_do_not_change_equality(self) -> None:
        _ = self.config.parsing.expert_pattern
        self.assertEqual(self.config, parse_config(make_config_document()))

    def test_sequences_are_tuples(self) -> None:
        self.assertIsInstance(self.config.scan.extensions, tuple)
        self.assertIsInstance(self.config.extract_rules, tuple)
        self.assertIsInstance(self.config.parsing.proj_aliases["gate_proj"], tuple)


class CompilesExpressions(unittest.TestCase):
    def setUp(self) -> None:
        self.config = parse_config(make_config_document())

    def test_layer_and_expert(self) -> None:
        name = "model.layers.12.mlp.experts.7.up_proj.weight"
        layer = self.config.parsing.layer_pattern.search(name)
        expert = self.config.parsing.expert_pattern.search(name)
        assert layer is not None
        assert expert is not None
        self.assertEqual((layer[1], expert[1]), ("12", "7"))

    def test_rule(self) -> None:
        name = "model.layers.12.mlp.experts.7.up_proj.weight"
        match = self.config.extract_rules[1].pattern.match(name)
        assert match is not None
        self.assertEqual(match.groups(), ("7", "up_proj"))


class StandsOnItsOwn(unittest.TestCase):
    def test_parts_are_built_with_defaults(self) -> None:
        layout = RuleLayout(rows_axis=0, cols_axis=1)
        rule = ExtractRule(name="r", match="x", layout=layout)
        self.assertEqual(
            (rule.enabled, rule.ndim, rule.proj_group, rule.expert_group, rule.packed_split),
            (True, None, None, None, None),
        )
        self.assertEqual((layout.layer_axis, layout.expert_axis), (None, None))
        scheme = QuantScheme(name="s", mode="affine")
        self.assertEqual((scheme.bits, scheme.group_size, scheme.enabled), (4, 32, True))
        self.assertIsNone(StatsConfig(eps=0.0).sample_per_matrix)

    def test_parts_check_themselves(self) -> None:
        with self.assertRaises(ValidationError):
            QuantScheme(name="s", mode="affine", bits=0)
        with self.assertRaises(ValidationError):
            ExtractRule(name="r", match="(", layout=RuleLayout(rows_axis=0, cols_axis=1))


class HasTheTopLevelKeysOfTheContract(unittest.TestCase):
    def test_names(self) -> None:
        self.assertEqual(
            list(AnalysisConfig.model_fields),
            [
                "schema_reference",
                "model_path",
                "scan",
                "parsing",
                "metadata",
                "extract_rules",
                "mlx",
                "stats",
                "quant_schemes",
                "delta_pairs",
                "output",
                "debug",
            ],
        )


class NeverFailsOtherwise(unittest.TestCase):
    def test_any_value_at_any_place_gives_a_config_or_its_own_problems(self) -> None:
        for place, document in make_strange_documents():
            with self.subTest(place=place):
                self.check(document)

    def check(self, document: dict[str, Any]) -> None:
        try:
            config = parse_config(document)
        except ConfigError as error:
            self.assertTrue(error.problems)
            for problem in error.problems:
                self.assertTrue(problem.path.startswith("$"))
        else:
            text = json.dumps(config.model_dump(mode="json", by_alias=True))
            again = validate_document(json.loads(text))
            self.assertEqual((again.faults, again.unknown_keys), ((), ()))
            assert again.config is not None
            self.assertEqual(again.config, config.model_copy(update={"schema_reference": None}))
