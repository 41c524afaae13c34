from __future__ import annotations

import unittest

from moe_weights.config.template import template_config
from moe_weights.extract.projections import ProjectionAliases

TEMPLATE = ProjectionAliases(template_config("/m")["parsing"]["proj_aliases"])  # type: ignore


class InferenceFromNames(unittest.TestCase):
    def test_a_word_counts_only_where_it_touches_no_letter_digit_or_underscore(self) -> None:
        for name, proj in {
            "experts.0.w1.weight": "gate_proj",
            "experts.0.w2.weight": "down_proj",
            "experts.0.w3.weight": "up_proj",
            "w1": "gate_proj",
            "blk.0/ffn_up-exps": "up_proj",
            "experts.gate_up_proj": None,
            "experts.down_proj_bias": None,
            "experts.w13.weight": None,
            "experts.0.xw1.weight": None,
            "experts.0.w1x.weight": None,
            "experts.0.ffn_down_exps.weight": None,
        }.items():
            with self.subTest(name=name):
                self.assertEqual(TEMPLATE.infer(name), proj)

    def test_a_dotted_alias_counts_anywhere(self) -> None:
        self.assertEqual(TEMPLATE.infer("experts.0.gate.weight"), "gate_proj")
        self.assertEqual(TEMPLATE.infer("experts.0.down.weight"), "down_proj")
        self.assertIsNone(TEMPLATE.infer("experts.0.down"))
        self.assertIsNone(TEMPLATE.infer("experts.0.downs.weight"))

    def test_a_single_dot_is_a_word_like_any_other(self) -> None:
        self.assertEqual(ProjectionAliases({"p": (".",)}).infer("a/./b"), "p")
        self.assertIsNone(ProjectionAliases({"p": (".",)}).infer("a.b"))

    def test_case_does_not_matter(self) -> None:
        self.assertEqual(TEMPLATE.infer("Experts.0.W1.Weight"), "gate_proj")
        self.assertEqual(ProjectionAliases({"Gate": ("LINEAR_V",)}).infer("x.linear_v"), "Gate")

    def test_an_alias_is_no_pattern(self) -> None:
        self.assertIsNone(ProjectionAliases({"p": ("w.1",)}).infer("x.wa1.y"))

    def test_the_first_hit_in_the_order_of_the_map_wins(self) -> None:
        name = "experts.gate_proj.up_proj.down_proj.weight"
        self.assertEqual(TEMPLATE.infer(name), "down_proj")
        reversed_map = ProjectionAliases(dict(reversed(TEMPLATE.aliases.items())))
        self.assertEqual(reversed_map.infer(name), "up_proj")

    def test_all_meanings_stand_in_that_order_and_once(self) -> None:
        self.assertEqual(TEMPLATE.infer_all("x.up_proj.w1.gate_proj"), ("gate_proj", "up_proj"))
        self.assertEqual(TEMPLATE.infer_all("x.norm"), ())

    def test_only_a_dotted_hit_could_be_a_router(self) -> None:
        self.assertTrue(TEMPLATE.is_dotted_hit("mlp.gate.weight"))
        self.assertFalse(TEMPLATE.is_dotted_hit("mlp.gate_proj.weight"))
        self.assertFalse(TEMPLATE.is_dotted_hit("mlp.gate.w1.weight"))


class CapturedTokens(unittest.TestCase):
    def test_a_canonical_name_counts_in_any_case(self) -> None:
        self.assertEqual(TEMPLATE.resolve_token("GATE_Proj"), "gate_proj")
        self.assertEqual(ProjectionAliases({"Gate": ()}).resolve_token("gate"), "Gate")

    def test_a_canonical_name_comes_before_any_alias(self) -> None:
        aliases = ProjectionAliases({"a": ("b",), "b": ("a",)})
        self.assertEqual(aliases.resolve_token("b"), "b")

    def test_an_alias_counts_as_in_a_name(self) -> None:
        self.assertEqual(TEMPLATE.resolve_token("W3"), "up_proj")
        self.assertIsNone(TEMPLATE.resolve_token("w13"))
        self.assertIsNone(TEMPLATE.resolve_token("gate"))

    def test_without_aliases_nothing_is_known(self) -> None:
        self.assertIsNone(ProjectionAliases({}).resolve_token("gate_proj"))
        self.assertIsNone(ProjectionAliases({}).infer("gate_proj"))


class Suggestions(unittest.TestCase):
    def test_name_the_closest_word_and_what_it_means(self) -> None:
        self.assertEqual(TEMPLATE.suggest("Gate_Prj"), ("gate_proj", "gate_proj"))
        self.assertEqual(TEMPLATE.suggest("w11"), ("gate_proj", "w1"))

    def test_are_empty_where_nothing_is_close(self) -> None:
        self.assertEqual(TEMPLATE.suggest("router"), ("", ""))
        self.assertEqual(ProjectionAliases({}).suggest("gate"), ("", ""))

    def test_a_word_that_means_two_belongs_to_the_first(self) -> None:
        self.assertEqual(ProjectionAliases({"a": ("w",), "b": ("w",)}).suggest("w"), ("a", "w"))
