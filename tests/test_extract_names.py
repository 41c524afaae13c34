from __future__ import annotations

import unittest
from typing import Any

from moe_weights.config.load import parse_config
from moe_weights.extract.names import NameReader, is_side_tensor, parse_id
from tests.support.config_documents import make_config_document


def reader(**parsing: Any) -> NameReader:
    changes = {f"parsing.{key}": value for key, value in parsing.items()}
    return NameReader(parse_config(make_config_document(changes)).parsing)


class Ids(unittest.TestCase):
    def test_come_from_the_first_capture_group(self) -> None:
        name = "model.layers.12.mlp.experts.345.up_proj.weight"
        self.assertEqual((reader().layer_id(name), reader().expert_id(name)), (12, 345))

    def test_are_found_at_the_start_and_at_the_end_of_a_name(self) -> None:
        self.assertEqual(reader().layer_id("layers.3"), 3)
        self.assertEqual(reader().expert_id("experts.0"), 0)

    def test_are_none_where_the_pattern_does_not_match(self) -> None:
        for name in ("model.players.3.x", "model.layers.x.y", "model.layers.3x"):
            self.assertIsNone(reader().layer_id(name), name)
        self.assertIsNone(reader().expert_id("mlp.shared_experts.0.up_proj"))

    def test_are_none_where_the_capture_is_no_number(self) -> None:
        named = reader(expert_regex=r"expert_(\w+)", layer_regex=r"(?:block(\d+)|blk)")
        self.assertIsNone(named.expert_id("x.expert_one.w1"))
        self.assertEqual(named.expert_id("x.expert_07.w1"), 7)
        self.assertIsNone(named.layer_id("blk.w1"))

    def test_a_text_is_an_id_only_when_made_of_ascii_digits(self) -> None:
        texts = ("7", "007", "0", "-1", "+1", " 1", "1.0", "", "²", "٣", None)
        self.assertEqual(
            [parse_id(text) for text in texts],
            [7, 7, 0, None, None, None, None, None, None, None, None],
        )


class ExpertWords(unittest.TestCase):
    def test_one_expert_keyword_suffices_in_any_case(self) -> None:
        for name in ("mlp.Experts.0.w1", "mlp.switch_mlp.up_proj", "mlp.shared_experts.w1"):
            self.assertTrue(reader().looks_like_expert(name), name)
        for name in ("mlp.expert.w1", "mlp.gate.weight", "mlp.shared.w1"):
            self.assertFalse(reader().looks_like_expert(name), name)

    def test_all_shared_keywords_are_needed_and_suffice(self) -> None:
        self.assertTrue(reader().looks_like_expert("mlp.SHARED_expert.w1"))
        self.assertTrue(reader().is_shared_expert("mlp.SHARED_expert.w1"))
        self.assertFalse(reader().is_shared_expert("mlp.experts.0.w1"))
        self.assertFalse(reader().is_shared_expert("mlp.shared_mlp.w1"))

    def test_an_empty_shared_list_means_none_is_shared(self) -> None:
        none = reader(shared_expert_keywords=[])
        self.assertFalse(none.is_shared_expert("mlp.shared_expert.w1"))
        self.assertFalse(none.looks_like_expert("mlp.shared_expert.w1"))
        self.assertTrue(none.looks_like_expert("mlp.shared_experts.w1"))

    def test_an_empty_expert_list_leaves_the_shared_ones(self) -> None:
        none = reader(expert_keywords=[])
        self.assertFalse(none.looks_like_expert("mlp.experts.0.w1"))
        self.assertTrue(none.looks_like_expert("mlp.shared_experts.w1"))

    def test_keywords_of_the_config_count_in_any_case(self) -> None:
        own = reader(expert_keywords=["FFN_bank"], shared_expert_keywords=["Common"])
        self.assertTrue(own.looks_like_expert("x.ffn_BANK.w1"))
        self.assertTrue(own.is_shared_expert("x.common.w1"))
        self.assertFalse(own.looks_like_expert("x.experts.w1"))


class SideTensors(unittest.TestCase):
    def test_are_told_by_the_last_segment_or_an_adapter(self) -> None:
        for name in (
            "bias", "x.scales", "x.qweight", "x.g_idx", "x.SCB", "x.gate_up_proj_blocks",
            "x.gate_up_proj_scales", "x.fc_bias", "x.weight_zero_point", "x.w_scale_inv",
            "x.lora_A.weight", "x.lora_B", "lora.up.weight", "x.LORA_a.default.weight",
            "x.lora_embedding_A", "x.vera_lambda_b", "x.oft_r", "x.ia3_l",
        ):  # fmt: skip
            self.assertTrue(is_side_tensor(name), name)

    def test_are_not_told_by_other_segments(self) -> None:
        for name in ("weight", "x.bias.weight", "x.scales.0", "x.explora_a.weight", "x.loraine"):
            self.assertFalse(is_side_tensor(name), name)
