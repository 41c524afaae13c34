"""Several stacks of layers in one checkpoint: equal layer numbers never collide."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.extraction import make_headers, make_rule, plan_headers, rules, stacks_of

SHAPES: Mapping[str, tuple[int, int]] = {
    "gate_proj": (6, 8),
    "up_proj": (6, 8),
    "down_proj": (8, 6),
}
SIZES: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 2,
    "hidden_size": 8,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 1,
}


def experts(prefix: str, n_experts: int = 2, width: int = 6) -> dict[str, Sequence[int]]:
    return {
        f"{prefix}.mlp.experts.{expert}.{proj}.weight": tuple(
            width if length == 6 else length for length in shape
        )
        for expert in range(n_experts)
        for proj, shape in SHAPES.items()
    }


class StackCase(unittest.TestCase):
    def check(
        self,
        stacks: Mapping[str, dict[str, Sequence[int]]],
        config: Mapping[str, Any],
        changes: dict[str, Any] | None = None,
    ) -> Any:
        """Plan all tensors together; each belongs to its stack and all is complete."""
        tensors = {name: shape for group in stacks.values() for name, shape in group.items()}
        plan = plan_headers(make_headers(tensors), changes, model_config=config)
        self.assertEqual(
            stacks_of(plan), {name: {stack} for stack, group in stacks.items() for name in group}
        )
        self.assertIs(plan.coverage.complete, True)
        self.assertEqual(plan.has_several_stacks, len(stacks) > 1)
        return plan


class Thinkers(StackCase):
    def test_and_talkers_have_their_own_counts_and_widths(self) -> None:
        config = {
            "thinker_config": {"text_config": SIZES},
            "talker_config": {
                "text_config": SIZES | {"num_experts": 3, "moe_intermediate_size": 4}
            },
        }
        plan = self.check(
            {
                "thinker": experts("thinker.model.layers.0"),
                "talker": experts("talker.model.layers.0", 3, 4),
            },
            config,
        )
        self.assertEqual(
            {(e.stack, e.expected_experts, e.found_experts) for e in plan.coverage.entries},
            {("thinker", 2, 2), ("talker", 3, 3)},
        )


class EncodersAndDecoders(StackCase):
    def test_reuse_layer_numbers(self) -> None:
        config = {
            "model_type": "switch_transformers",
            "is_encoder_decoder": True,
            "num_experts": 2,
            "d_model": 8,
            "d_ff": 6,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
        }
        rule = make_rule(
            r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\.mlp\.experts\.expert_(\d+)\.(w[io])\.",
            stack_group=1,
            layer_group=2,
            expert_group=3,
            proj_group=4,
            proj_map={"wi": "up_proj", "wo": "down_proj"},
        )
        stacks = {
            half: {
                f"{half}.block.1.layer.{n}.mlp.experts.expert_{expert}.{word}.weight": shape
                for expert in (0, 1)
                for word, shape in (("wi", (6, 8)), ("wo", (8, 6)))
            }
            for half, n in (("encoder", 1), ("decoder", 2))
        }
        self.check(stacks, config, rules(rule))


class ExtraPredictionLayers(StackCase):
    def test_past_the_last_layer_are_mtp(self) -> None:
        plan = self.check(
            {"text": experts("model.layers.0"), "mtp": experts("model.layers.1")}, SIZES
        )
        mtp = [entry for entry in plan.coverage.entries if entry.stack == "mtp"]
        self.assertEqual({(e.layer, str(e.status)) for e in mtp}, {(1, "unknown")})

    def test_under_a_prefix_are_mtp_and_may_repeat_layer_zero(self) -> None:
        self.check({"text": experts("model.layers.0"), "mtp": experts("mtp.layers.0")}, SIZES)

    def test_are_held_against_the_sizes_of_the_main_stack(self) -> None:
        tensors = {**experts("model.layers.0"), **experts("mtp.layers.0", width=5)}
        plan = plan_headers(make_headers(tensors), model_config=SIZES)
        self.assertTrue(
            plan.findings[0].message.startswith(
                "[extract] a rule reads another shape than config.json says: 6 tensors (mtp."
            )
        )

    def test_are_not_told_by_their_number_without_a_config_json(self) -> None:
        plan = plan_headers(make_headers(experts("model.layers.61")), model_config={})
        self.assertEqual({s for found in stacks_of(plan).values() for s in found}, {"text"})


class OneStack(StackCase):
    def test_is_text(self) -> None:
        self.check({"text": experts("model.layers.0")}, SIZES)

    def test_of_another_name_is_still_one(self) -> None:
        plan = plan_headers(make_headers(experts("encoder.layers.0")), model_config={})
        self.assertFalse(plan.has_several_stacks)
