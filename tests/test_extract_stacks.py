"""Several stacks of layers in one checkpoint: equal layer numbers never collide."""

from __future__ import annotations

import unittest
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.config.preset import find_preset
from moe_weights.extract.plan import ExtractionPlan
from tests.support.extraction import make_headers, make_rule, plan_headers, rules, stacks_of
from tests.support.ledgers import SHAPES

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


class TwoModalities(unittest.TestCase):
    """ERNIE-VL: config.json counts two groups of experts, which may be one stack or two."""

    CONFIG: Mapping[str, Any] = {
        "model_type": "ernie4_5_vl_moe",
        "moe_num_experts": 2,
        "moe_intermediate_size": [6, 4],
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "mlp_layer_types": ["sparse"],
    }
    PRESET = find_preset("ernie4_5_vl_moe")
    IN_ONE_NUMBERING: Mapping[str, Sequence[int]] = {
        f"model.layers.0.mlp.experts.{expert}.{proj}.weight": tuple(
            width if length == 6 else length for length in shape
        )
        for expert, width in enumerate((6, 6, 4, 4))
        for proj, shape in SHAPES.items()
    }
    APART: Mapping[str, Sequence[int]] = {
        f"model.layers.0.mlp.{group}_moe.experts.{name}": shape
        for group, width in (("text", 6), ("vision", 4))
        for name, shape in (("gate_up_proj", (2, 2 * width, 8)), ("down_proj", (2, 8, width)))
    }

    def plan(self, tensors: Mapping[str, Sequence[int]]) -> ExtractionPlan:
        return plan_headers(make_headers(tensors), model_config=self.CONFIG, preset=self.PRESET)

    def entries(self, tensors: Mapping[str, Sequence[int]]) -> set[tuple[str, int | None, str]]:
        """Return stack, expected experts and status of the ledger's entries."""
        coverage = self.plan(tensors).coverage
        self.assertEqual(coverage.complete, not coverage.problems)
        return {(e.stack, e.expected_experts, str(e.status)) for e in coverage.entries}

    def test_in_one_numbering_are_one_stack(self) -> None:
        self.assertEqual(self.entries(self.IN_ONE_NUMBERING), {("text", 4, "complete")})

    def test_apart_are_two_stacks_whose_ids_restart(self) -> None:
        self.assertEqual(
            self.entries(self.APART), {("text", 2, "complete"), ("vision", 2, "complete")}
        )
        shapes = {
            (e.stack, e.proj): e.expected_shape for e in self.plan(self.APART).coverage.entries
        }
        self.assertEqual(shapes["text", "up_proj"], (6, 8))
        self.assertEqual(shapes["vision", "down_proj"], (8, 4))

    def test_apart_miss_what_is_missing(self) -> None:
        for lost in self.APART:
            with self.subTest(lost=lost):
                rest = {name: shape for name, shape in self.APART.items() if name != lost}
                coverage = self.plan(rest).coverage
                stack = "vision" if "vision" in lost else "text"
                projs = {"down_proj"} if "down" in lost else {"gate_proj", "up_proj"}
                self.assertEqual(
                    {(e.stack, e.proj, str(e.status)) for e in coverage.problems},
                    {(stack, proj, "missing") for proj in projs},
                )

    def test_with_one_group_lost_are_not_complete(self) -> None:
        for group, other in (("text", "vision"), ("vision", "text")):
            left = {name: shape for name, shape in self.APART.items() if f".{group}_moe" in name}
            coverage = self.plan(left).coverage
            self.assertIs(coverage.complete, False, f"{other} is lost")

    def test_with_exchanged_widths_have_the_wrong_shape(self) -> None:
        exchanged = {
            name.replace("text", "x").replace("vision", "text").replace("x_moe", "vision_moe"): s
            for name, s in self.APART.items()
        }
        self.assertEqual(
            self.entries(exchanged), {("text", 2, "wrong_shape"), ("vision", 2, "wrong_shape")}
        )


class TheOnlyStack(StackCase):
    def test_may_be_called_encoder_or_decoder_by_its_tensors(self) -> None:
        for label, prefix in (("encoder", "encoder.layers.0"), ("decoder", "decoder.layers.0")):
            plan = self.check({label: experts(prefix)}, SIZES)
            (declared,) = plan.coverage.expectation.stacks
            self.assertEqual(declared.stack, label)

    def test_keeps_its_extra_prediction_layers(self) -> None:
        tensors = {"decoder": experts("decoder.layers.0"), "mtp": experts("mtp.layers.0")}
        plan = self.check(tensors, SIZES | {"num_nextn_predict_layers": 1})
        statuses = {(e.stack, e.expected_experts, str(e.status)) for e in plan.coverage.entries}
        self.assertEqual(statuses, {("decoder", 2, "complete"), ("mtp", 2, "complete")})

    def test_is_missing_where_only_another_one_was_found(self) -> None:
        for prefixes in (["vision_tower.layers.0"], ["encoder.layers.0", "decoder.layers.0"]):
            tensors = {name: size for prefix in prefixes for name, size in experts(prefix).items()}
            plan = plan_headers(make_headers(tensors), model_config=SIZES)
            statuses = {str(e.status) for e in plan.coverage.entries if e.stack == "text"}
            self.assertEqual(statuses, {"missing"})
            self.assertIs(plan.coverage.complete, False)


class ExtraPredictionLayers(StackCase):
    def test_past_the_last_layer_are_mtp(self) -> None:
        plan = self.check(
            {"text": experts("model.layers.0"), "mtp": experts("model.layers.1")}, SIZES
        )
        mtp = [entry for entry in plan.coverage.entries if entry.stack == "mtp"]
        self.assertEqual(
            {(e.layer, e.expected_experts, e.found_experts, str(e.status)) for e in mtp},
            {(1, 2, 2, "complete")},
        )

    def test_under_a_prefix_are_mtp_and_may_repeat_layer_zero(self) -> None:
        self.check({"text": experts("model.layers.0"), "mtp": experts("mtp.layers.0")}, SIZES)

    def statuses(
        self, mtp: Mapping[str, Sequence[int]], config: Mapping[str, Any] | None = None
    ) -> set[tuple[int, str, str]]:
        """Return layer, projection and status of the mtp layers beside a whole main stack."""
        tensors = {**experts("model.layers.0"), **mtp}
        plan = plan_headers(make_headers(tensors), model_config=SIZES | (config or {}))
        entries = plan.coverage.entries
        self.assertEqual({str(e.status) for e in entries if e.stack == "text"}, {"complete"})
        found = {(e.layer, e.proj, str(e.status)) for e in entries if e.stack == "mtp"}
        fine = {status for _layer, _proj, status in found} <= {"complete"}
        self.assertIs(plan.coverage.complete, fine)
        return {item for item in found if item[2] != "complete"}

    def test_are_whole_or_have_experts_missing(self) -> None:
        whole = experts("mtp.layers.0")
        self.assertEqual(self.statuses(whole), set())
        for name in whole:
            less = {other: shape for other, shape in whole.items() if other != name}
            proj = name.split(".")[-2]
            self.assertEqual(self.statuses(less), {(0, proj, "missing")})
        no_gate = {name: shape for name, shape in whole.items() if "gate_proj" not in name}
        self.assertEqual(self.statuses(no_gate), {(0, "gate_proj", "missing")})
        extra = {f"mtp.layers.0.mlp.experts.2.{proj}.weight": SHAPES[proj] for proj in SHAPES}
        self.assertEqual(self.statuses(whole | extra), {(0, proj, "extra") for proj in SHAPES})

    def test_that_were_refused_are_refused_and_not_missing(self) -> None:
        banks = {
            f"mtp.layers.0.mlp.experts.{proj}": (2, shape[1], shape[0])
            for proj, shape in SHAPES.items()
        }
        self.assertEqual(self.statuses(banks), {(0, proj, "refused") for proj in SHAPES})

    def test_are_not_expected_beyond_what_config_json_counts(self) -> None:
        two = {**experts("model.layers.1"), **experts("model.layers.2")}
        self.assertEqual(self.statuses(two), set())
        self.assertEqual(self.statuses(two, {"num_nextn_predict_layers": 2}), set())
        not_expected = {(2, proj, "not_expected") for proj in SHAPES}
        self.assertEqual(self.statuses(two, {"num_nextn_predict_layers": 1}), not_expected)

    def test_that_config_json_counts_and_nobody_stored_are_not_missing(self) -> None:
        self.assertEqual(self.statuses({}, {"num_nextn_predict_layers": 1}), set())

    def test_are_not_held_against_the_count_of_a_main_layer_of_the_same_number(self) -> None:
        tensors = {
            **experts("model.layers.0"),
            **experts("model.layers.1", n_experts=4),
            **experts("mtp.layers.0", n_experts=3),
        }
        config = SIZES | {"num_experts": [2, 4], "num_hidden_layers": 2}
        plan = plan_headers(make_headers(tensors), model_config=config)
        self.assertEqual(
            {(entry.stack, entry.layer, str(entry.status)) for entry in plan.coverage.entries},
            {("text", 0, "complete"), ("text", 1, "complete"), ("mtp", 0, "unknown")},
        )

    def test_are_unknown_where_the_experts_of_the_main_stack_are(self) -> None:
        tensors = {**experts("model.layers.0"), **experts("mtp.layers.0")}
        config = SIZES | {"num_experts": "many"}
        plan = plan_headers(make_headers(tensors), model_config=config)
        self.assertEqual({str(entry.status) for entry in plan.coverage.entries}, {"unknown"})

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
