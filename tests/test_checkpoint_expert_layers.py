"""Are the layers with experts those that the selecting keys of config.json name?"""

from __future__ import annotations

import unittest
from typing import cast

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_expectation import expect_experts
from tests.support.expert_configs import MIXTRAL, Config, main_stack, moe_layers

try:
    from hypothesis import given
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error


class KeysSelectTheLayers(unittest.TestCase):
    def test_nothing_selects_so_all_layers_have_experts(self) -> None:
        for model_type in ("mixtral", "olmoe", "gpt_oss", "qwen3_5_moe_text", "minimax_m2"):
            with self.subTest(model_type=model_type):
                self.assertEqual(moe_layers(model_type=model_type), (0, 1, 2, 3, 4, 5))

    def test_nothing_selects_in_families_with_dense_layers_so_they_are_unknown(self) -> None:
        for model_type in ("deepseek_v3", "glm4v_moe_text", "lfm2_moe", "step3p5", "jamba"):
            with self.subTest(model_type=model_type):
                self.assertIsNone(moe_layers(model_type=model_type))

    def test_deepseek_and_glm_first_dense_layers(self) -> None:
        self.assertEqual(moe_layers(first_k_dense_replace=2), (2, 3, 4, 5))
        self.assertEqual(moe_layers(first_k_dense_replace=1, moe_layer_freq=2), (2, 4))
        self.assertEqual(moe_layers(first_k_dense_replace=0, moe_layer_freq=1), tuple(range(6)))

    def test_other_names_of_first_dense_layers(self) -> None:
        for name in (
            "num_dense_layers",  # AFMoE, LFM2
            "dense_mlp_idx",  # Inkling
            "moe_layer_num_skipped",  # Hunyuan
        ):
            with self.subTest(name=name):
                self.assertEqual(moe_layers(**{name: 4}), (4, 5))

    def test_lists_of_flags(self) -> None:
        flags = [0, 1, 0, 1, 1, 0]
        self.assertEqual(moe_layers(moe_layer_freq=flags), (1, 3, 4))  # MiMo, MiniMax-M3
        self.assertEqual(moe_layers(is_moe_layer=[bool(i) for i in flags]), (1, 3, 4))
        self.assertEqual(moe_layers(moe_layer_freq=flags, first_k_dense_replace=2), (3, 4))

    def test_qwen_sparse_step_and_dense_layers(self) -> None:
        self.assertEqual(moe_layers(decoder_sparse_step=2), (1, 3, 5))
        self.assertEqual(moe_layers(decoder_sparse_step=1, mlp_only_layers=[]), tuple(range(6)))
        self.assertEqual(moe_layers(decoder_sparse_step=2, mlp_only_layers=[3]), (1, 5))

    def test_llama_4(self) -> None:
        self.assertEqual(moe_layers(interleave_moe_layer_step=2), (1, 3, 5))
        self.assertEqual(moe_layers(interleave_moe_layer_step=1, moe_layers=[5, 0]), (0, 5))

    def test_kinds_of_every_layer(self) -> None:
        kinds = ["dense", "sparse", "moe", "hash_moe", "mlp", "sparse"]
        self.assertEqual(moe_layers(mlp_layer_types=kinds), (1, 2, 3, 5))
        # The list decides alone (EXAONE-MoE, DeepSeek-V3.2).
        self.assertEqual(moe_layers(mlp_layer_types=kinds, first_k_dense_replace=3), (1, 2, 3, 5))

    def test_entries_past_the_last_layer_are_of_prediction_layers(self) -> None:
        self.assertEqual(moe_layers(mlp_layer_types=["dense"] * 5 + ["sparse"] * 4), (5,))
        self.assertEqual(moe_layers(moe_layers_enum="4,5,6"), (4, 5))

    def test_nemotron_h_blocks(self) -> None:
        blocks = ["mamba", "moe", "attention", "moe"]
        stack = main_stack(layers_block_type=blocks, num_hidden_layers=99)
        self.assertEqual((stack.n_layers, stack.moe_layers), (4, (1, 3)))
        pattern = main_stack(model_type="nemotron_h", hybrid_override_pattern="M-E|*EM")
        self.assertEqual((pattern.n_layers, pattern.moe_layers), (6, (2, 4)))

    def test_granite_hybrid_blocks_say_nothing_about_experts(self) -> None:
        layers = moe_layers(model_type="granitemoehybrid", layer_types=["mamba"] * 6)
        self.assertEqual(layers, tuple(range(6)))

    def test_jamba(self) -> None:
        layers = moe_layers(model_type="jamba", expert_layer_period=2, expert_layer_offset=1)
        self.assertEqual(layers, (1, 3, 5))

    def test_ernie(self) -> None:
        layers = moe_layers(
            model_type="ernie4_5_moe",
            moe_layer_start_index=1,
            moe_layer_end_index=4,
            moe_layer_interval=2,
        )
        self.assertEqual(layers, (1, 3))
        layers = moe_layers(moe_layer_start_index=1, moe_layer_end_index=-1)
        self.assertEqual(layers, (1, 2, 3, 4, 5))

    def test_step_list_of_ids(self) -> None:
        self.assertEqual(moe_layers(model_type="step3p5", moe_layers_enum="3, 4,5"), (3, 4, 5))
        self.assertEqual(moe_layers(model_type="step3p5", moe_layers_enum=[4, 5]), (4, 5))

    def test_arctic_and_nomic(self) -> None:
        self.assertEqual(moe_layers(model_type="arctic", moe_layer_frequency=2), (1, 3, 5))
        self.assertEqual(moe_layers(model_type="nomic_bert", moe_every_n_layers=2), (1, 3, 5))

    @given(
        n_layers=st.integers(0, 40),
        first=st.integers(0, 40),
        step=st.integers(1, 7),
        dense=st.lists(st.integers(0, 40)),
    )
    def test_selecting_keys_agree_with_counting_layer_by_layer(
        self, n_layers: int, first: int, step: int, dense: list[int]
    ) -> None:
        expected = tuple(
            layer
            for layer in range(n_layers)
            if layer >= first and (layer + 1) % step == 0 and layer not in dense
        )
        config: Config = {
            **MIXTRAL,
            "num_hidden_layers": n_layers,
            "first_k_dense_replace": first,
            "decoder_sparse_step": step,
            "mlp_only_layers": cast("JsonValue", dense),
        }
        found = [stack.moe_layers for stack in expect_experts(config).stacks]
        self.assertEqual(found, [expected] if expected else [])


class WhatIsNotUnderstoodStaysUnknown(unittest.TestCase):
    def test_a_selecting_key_that_holds_no_such_value(self) -> None:
        for name, value in (
            ("first_k_dense_replace", "three"),
            ("decoder_sparse_step", -1),
            ("decoder_sparse_step", "two"),
            ("mlp_only_layers", 3),
            ("mlp_only_layers", ["a"]),
            ("moe_layer_freq", 0),
            ("moe_layer_freq", [0, 1]),
            ("moe_layer_freq", [0, 1, 2, 1, 1, 1]),
            ("expert_layer_period", 2),
            ("moe_every_n_layers", 1),
            ("moe_layer_start_index", ["a"]),
            ("moe_layer_end_index", []),
            ("mlp_layer_types", ["sparse"] * 5),
            ("mlp_layer_types", ["sparse"] * 5 + ["other"]),
            ("mlp_layer_types", [["sparse"]] * 6),
            ("moe_layers", [1, -2]),
            ("moe_layers_enum", "1,b"),
        ):
            with self.subTest(name=name, value=value):
                self.assertIsNone(moe_layers(**{name: value}))

    def test_a_selecting_key_of_an_unknown_name(self) -> None:
        for name in ("moe_layer_stride_every", "num_sparse_layers", "dense_layer_ids"):
            with self.subTest(name=name):
                self.assertIsNone(moe_layers(**{name: 3}))
                self.assertEqual(moe_layers(**{name: None}), tuple(range(6)))

    def test_keys_that_only_look_selecting_do_not_count(self) -> None:
        for name in ("mtp_mlp_layer_types", "sparse_attention_freq", "moe_router_layers"):
            with self.subTest(name=name):
                self.assertEqual(moe_layers(**{name: [1, 2]}), tuple(range(6)))

    def test_the_number_of_layers(self) -> None:
        for n_layers in (None, "many", -1, 10**12):
            with self.subTest(n_layers=n_layers):
                stack = main_stack(num_hidden_layers=n_layers)
                self.assertEqual((stack.n_layers, stack.moe_layers), (None, None))

    def test_kinds_are_known_where_the_number_of_layers_is_not(self) -> None:
        stack = main_stack(num_hidden_layers=None, mlp_layer_types=["dense", "sparse"])
        self.assertEqual((stack.n_layers, stack.moe_layers), (None, (1,)))

    def test_sizes(self) -> None:
        stack = main_stack(hidden_size=None, moe_intermediate_size="wide", num_experts="some")
        self.assertEqual(
            (stack.hidden_size, stack.expert_widths, stack.n_experts), (None, (), None)
        )
        self.assertIsNone(main_stack(num_experts=-3).n_experts)

    def test_two_numbers_of_experts_that_disagree(self) -> None:
        self.assertIsNone(main_stack(num_local_experts=16).n_experts)

    def test_blocks_described_one_by_one(self) -> None:
        stack = main_stack(block_configs=[{"ffn": {"moe": {"num_local_experts": 4}}}])
        self.assertEqual((stack.n_experts, stack.expert_widths), (None, ()))

    def test_experts_that_are_no_bank_of_matrices(self) -> None:
        # An expert of Doge is a row of an embedding, one of ViTPose+ a single matrix.
        for model_type in ("doge", "vitpose_backbone"):
            with self.subTest(model_type=model_type):
                stack = main_stack(model_type=model_type, is_moe=True)
                self.assertEqual((stack.n_experts, stack.hidden_size), (8, None))
                self.assertEqual(stack.expert_widths, ())


if __name__ == "__main__":
    unittest.main()
