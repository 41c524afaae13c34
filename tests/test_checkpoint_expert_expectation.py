"""Does the expectation find every stack that config.json declares, and no other?"""

from __future__ import annotations

import unittest

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.expert_expectation import ModelExpectation, expect_experts
from tests.support.expert_configs import MIXTRAL, Config

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error


class NoExpertsAreExpected(unittest.TestCase):
    def assert_dense(self, config: Config | None) -> None:
        self.assertEqual(expect_experts(config), ModelExpectation())

    def test_without_a_config(self) -> None:
        self.assert_dense(None)
        self.assert_dense({})

    def test_of_a_model_without_an_expert_count(self) -> None:
        self.assert_dense({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2})
        self.assert_dense({**MIXTRAL, "num_local_experts": None})

    def test_of_a_model_with_no_or_a_single_expert(self) -> None:
        for count in (0, 1):
            with self.subTest(count=count):
                self.assert_dense({**MIXTRAL, "num_local_experts": count})
        self.assert_dense({**MIXTRAL, "num_experts": 0, "num_local_experts": 1})

    def test_of_jamba_and_hunyuan_with_one_expert_as_their_code_builds_a_dense_layer(self) -> None:
        for model_type in ("jamba", "hunyuan_v1_moe", "Hunyuan"):
            with self.subTest(model_type=model_type):
                self.assert_dense(
                    {**MIXTRAL, "model_type": model_type, "num_local_experts": 1}
                    | {"moe_intermediate_size": 40, "expert_layer_period": 2}
                )

    def test_where_a_switch_turns_them_off(self) -> None:
        # Gemma-4 without experts, Doge without experts.
        self.assert_dense({**MIXTRAL, "enable_moe_block": False})
        self.assert_dense({"model_type": "doge", "is_moe": False, "num_experts": 16384})

    def test_where_every_layer_is_dense(self) -> None:
        self.assert_dense({**MIXTRAL, "mlp_layer_types": ["dense"] * 6})
        self.assert_dense({**MIXTRAL, "first_k_dense_replace": 6})
        # transformers 5 writes eight experts into every Nemotron-H config.
        self.assert_dense(
            {
                "model_type": "nemotron_h",
                "n_routed_experts": 8,
                "moe_intermediate_size": 7688,
                "layers_block_type": ["mamba", "mlp", "attention"],
            }
        )

    def test_of_parts_that_are_not_objects(self) -> None:
        self.assert_dense({"text_config": None, "vision_config": [], "ffn_config": 3})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["moe", "8", "E-"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["1", "num_experts"]), inner),
    max_leaves=5,
)
KEYS = (
    "num_hidden_layers",
    "num_experts",
    "n_routed_experts",
    "pyramid_num_routed",
    "per_layer_config",
    "moe_intermediate_size",
    "hidden_size",
    "zero_expert_num",
    "num_nextn_predict_layers",
    "model_type",
    "architectures",
    "is_encoder_decoder",
    "num_layers",
    "encoder_sparse_step",
    "mlp_layer_types",
    "layers_block_type",
    "hybrid_override_pattern",
    "moe_layers",
    "moe_layers_enum",
    "first_k_dense_replace",
    "mlp_only_layers",
    "moe_layer_freq",
    "expert_layer_period",
    "moe_every_n_layers",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "ffn_config",
    "text_config",
)


# What layer keys may sensibly hold, and a little beyond it.
LAYER_VALUES = (
    st.integers(-1, 9)
    | st.lists(st.integers(-1, 9), max_size=4)
    | st.lists(st.sampled_from(["moe", "dense", "sparse", "mlp", "mamba"]), max_size=9)
    | st.sampled_from(["ME*E", "1,3", "8"])
)
FAMILIES = st.sampled_from(["mixtral", "nemotron_h", "switch_transformers", "ernie4_5_vl_moe"])


class AnyContentIsRead(unittest.TestCase):
    @given(config=st.dictionaries(st.sampled_from(KEYS), VALUES), family=FAMILIES)
    def test_without_an_error(self, config: Config, family: str) -> None:
        expectation = expect_experts({"num_experts": 8, "model_type": family, **config})
        self.assertEqual(
            len({stack.stack for stack in expectation.stacks}), len(expectation.stacks)
        )

    def test_without_layers_that_are_not_there(self) -> None:
        n_stacks_with_experts = 0

        @settings(max_examples=300, deadline=None)
        @given(
            config=st.dictionaries(st.sampled_from(KEYS[8:]), LAYER_VALUES),
            family=FAMILIES,
            n_layers=st.integers(1, 8),
        )
        def law(config: Config, family: str, n_layers: int) -> None:
            nonlocal n_stacks_with_experts
            sizes = {**MIXTRAL, "model_type": family, "num_hidden_layers": n_layers}
            for stack in expect_experts({**sizes, **config}).stacks:
                if stack.moe_layers is not None and stack.n_layers is not None:
                    n_stacks_with_experts += bool(stack.moe_layers)
                    self.assertLessEqual(set(stack.moe_layers), set(range(stack.n_layers)))

        law()
        self.assertGreater(n_stacks_with_experts, 10)


class EveryStackIsFound(unittest.TestCase):
    def test_in_the_text_part_of_a_multimodal_model(self) -> None:
        for name in ("text_config", "language_config", "llm_config"):
            with self.subTest(name=name):
                expectation = expect_experts(
                    {"model_type": "vl", "hidden_size": 7, name: MIXTRAL, "vision_config": {}}
                )
                self.assertEqual(expectation, expect_experts(MIXTRAL))

    def test_once_where_the_top_repeats_the_text_part(self) -> None:
        repeated = expect_experts({**MIXTRAL, "num_local_experts": 4, "text_config": MIXTRAL})
        self.assertEqual(repeated, expect_experts(MIXTRAL))

    def test_thinker_and_talker_of_qwen_omni(self) -> None:
        config: Config = {
            "model_type": "qwen3_omni_moe",
            "talker_config": {"text_config": {**MIXTRAL, "num_local_experts": 4}},
            "thinker_config": {"text_config": MIXTRAL, "vision_config": {"depth": 3}},
        }
        expectation = expect_experts(config)
        self.assertEqual(
            [(stack.stack, stack.n_experts) for stack in expectation.stacks],
            [("thinker", 8), ("talker", 4)],
        )
        silent = expect_experts({**config, "enable_audio_output": False})
        self.assertEqual([stack.stack for stack in silent.stacks], ["thinker"])

    def test_text_before_vision(self) -> None:
        expectation = expect_experts({"vision_config": MIXTRAL, "text_config": MIXTRAL})
        self.assertEqual([stack.stack for stack in expectation.stacks], ["text", "vision"])

    def test_parts_nested_too_deep_are_left_alone(self) -> None:
        config: Config = dict(MIXTRAL)
        for _level in range(50):
            config = {"text_config": config}
        self.assertEqual(expect_experts(config), ModelExpectation())


SWITCH: Config = {
    "model_type": "switch_transformers",
    "is_encoder_decoder": True,
    "d_model": 64,
    "d_ff": 40,
    "num_experts": 6,
    "num_layers": 6,
    "num_decoder_layers": 4,
    "encoder_sparse_step": 3,
    "decoder_sparse_step": 2,
}
NLLB: Config = {
    "model_type": "nllb-moe",
    "is_encoder_decoder": True,
    "d_model": 64,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 24,
    "num_experts": 6,
    "encoder_layers": 8,
    "decoder_layers": 4,
    "num_hidden_layers": 8,
    "encoder_sparse_step": 4,
    "decoder_sparse_step": 0,
}


class EncoderAndDecoderAreTwoStacks(unittest.TestCase):
    def layers(self, config: Config) -> list[tuple[str, tuple[int, ...] | None]]:
        return [(stack.stack, stack.moe_layers) for stack in expect_experts(config).stacks]

    def test_of_switch_transformers(self) -> None:
        self.assertEqual(self.layers(SWITCH), [("encoder", (1, 4)), ("decoder", (1, 3))])
        encoder, decoder = expect_experts(SWITCH).stacks
        self.assertEqual((encoder.n_layers, decoder.n_layers), (6, 4))
        self.assertEqual((decoder.hidden_size, decoder.expert_widths), (64, (40,)))

    def test_of_switch_transformers_with_numbers_of_sparse_layers_instead_of_steps(self) -> None:
        config: Config = {
            **SWITCH,
            "encoder_sparse_step": None,
            "num_sparse_encoder_layers": 6,
            "decoder_sparse_step": None,
            "num_sparse_decoder_layers": 0,
        }
        # With none, transformers still builds one.
        self.assertEqual(self.layers(config), [("encoder", (0, 1, 2, 3, 4, 5)), ("decoder", (1,))])

    def test_of_nllb(self) -> None:
        self.assertEqual(self.layers(NLLB), [("encoder", (3, 7))])
        self.assertEqual(
            self.layers({**NLLB, "decoder_sparse_step": 2}),
            [("encoder", (3, 7)), ("decoder", (1, 3))],
        )
        both = expect_experts({**NLLB, "decoder_sparse_step": 2})
        self.assertEqual([stack.expert_widths for stack in both.stacks], [(40,), (24,)])

    def test_with_only_the_encoder_saved(self) -> None:
        config: Config = {**SWITCH, "architectures": ["SwitchTransformersEncoderModel"]}
        self.assertEqual(self.layers(config), [("encoder", (1, 4))])

    def test_with_layers_unknown_where_the_family_or_its_steps_are(self) -> None:
        unknown = [("encoder", None), ("decoder", None)]
        self.assertEqual(self.layers({**SWITCH, "model_type": "other"}), unknown)
        self.assertEqual(
            self.layers({**SWITCH, "num_layers": None, "num_decoder_layers": None}), unknown
        )
        no_steps: Config = {"encoder_sparse_step": None, "decoder_sparse_step": -1}
        self.assertEqual(self.layers({**SWITCH, **no_steps}), unknown)


class DimensionsComeFromTheRightStack(unittest.TestCase):
    def setUp(self) -> None:
        talker: Config = {**MIXTRAL, "hidden_size": 32, "intermediate_size": 24}
        self.omni = expect_experts(
            {
                "thinker_config": {"text_config": MIXTRAL},
                "talker_config": {"text_config": talker},
            }
        )

    def test_of_a_declared_stack_and_of_the_main_one_for_others(self) -> None:
        main = ExpertDimensions(hidden_size=64, expert_widths=(40,), n_experts=8)
        talker = ExpertDimensions(hidden_size=32, expert_widths=(24,), n_experts=8)
        self.assertEqual(self.omni.dimensions("talker"), talker)
        self.assertEqual(self.omni.dimensions("thinker"), main)
        self.assertEqual(self.omni.dimensions("mtp"), main)

    def test_unknown_without_a_stack(self) -> None:
        unknown = ExpertDimensions(hidden_size=None, expert_widths=(), n_experts=None)
        self.assertEqual(ModelExpectation().dimensions("text"), unknown)
        self.assertEqual(ModelExpectation().hidden_sizes, frozenset())

    def test_all_sizes_of_all_stacks(self) -> None:
        self.assertEqual(self.omni.hidden_sizes, frozenset({64, 40, 32, 24}))
        unknown = expect_experts({**MIXTRAL, "hidden_size": None})
        self.assertEqual(unknown.hidden_sizes, frozenset({40}))


if __name__ == "__main__":
    unittest.main()
