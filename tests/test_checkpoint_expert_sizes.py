"""Are numbers and widths of experts read under the names that every family gives them?"""

from __future__ import annotations

import unittest

from moe_weights.checkpoint.expert_expectation import (
    ExpectedStack,
    ModelExpectation,
    expect_experts,
)
from tests.support.expert_configs import Config, main_stack


class SizesAreReadUnderEveryName(unittest.TestCase):
    def test_the_number_of_experts(self) -> None:
        for name in (
            "num_experts",  # Qwen2, OLMoE
            "n_routed_experts",  # DeepSeek
            "num_local_experts",  # Mixtral
            "moe_num_experts",  # ERNIE, Aria, Step
        ):
            with self.subTest(name=name):
                self.assertEqual(main_stack(**{"num_experts": None, name: 12}).n_experts, 12)

    def test_a_number_in_any_spelling(self) -> None:
        self.assertEqual(main_stack(num_experts="12").n_experts, 12)
        self.assertEqual(main_stack(num_experts=12.0).n_experts, 12)

    def test_equal_numbers_under_two_names(self) -> None:
        self.assertEqual(main_stack(num_local_experts=8).n_experts, 8)

    def test_one_expert_where_its_own_width_says_that_it_is_one(self) -> None:
        self.assertEqual(main_stack(num_experts=1).n_experts, 1)
        listed = main_stack(
            num_experts=1, moe_intermediate_size=None, mlp_layer_types=["sparse"] * 6
        )
        self.assertEqual(listed.n_experts, 1)

    def test_the_width_that_experts_read_and_write(self) -> None:
        for name in ("hidden_size", "d_model", "n_embd", "dim"):
            with self.subTest(name=name):
                self.assertEqual(main_stack(**{"hidden_size": None, name: 32}).hidden_size, 32)

    def test_a_latent_width_between_model_and_experts(self) -> None:
        self.assertEqual(main_stack(moe_latent_size=16).hidden_size, 16)  # Nemotron-H
        self.assertEqual(main_stack(moe_hidden_size=16).hidden_size, 16)  # Muse-Spark
        self.assertEqual(main_stack(moe_latent_size=None).hidden_size, 64)

    def test_the_inner_width(self) -> None:
        for name in (
            "moe_intermediate_size",
            "expert_intermediate_size",
            "expert_ffn_hidden_size",  # LongCat
            "moe_ffn_hidden_size",
            "intermediate_size",  # OLMoE, Mixtral
            "ffn_hidden_size",
            "d_ff",
        ):
            with self.subTest(name=name):
                stack = main_stack(**{"moe_intermediate_size": None, name: 24})
                self.assertEqual(stack.expert_widths, (24,))

    def test_a_width_of_dense_layers_beside_that_of_experts_does_not_count(self) -> None:
        stack = main_stack(intermediate_size=96, shared_expert_intermediate_size=56)
        self.assertEqual(stack.expert_widths, (40,))
        llama4 = main_stack(
            moe_intermediate_size=None, intermediate_size=48, intermediate_size_mlp=96
        )
        self.assertEqual(llama4.expert_widths, (48,))

    def test_multi_token_prediction_layers_apart_from_the_others(self) -> None:
        stack = main_stack(num_nextn_predict_layers=1)
        self.assertEqual((stack.n_layers, stack.n_mtp_layers), (6, 1))
        self.assertIsNone(main_stack().n_mtp_layers)

    def test_dbrx_with_its_experts_in_a_part_of_their_own(self) -> None:
        config: Config = {
            "model_type": "dbrx",
            "d_model": 64,
            "n_layers": 3,
            "ffn_config": {
                "model_type": "",
                "ffn_hidden_size": 40,
                "hidden_size": 64,
                "moe_num_experts": 6,
            },
        }
        stack = ExpectedStack(
            stack="text",
            n_layers=3,
            moe_layers=(0, 1, 2),
            n_experts=6,
            hidden_size=64,
            expert_widths=(40,),
        )
        self.assertEqual(expect_experts(config), ModelExpectation(stacks=(stack,)))

    def test_mistral_native_parameters(self) -> None:
        config: Config = {
            "dim": 64,
            "n_layers": 4,
            "hidden_dim": 96,
            "moe": {
                "num_experts": 8,
                "expert_hidden_dim": 40,
                "first_k_dense_replace": 1,
                "route_every_n": 1,
            },
        }
        stack = ExpectedStack(
            stack="text",
            n_layers=4,
            moe_layers=(1, 2, 3),
            n_experts=8,
            hidden_size=64,
            expert_widths=(40,),
        )
        self.assertEqual(expect_experts(config), ModelExpectation(stacks=(stack,)))

    def test_longcat_with_identity_experts_and_two_attention_blocks_a_layer(self) -> None:
        config: Config = {
            "model_type": "longcat_flash",
            "hidden_size": 64,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 40,
            "n_routed_experts": 6,
            "zero_expert_num": 2,
            "num_layers": 3,
            "num_hidden_layers": 6,
        }
        stack = ExpectedStack(
            stack="text",
            n_layers=3,
            moe_layers=(0, 1, 2),
            n_experts=6,
            n_identity_experts=2,
            hidden_size=64,
            expert_widths=(40,),
        )
        self.assertEqual(expect_experts(config), ModelExpectation(stacks=(stack,)))


class LayersAndIdsMayDiffer(unittest.TestCase):
    def test_hunyuan_with_a_list_of_one_value_per_layer(self) -> None:
        stack = main_stack(
            model_type="hunyuan_v1_moe", num_experts=[16] * 6, moe_intermediate_size=[40] * 6
        )
        self.assertEqual((stack.n_experts, stack.expert_widths), (16, (40,)))
        self.assertEqual(stack.n_experts_by_layer, ())

    def test_a_list_of_one_value_is_that_value(self) -> None:
        self.assertEqual(main_stack(num_experts=[16]).n_experts, 16)

    def test_numbers_that_differ_by_layer(self) -> None:
        stack = main_stack(
            num_experts=[4, 8, 4, 8, 4, 0], moe_intermediate_size=[40, 24, 40, 24, 40, 40]
        )
        self.assertIsNone(stack.n_experts)
        self.assertEqual(stack.moe_layers, (0, 1, 2, 3, 4))
        self.assertEqual(stack.n_experts_by_layer, ((0, 4), (1, 8), (2, 4), (3, 8), (4, 4)))
        self.assertEqual([stack.n_experts_in(layer) for layer in (0, 1, 5)], [4, 8, None])
        self.assertEqual(stack.expert_widths, (40, 24))

    def test_dense_layers_in_a_list_of_otherwise_equal_numbers(self) -> None:
        stack = main_stack(num_experts=[0, 8, 8, 8, 8, 1], moe_intermediate_size=None)
        self.assertEqual((stack.n_experts, stack.moe_layers), (8, (1, 2, 3, 4)))
        self.assertEqual(stack.n_experts_in(2), 8)

    def test_a_list_of_another_length_gives_no_number(self) -> None:
        self.assertIsNone(main_stack(num_experts=[16, 8]).n_experts)
        self.assertIsNone(main_stack(num_experts=[]).n_experts)
        self.assertIsNone(main_stack(num_experts=[8, None, 8, 8, 8, 8]).n_experts)

    def test_dots3_vision_as_its_authors_write_it(self) -> None:
        vision: Config = {
            "model_type": "dots3_note_vision_encoder",
            "embed_dim": 64,
            "moe_intermediate_size": 40,
            "num_hidden_layers": 5,
            "mlp_layer_types": ["dense", "dense", "sparse", "sparse", "sparse"],
            "pyramid_num_routed": [-1, -1, 4, 8, 8],
        }
        (stack,) = expect_experts({"vision_config": vision}).stacks
        self.assertEqual((stack.stack, stack.hidden_size), ("vision", 64))
        self.assertEqual(stack.moe_layers, (2, 3, 4))
        self.assertEqual(stack.n_experts_by_layer, ((2, 4), (3, 8), (4, 8)))

    def test_dots3_vision_as_transformers_writes_it(self) -> None:
        stack = main_stack(
            num_experts=None,
            num_local_experts=8,
            mlp_layer_types=["dense", "dense", "dense", "sparse", "sparse", "sparse"],
            per_layer_config={
                "3": {"num_local_experts": 4},
                "4": {"moe_intermediate_size": 24},
                "x": {"num_local_experts": 2},
                "5": None,
            },
        )
        self.assertIsNone(stack.n_experts)
        self.assertEqual(stack.n_experts_by_layer, ((3, 4), (4, 8), (5, 8)))
        self.assertEqual(stack.expert_widths, (40, 24))

    def test_ernie_vl_counts_text_and_vision_experts_in_one_range_of_ids(self) -> None:
        for count in (64, [64, 64]):
            with self.subTest(count=count):
                stack = main_stack(
                    model_type="ernie4_5_moe_vl",
                    num_experts=None,
                    moe_num_experts=count,
                    moe_intermediate_size=[1536, 512],
                    moe_layer_start_index=[1, 1],
                    moe_layer_end_index=[29, 28],
                    moe_layer_interval=1,
                )
                self.assertEqual(stack.n_experts, 128)
                self.assertEqual(stack.moe_layers, (1, 2, 3, 4, 5))
                self.assertEqual(stack.expert_widths, (1536, 512))
                self.assertEqual(stack.id_widths, ((64, 1536), (64, 512)))
                self.assertEqual(
                    [stack.widths_of(expert) for expert in (0, 63, 64, 127, 128)],
                    [(1536,), (1536,), (512,), (512,), (1536, 512)],
                )

    def test_ernie_vl_with_counts_and_widths_that_do_not_pair_gives_no_number(self) -> None:
        stack = main_stack(
            model_type="ernie4_5_vl_moe",
            num_experts=None,
            moe_num_experts=[64],
            moe_intermediate_size=[1536, 512],
            moe_layer_start_index=0,
        )
        self.assertEqual((stack.n_experts, stack.id_widths), (None, ()))


if __name__ == "__main__":
    unittest.main()
