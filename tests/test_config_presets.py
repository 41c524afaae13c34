from __future__ import annotations

import unittest
from collections import Counter
from importlib import resources
from math import prod

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_expectation import expect_experts
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.load import parse_config
from moe_weights.config.preset import (
    Preset,
    PresetExample,
    choose_preset,
    find_preset,
    load_presets,
)
from moe_weights.config.schema import AnalysisConfig
from moe_weights.decode.stored_tensor import Resolution, StoredTensor
from moe_weights.errors import ConfigError
from moe_weights.extract.account import Fate
from moe_weights.extract.look_alikes import LookAlikeFinder
from moe_weights.extract.plan import ExtractionPlan, plan_extraction
from moe_weights.extract.rules import RuleFinder
from tests.support.config_documents import make_config_document


def make_tensor(example: PresetExample) -> StoredTensor:
    header = TensorHeader(
        file="model.safetensors",
        name=example.tensor,
        dtype_code="BF16",
        shape=example.shape,
        offset=0,
        nbytes=2 * prod(example.shape),
    )
    return StoredTensor(
        name=example.tensor, encoding=example.encoding, header=header, shape=example.shape
    )


def plan_example(preset: Preset, example: PresetExample, config: AnalysisConfig) -> ExtractionPlan:
    tensor = make_tensor(example)
    resolution = Resolution(tensors=(tensor,), refusals=(), companions={}, others=())
    expectation = expect_experts(preset.config)
    return plan_extraction(resolution, config, expectation, scanned=(tensor.header,), preset=preset)


def first_and_last(plan: ExtractionPlan) -> list[tuple[str, int, int, int, int, str]]:
    """Return the first and the last matrix as the examples write them; one alone once."""
    found = [
        (
            matrix.proj,
            matrix.layer,
            matrix.expert_id,
            matrix.view.rows,
            matrix.view.cols,
            matrix.stack,
        )
        for matrix in plan.matrices
    ]
    return [found[0], found[-1]] if len(found) > 1 else found


class EveryPreset(unittest.TestCase):
    presets: tuple[Preset, ...]
    config: AnalysisConfig

    @classmethod
    def setUpClass(cls) -> None:
        cls.presets = load_presets()
        cls.config = parse_config(make_config_document())

    def test_has_the_name_of_its_file(self) -> None:
        folder = resources.files("moe_weights.config") / "presets"
        stems = sorted(item.name.removesuffix(".json") for item in folder.iterdir())
        self.assertEqual([preset.name for preset in self.presets], stems)

    def test_has_model_types_that_no_other_preset_has(self) -> None:
        counts = Counter(kind for preset in self.presets for kind in preset.model_types)
        self.assertEqual({kind for kind, count in counts.items() if count > 1}, set())
        self.assertEqual({preset.name for preset in self.presets if not preset.model_types}, set())

    def test_is_chosen_by_its_own_minimal_config(self) -> None:
        for preset in self.presets:
            with self.subTest(preset=preset.name):
                self.assertIs(choose_preset("auto", preset.config), preset)

    def test_has_a_minimal_config_that_declares_experts_of_telling_sizes(self) -> None:
        for preset in self.presets:
            with self.subTest(preset=preset.name):
                stacks = expect_experts(preset.config).stacks
                self.assertNotEqual(stacks, ())
                for stack in stacks:
                    for width in stack.expert_widths:
                        self.assertNotIn(stack.hidden_size, (width, 2 * width))

    def test_says_where_it_is_known_from(self) -> None:
        for preset in self.presets:
            with self.subTest(preset=preset.name):
                self.assertRegex(preset.source, r"save_pretrained|[\w-]+/[\w.-]+ ")

    def test_has_rules_of_unique_names_that_begin_with_its_own(self) -> None:
        for preset in self.presets:
            names = [rule.name for rule in preset.rules]
            self.assertEqual(len(names), len(set(names)))
            for name in names:
                self.assertTrue(name.startswith(f"{preset.name}_"), name)

    def test_has_patterns_that_end_where_the_name_ends(self) -> None:
        for preset in self.presets:
            patterns = [rule.match for rule in preset.rules]
            for pattern in patterns + [item.match for item in preset.lookalikes]:
                self.assertTrue(pattern.endswith("$"), pattern)

    def test_gives_an_example_for_each_rule_and_each_look_alike(self) -> None:
        for preset in self.presets:
            tensors = [make_tensor(example) for example in preset.examples]
            for rule in preset.rules:
                with self.subTest(rule=rule.name):
                    self.assertTrue(any(map(RuleFinder([rule]).find, tensors)))
            for lookalike in preset.lookalikes:
                with self.subTest(lookalike=lookalike.match):
                    self.assertTrue(any(lookalike.pattern.match(item.name) for item in tensors))

    def test_reads_each_example_as_it_says(self) -> None:
        for preset in self.presets:
            for example in preset.examples:
                if example.lookalike:
                    continue
                with self.subTest(preset=preset.name, tensor=example.tensor):
                    plan = plan_example(preset, example, self.config)
                    self.assertEqual(first_and_last(plan), list(example.matrices))
                    self.assertEqual(
                        {unit.extracted_via for unit in plan.units}, {f"preset:{preset.name}"}
                    )

    def test_reads_every_element_of_an_example_once(self) -> None:
        for preset in self.presets:
            for example in preset.examples:
                if example.lookalike:
                    continue
                with self.subTest(preset=preset.name, tensor=example.tensor):
                    plan = plan_example(preset, example, self.config)
                    read = sum(item.view.rows * item.view.cols for item in plan.matrices)
                    self.assertEqual(read, prod(example.shape))
                    keys = {
                        (item.layer, item.expert_id, item.proj, item.derived_tensor)
                        for item in plan.matrices
                    }
                    self.assertEqual(len(keys), len(plan.matrices))

    def test_knows_routers_and_other_look_alikes_by_their_kind(self) -> None:
        for preset in self.presets:
            named = [example for example in preset.examples if example.lookalike]
            self.assertNotEqual(named, [], preset.name)
            finder = LookAlikeFinder(preset.lookalikes)
            for example in named:
                with self.subTest(preset=preset.name, tensor=example.tensor):
                    plan = plan_example(preset, example, self.config)
                    self.assertEqual(plan.matrices, [])
                    fates = {(account.fate, account.detail) for account in plan.accounts}
                    # What does not look like an expert at all needs no entry in the ledger.
                    name = example.tensor
                    kind = finder.declared_kind(name) or finder.general_kind(name)
                    if not fates:
                        self.assertEqual(kind, example.lookalike)
                    else:
                        self.assertEqual(fates, {(Fate.LOOKALIKE, example.lookalike)})

    def test_leaves_dense_layers_alone(self) -> None:
        names = [
            f"model.layers.1.{block}.{proj}.weight"
            for block in ("mlp", "feed_forward", "ffn", "block_sparse_moe", "mixer", "mlps.0")
            for proj in ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3")
        ]
        for preset in self.presets:
            finder = RuleFinder(preset.rules)
            for name in names:
                with self.subTest(preset=preset.name, tensor=name):
                    dense = make_tensor(PresetExample(tensor=name, shape=(96, 64)))
                    self.assertIsNone(finder.find(dense))

    def test_leaves_scales_biases_and_adapter_factors_alone(self) -> None:
        for preset in self.presets:
            finder = RuleFinder(preset.rules)
            for example in preset.examples:
                stem = example.tensor.removesuffix(".weight")
                for name in (
                    f"{stem}.bias",
                    f"{stem}.weight_scale_inv",
                    f"{stem}_scales",
                    f"base_model.model.{stem}.lora_A.weight",
                ):
                    side = StoredTensor(
                        name=name,
                        encoding="plain",
                        header=make_tensor(example).header,
                        shape=example.shape,
                    )
                    with self.subTest(preset=preset.name, tensor=name):
                        self.assertIsNone(finder.find(side))


class TwoReadings(unittest.TestCase):
    """Qwen3-VL-MoE has two axis orders under one name."""

    def plan(self, shape: tuple[int, int, int], **sizes: int) -> ExtractionPlan:
        preset = find_preset("qwen3_vl_moe")
        changed = {"text_config": {**preset.config["text_config"], **sizes}}
        preset = preset.model_copy(update={"config": {**preset.config, **changed}})
        config = parse_config(make_config_document())
        name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
        return plan_example(preset, PresetExample(tensor=name, shape=shape), config)

    def test_are_settled_by_the_sizes_of_the_config(self) -> None:
        for shape in ((4, 192, 64), (4, 64, 192)):
            (last,) = self.plan(shape).matrices[-1:]
            self.assertEqual((last.view.rows, last.view.cols), (96, 64))

    def test_are_refused_when_both_fit(self) -> None:
        plan = self.plan((4, 64, 64), moe_intermediate_size=32)
        self.assertEqual(plan.matrices, [])
        (finding,) = plan.findings
        self.assertIn("qwen3_vl_moe_hub_gate_up, qwen3_vl_moe_runtime_gate_up", finding.message)

    def test_are_refused_when_neither_fits(self) -> None:
        plan = self.plan((4, 190, 60))
        self.assertEqual(plan.matrices, [])
        self.assertEqual([account.fate for account in plan.accounts], [Fate.REFUSED])


class Choosing(unittest.TestCase):
    def test_asks_the_outer_model_type_before_the_nested_one(self) -> None:
        config: dict[str, JsonValue] = {
            "model_type": "kimi_k25",
            "text_config": {"model_type": "deepseek_v3"},
        }
        chosen = choose_preset("auto", config)
        self.assertEqual(chosen and chosen.name, "kimi_k2")

    def test_finds_the_type_of_a_nested_config(self) -> None:
        config: dict[str, JsonValue] = {
            "model_type": "llava",
            "text_config": {"model_type": "mixtral"},
        }
        chosen = choose_preset("auto", config)
        self.assertEqual(chosen and chosen.name, "mixtral")

    def test_finds_nothing_for_unknown_types_and_without_a_config(self) -> None:
        self.assertIsNone(choose_preset("auto", {"model_type": "llama"}))
        self.assertIsNone(choose_preset("auto", {}))
        self.assertIsNone(choose_preset("auto", None))
        self.assertIsNone(choose_preset(None, {"model_type": "mixtral"}))

    def test_takes_a_name_whatever_the_config_says(self) -> None:
        chosen = choose_preset("dbrx", {"model_type": "mixtral"})
        self.assertEqual(chosen and chosen.name, "dbrx")

    def test_suggests_the_nearest_name_for_an_unknown_one(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            find_preset("mixtrall")
        self.assertIn(
            'there is no preset named "mixtrall"; did you mean "mixtral"?', str(caught.exception)
        )
