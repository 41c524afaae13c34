"""Names of real architectures under the untouched template config, row by row."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from tests.support.extraction import (
    UNKNOWN_DIMENSIONS,
    fates_of,
    keys_of,
    lookalikes_of,
    make_header,
    make_headers,
    messages_of,
    plan_headers,
    plan_one,
    reasons_of,
)

HIDDEN, WIDTH = 8, 6
GATE, DOWN = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
DIMENSIONS = ExpertDimensions(hidden_size=HIDDEN, expert_widths=(WIDTH,), n_experts=2)

_NOT_EXPERTS: dict[str, Sequence[int]] = {
    "model.embed_tokens.weight": (32, HIDDEN),
    "model.layers.0.input_layernorm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": DOWN,
    "lm_head.weight": (32, HIDDEN),
}


class Architecture(unittest.TestCase):
    """Plans `tensors`, with and without config.json, and compares all that is planned."""

    def check(
        self,
        tensors: Mapping[str, Sequence[int]],
        expected: Mapping[str, tuple[int, int, str]],
        *,
        via: str,
    ) -> None:
        for dimensions in (DIMENSIONS, UNKNOWN_DIMENSIONS):
            plan = plan_headers(make_headers({**_NOT_EXPERTS, **tensors}), dimensions=dimensions)
            self.assertEqual(keys_of(plan), {name: [key] for name, key in expected.items()})
            self.assertEqual(messages_of(plan), [])
            self.assertEqual({unit.extracted_via for unit in plan.units}, {via})
            self.assertEqual(plan.in_scope, frozenset(expected) | set(reasons_of(plan)))
            for unit in plan.units:
                (matrix,) = unit.matrices
                name = unit.source.header.name
                self.assertEqual(matrix.derived_tensor, f"{name}::{matrix.proj}")
                self.assertEqual((matrix.view.rows, matrix.view.cols), unit.source.shape)
                self.assertEqual((matrix.view.row_stride, matrix.view.col_stride)[1], 1)


class Mixtral(Architecture):
    def test_w1_w2_w3_are_gate_down_and_up(self) -> None:
        tensors: dict[str, Sequence[int]] = {}
        expected = {}
        for layer in (0, 11):
            moe = f"model.layers.{layer}.block_sparse_moe"
            tensors[f"{moe}.gate.weight"] = (2, HIDDEN)
            for expert in (0, 1):
                for word, proj, shape in (
                    ("w1", "gate_proj", GATE),
                    ("w2", "down_proj", DOWN),
                    ("w3", "up_proj", GATE),
                ):
                    name = f"{moe}.experts.{expert}.{word}.weight"
                    tensors[name] = shape
                    expected[name] = (layer, expert, proj)
        self.check(tensors, expected, via="fallback")


class QwenAndOlmoe(Architecture):
    """Qwen3-MoE and OLMoE share their names."""

    def test_every_expert_is_taken_by_the_template_rule(self) -> None:
        tensors: dict[str, Sequence[int]] = {}
        expected = {}
        for layer in (0, 3):
            tensors[f"model.layers.{layer}.mlp.gate.weight"] = (2, HIDDEN)
            for expert in (0, 1):
                for proj, shape in (("gate_proj", GATE), ("up_proj", GATE), ("down_proj", DOWN)):
                    name = f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight"
                    tensors[name] = shape
                    expected[name] = (layer, expert, proj)
        self.check(tensors, expected, via="rule:generic_2d_per_expert_separate")

    def test_expert_ids_of_three_digits_stay_themselves(self) -> None:
        plan = plan_one("model.layers.47.mlp.experts.127.up_proj.weight", GATE)
        (matrix,) = plan.matrices
        self.assertEqual((matrix.layer, matrix.expert_id, matrix.proj), (47, 127, "up_proj"))


class Qwen2Moe(unittest.TestCase):
    MLP = "model.layers.5.mlp"
    TENSORS: Mapping[str, Sequence[int]] = {
        f"{MLP}.gate.weight": (2, HIDDEN),
        f"{MLP}.shared_expert_gate.weight": (1, HIDDEN),
        f"{MLP}.shared_expert.gate_proj.weight": (10, HIDDEN),
        f"{MLP}.shared_expert.up_proj.weight": (10, HIDDEN),
        f"{MLP}.shared_expert.down_proj.weight": (HIDDEN, 10),
        f"{MLP}.experts.1.down_proj.weight": DOWN,
    }

    def test_shared_experts_have_the_id_minus_one_and_their_own_width(self) -> None:
        plan = plan_headers(make_headers(self.TENSORS), dimensions=DIMENSIONS)
        self.assertEqual(
            keys_of(plan),
            {
                f"{self.MLP}.shared_expert.gate_proj.weight": [(5, -1, "gate_proj")],
                f"{self.MLP}.shared_expert.up_proj.weight": [(5, -1, "up_proj")],
                f"{self.MLP}.shared_expert.down_proj.weight": [(5, -1, "down_proj")],
                f"{self.MLP}.experts.1.down_proj.weight": [(5, 1, "down_proj")],
            },
        )
        self.assertEqual(messages_of(plan), [])
        roles = {(m.expert_id, m.is_shared_expert, m.is_routed_expert) for m in plan.matrices}
        self.assertEqual(roles, {(-1, True, False), (1, False, True)})

    def test_the_gate_of_the_shared_expert_is_a_router_that_looks_like_an_expert(self) -> None:
        plan = plan_headers(make_headers(self.TENSORS), dimensions=DIMENSIONS)
        self.assertEqual(lookalikes_of(plan), {f"{self.MLP}.shared_expert_gate.weight": "router"})
        self.assertEqual(reasons_of(plan), {})

    def test_shared_experts_can_be_left_out(self) -> None:
        plan = plan_headers(
            make_headers(self.TENSORS), {"scan.include_shared_expert": False}, DIMENSIONS
        )
        name = f"{self.MLP}.experts.1.down_proj.weight"
        gate = f"{self.MLP}.shared_expert_gate.weight"
        self.assertEqual(list(keys_of(plan)), [name])
        self.assertEqual(plan.in_scope, frozenset({name, gate}))
        self.assertEqual(plan.unmatched, ())
        self.assertEqual(
            {tensor for tensor, fate in fates_of(plan).items() if fate[0] == "excluded"},
            set(self.TENSORS) - {name, gate, f"{self.MLP}.gate.weight"},
        )


class DeepSeekV3(unittest.TestCase):
    MLP = "model.layers.3.mlp"
    WEIGHTS: Mapping[str, Sequence[int]] = {
        f"{MLP}.experts.0.gate_proj.weight": GATE,
        f"{MLP}.experts.1.down_proj.weight": DOWN,
        f"{MLP}.shared_experts.up_proj.weight": GATE,
    }

    def test_in_bfloat16_router_and_correction_bias_stay_out(self) -> None:
        headers = [
            *make_headers(self.WEIGHTS),
            make_header(f"{self.MLP}.gate.weight", (2, HIDDEN)),
            make_header(f"{self.MLP}.gate.e_score_correction_bias", (2,), "F32"),
        ]
        plan = plan_headers(headers, dimensions=DIMENSIONS)
        self.assertEqual(
            keys_of(plan),
            {
                f"{self.MLP}.experts.0.gate_proj.weight": [(3, 0, "gate_proj")],
                f"{self.MLP}.experts.1.down_proj.weight": [(3, 1, "down_proj")],
                f"{self.MLP}.shared_experts.up_proj.weight": [(3, -1, "up_proj")],
            },
        )
        self.assertEqual(plan.unmatched, ())

    def test_in_float8_every_weight_is_measured_with_its_block_scale(self) -> None:
        headers = [
            header
            for name, shape in self.WEIGHTS.items()
            for header in (
                make_header(name, shape, "F8_E4M3"),
                make_header(f"{name}_scale_inv", (1, 1), "F32"),
            )
        ]
        plan = plan_headers(
            headers, dimensions=DIMENSIONS, quantization={"weight_block_size": [128, 128]}
        )
        self.assertEqual(set(keys_of(plan)), set(self.WEIGHTS))
        self.assertEqual({unit.source.encoding for unit in plan.units}, {"fp8"})
        self.assertEqual((plan.unmatched, plan.findings), ((), ()))
        self.assertEqual(plan.companions, {f"{name}_scale_inv": name for name in self.WEIGHTS})
        self.assertEqual(plan.in_scope, set(self.WEIGHTS) | set(plan.companions))
        self.assertEqual(plan.nbytes, sum(header.nbytes for header in headers))

    def test_in_float8_without_scales_nothing_is_measured_and_both_names_are_said(self) -> None:
        headers = [make_header(name, shape, "F8_E4M3") for name, shape in self.WEIGHTS.items()]
        plan = plan_headers(headers, dimensions=DIMENSIONS)
        self.assertEqual(plan.units, ())
        self.assertEqual(reasons_of(plan), dict.fromkeys(self.WEIGHTS, "missing_companion"))
        for name, message in zip(self.WEIGHTS, messages_of(plan), strict=True):
            self.assertIn("[read] refused (missing_companion): weights", message)
            self.assertIn(name, message)
            self.assertIn(f"{name}_scale_inv", message)
        self.assertTrue(plan.measures_nothing_but_refused)


class MlxBanks(unittest.TestCase):
    def test_switch_mlp_looks_like_experts_and_is_read_as_experts_rows_cols(self) -> None:
        name = "model.layers.2.mlp.switch_mlp.up_proj.weight"
        plan = plan_one(name, (2, *GATE), dimensions=DIMENSIONS)
        self.assertEqual(keys_of(plan), {name: [(2, 0, "up_proj"), (2, 1, "up_proj")]})
        self.assertEqual([unit.layout_evidence for unit in plan.units], ["config"])

    def test_the_scales_and_biases_of_a_quantised_bank_explain_its_codes(self) -> None:
        bank = "model.layers.2.mlp.switch_mlp.up_proj"
        headers = [
            make_header(f"{bank}.weight", (2, 6, 8), "U32"),
            make_header(f"{bank}.scales", (2, 6, 2)),
            make_header(f"{bank}.biases", (2, 6, 2)),
        ]
        plan = plan_headers(headers, quantization={"bits": 4, "group_size": 32})
        (unit,) = plan.units
        self.assertEqual((unit.source.encoding, unit.source.shape), ("mlx_affine", (2, 6, 64)))
        self.assertEqual(plan.unmatched, ())
        self.assertEqual(plan.nbytes, sum(header.nbytes for header in headers))

    def test_scales_and_biases_without_codes_are_side_tensors(self) -> None:
        bank = "model.layers.2.mlp.switch_mlp.up_proj"
        names = [f"{bank}.scales", f"{bank}.biases"]
        plan = plan_headers(make_headers(dict.fromkeys(names, (2, *GATE))))
        self.assertEqual(plan.units, ())
        self.assertEqual(reasons_of(plan), dict.fromkeys(names, "side_tensor"))


class Banks(unittest.TestCase):
    def test_a_bank_of_the_template_counts_its_experts_from_zero(self) -> None:
        name = "model.layers.1.mlp.experts.gate_proj.weight"
        plan = plan_one(name, (3, *GATE))
        self.assertEqual(keys_of(plan), {name: [(1, e, "gate_proj") for e in range(3)]})
        self.assertEqual(
            [unit.extracted_via for unit in plan.units], ["rule:generic_3d_expert_bank_separate"]
        )

    def test_the_fused_gate_and_up_means_neither(self) -> None:
        for ending in ("", ".weight"):
            name = f"model.layers.0.mlp.experts.gate_up_proj{ending}"
            plan = plan_one(name, (2, 12, 8))
            self.assertEqual(reasons_of(plan), {name: "no_rule_match_or_proj_infer"})


class NeverWeights(unittest.TestCase):
    """What stands beside an expert's weight is never measured as one."""

    def test_side_tensors_of_an_expert(self) -> None:
        expert = "model.layers.0.mlp.experts.0.down_proj"
        for ending in (
            "biases",
            "scales",
            "weight_scale",
            "weight_scale_inv",
            "weight_scale_2",
            "weight_global_scale",
            "input_scale",
            "weight_zero_point",
            "zero",
            "weight.absmax",
        ):
            with self.subTest(ending=ending):
                name = f"{expert}.{ending}"
                self.assertEqual(reasons_of(plan_one(name, DOWN)), {name: "side_tensor"})

    def test_a_bias_of_an_expert_is_a_look_alike(self) -> None:
        for word in ("0.down_proj.bias", "down_proj_bias", "gate_up_proj_bias"):
            name = f"model.layers.0.mlp.experts.{word}"
            plan = plan_one(name, DOWN)
            self.assertEqual(lookalikes_of(plan), {name: "expert_bias"})
            self.assertEqual((plan.units, plan.unmatched), ((), ()))

    def test_factors_of_an_adapter_are_look_alikes(self) -> None:
        for ending in (
            "lora_A.weight",
            "lora_B.default.weight",
            "lora_down.weight",
            "lora_up.weight",
            "lora_magnitude_vector.weight",
            "hada_w1_a",
            "lokr_w2",
        ):
            name = f"model.layers.0.mlp.experts.0.down_proj.{ending}"
            plan = plan_one(name, DOWN)
            self.assertEqual(lookalikes_of(plan), {name: "adapter"})
            self.assertEqual((plan.units, plan.unmatched), ((), ()))

    def test_the_scales_of_a_bank_without_codes_are_side_tensors(self) -> None:
        name = "model.layers.0.mlp.experts.down_proj_scales"
        self.assertEqual(reasons_of(plan_one(name, DOWN)), {name: "side_tensor"})

    def test_a_weight_under_an_adapter_is_still_a_weight(self) -> None:
        name = "base_model.model.layers.0.mlp.experts.0.down_proj.base_layer.weight"
        self.assertEqual(keys_of(plan_one(name, DOWN)), {name: [(0, 0, "down_proj")]})

    def test_a_router_inside_the_experts_is_a_look_alike(self) -> None:
        name = "model.layers.0.mlp.experts.gate.weight"
        plan = plan_one(name, (2, HIDDEN))
        self.assertEqual(lookalikes_of(plan), {name: "router"})
        self.assertEqual((plan.units, plan.unmatched), ((), ()))

    def test_a_router_when_everything_is_looked_at(self) -> None:
        tensors: dict[str, Sequence[int]] = {
            "model.layers.0.mlp.gate.weight": (2, HIDDEN),
            "model.layers.0.block_sparse_moe.gate.weight": (2, HIDDEN),
            "model.layers.0.input_layernorm.weight": (HIDDEN,),
        }
        plan = plan_headers(make_headers(tensors), {"scan.experts_only": False})
        self.assertEqual((plan.units, plan.unmatched, plan.findings), ((), (), ()))
        self.assertEqual(plan.in_scope, frozenset(tensors))
