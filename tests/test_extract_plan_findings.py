from __future__ import annotations

import unittest
from collections.abc import Sequence

from tests.support.extraction import make_header, make_headers, make_preset, make_rule, plan_headers

PROJS = ("gate_proj", "up_proj", "down_proj")


def names(n_layers: int, n_experts: int) -> list[str]:
    return [
        f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight"
        for layer in range(n_layers)
        for expert in range(n_experts)
        for proj in PROJS
    ]


class ManyTensors(unittest.TestCase):
    """One fault may be in a hundred thousand tensors, and is not as many warnings."""

    def messages(self, shape: Sequence[int], dtype_code: str) -> list[str]:
        plan = plan_headers(make_headers(dict.fromkeys(names(10, 8), shape), dtype_code))
        self.assertEqual(len(plan.unmatched), 240)
        return [finding.message for finding in plan.findings]

    def test_without_scales_are_one_warning_for_each_way_to_be_called(self) -> None:
        messages = self.messages((4, 8), "F8_E4M3")
        self.assertEqual(len(messages), len(PROJS))
        self.assertTrue(
            messages[0].startswith(
                "[read] refused (missing_companion): weights "
                "model.layers.0.mlp.experts.0.gate_proj.weight F8_E4M3 [4, 8] have no scale; "
            )
        )
        self.assertTrue(
            messages[0].endswith(
                ": 80 tensors (model.layers.0.mlp.experts.0.gate_proj.weight, "
                "model.layers.0.mlp.experts.1.gate_proj.weight, "
                "model.layers.0.mlp.experts.2.gate_proj.weight, ...)"
            )
        )

    def test_that_no_rule_can_take_are_listed_to_a_limit(self) -> None:
        messages = self.messages((5, 4, 3), "BF16")
        # By the rule for banks and then by the fallback.
        self.assertEqual(len(messages), 2 * len(PROJS) * 21)
        self.assertEqual(
            messages[0],
            "[extract] rule application failed for model.layers.0.mlp.experts.0.gate_proj.weight: "
            "the name says expert 0, the expert axis holds 5; drop expert_axis from the rule's "
            "layout or mend parsing.expert_regex",
        )
        self.assertEqual(
            messages[20],
            "[extract] rule application failed for further tensors: 60 tensors "
            "(model.layers.2.mlp.experts.4.gate_proj.weight, "
            "model.layers.2.mlp.experts.5.gate_proj.weight, "
            "model.layers.2.mlp.experts.6.gate_proj.weight, ...)",
        )

    def test_of_different_shapes_are_told_apart(self) -> None:
        preset = make_preset(
            make_rule(r"layers\.\d+\.bank$", expert=0, rows=1, cols=2, proj="up_proj")
        )
        config = {"num_experts": 2, "hidden_size": 8, "moe_intermediate_size": 6}
        headers = [
            make_header(f"layers.{layer}.bank", shape)
            for layer, shape in enumerate([(2, 5, 9), (2, 5, 9), (2, 7, 9)])
        ]
        plan = plan_headers(headers, model_config=config, preset=preset)
        self.assertEqual(
            [finding.count for finding in plan.findings if "refused" in finding.message], [2, 1]
        )


class UnknownLayers(unittest.TestCase):
    """Nothing else tells that all layers are counted as one."""

    def messages(self, names: Sequence[str]) -> list[str]:
        plan = plan_headers(make_headers(dict.fromkeys(names, (4, 8))))
        self.assertEqual({matrix.layer for matrix in plan.matrices}, {-1})
        for finding in plan.findings:
            self.assertEqual(
                finding.hint, "mend parsing.layer_regex or give the rule a layer_group"
            )
        return [finding.message for finding in plan.findings]

    def test_of_several_tensors_with_one_expert_are_a_warning(self) -> None:
        names = [
            f"transformer.h.{layer}.experts.{expert}.w{proj}"
            for layer in range(3)
            for expert in range(2)
            for proj in (1, 2)
        ]
        self.assertEqual(
            self.messages([*names, "transformer.h.0.experts.9.w1"]),
            [
                (
                    "[extract] layer unknown, several tensors have the same expert of layer -1: "
                    f"12 tensors ({names[0]}, {names[1]}, {names[2]}, ...)"
                )
            ],
        )

    def test_that_can_be_one_layer_are_none(self) -> None:
        names = ["experts.0.w1", "experts.0.w2", "experts.1.w1", "encoder.experts.0.w1"]
        shared = [f"shared_experts.{expert}.w1" for expert in range(2)]
        self.assertEqual(self.messages([*names, *shared]), [])


if __name__ == "__main__":
    unittest.main()
