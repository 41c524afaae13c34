"""Tensors whose names say expert and that are something else: named, never measured."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

from tests.support.extraction import (
    fates_of,
    keys_of,
    lookalikes_of,
    make_header,
    make_headers,
    make_preset,
    make_rule,
    plan_headers,
    plan_one,
    reasons_of,
    rules,
)

MLP = "model.layers.0.mlp"


class Declared(unittest.TestCase):
    NAME = f"{MLP}.experts.0.down_proj.weight"
    DRAFT: Mapping[str, Any] = {"match": r".*experts\.0\.", "kind": "draft"}

    def test_by_the_config_are_taken_out(self) -> None:
        plan = plan_one(self.NAME, (8, 6), {"parsing.lookalikes": [self.DRAFT]})
        self.assertEqual(fates_of(plan), {self.NAME: ("lookalike", "draft")})
        self.assertEqual((plan.units, plan.unmatched, plan.findings), ((), (), ()))
        self.assertEqual(plan.in_scope, {self.NAME})

    def test_by_a_preset_are_taken_out_before_its_rules(self) -> None:
        preset = make_preset(make_rule(".*", proj="up_proj"), lookalikes=[self.DRAFT])
        plan = plan_one(self.NAME, (8, 6), preset=preset)
        self.assertEqual(lookalikes_of(plan), {self.NAME: "draft"})

    def test_by_the_config_come_before_those_of_the_preset(self) -> None:
        preset = make_preset(lookalikes=[self.DRAFT | {"kind": "other"}])
        changes = {"parsing.lookalikes": [self.DRAFT]}
        plan = plan_one(self.NAME, (8, 6), changes, preset=preset)
        self.assertEqual(lookalikes_of(plan), {self.NAME: "draft"})

    def test_give_way_to_a_rule_of_the_user(self) -> None:
        changes = {"parsing.lookalikes": [self.DRAFT]} | rules(make_rule(".*"))
        plan = plan_one(self.NAME, (8, 6), changes)
        self.assertEqual(keys_of(plan), {self.NAME: [(0, 0, "down_proj")]})

    def test_are_named_whatever_their_name_and_dtype(self) -> None:
        changes = {"parsing.lookalikes": [{"match": "odd", "kind": "table"}]}
        for code in ("BF16", "I64", "F8_E4M3"):
            plan = plan_one("odd.weight", (4, 4), changes, dtype_code=code)
            self.assertEqual(lookalikes_of(plan), {"odd.weight": "table"})


class OfGeneralKind(unittest.TestCase):
    def kind(self, name: str, shape: tuple[int, ...] = (4, 8), dtype_code: str = "BF16") -> str:
        """Return the kind of a tensor that is neither measured nor unmatched."""
        plan = plan_one(name, shape, dtype_code=dtype_code)
        self.assertEqual((plan.units, plan.unmatched, plan.findings), ((), (), ()))
        return lookalikes_of(plan)[name]

    def test_are_routers(self) -> None:
        for name in (
            f"{MLP}.experts.gate.weight",
            f"{MLP}.experts.router.weight",
            f"{MLP}.shared_expert_gate.weight",
            f"{MLP}.experts.gate.tid2eid",
            f"{MLP}.experts.router.per_expert_scale",
        ):
            self.assertEqual(self.kind(name), "router", name)
        self.assertEqual(self.kind(f"{MLP}.experts.gate.tid2eid", (9, 2), "I64"), "router")

    def test_are_biases_of_routers_within_the_experts(self) -> None:
        for word in ("e_score_correction_bias", "expert_bias", "gate.bias", "router.bias"):
            name = f"{MLP}.experts.{word}"
            self.assertEqual(self.kind(name, (4,), "F32"), "router_bias", name)

    def test_are_experts_of_attention(self) -> None:
        for name in (
            "model.layers.0.self_attention.experts.input_linear.weight",
            "model.layers.0.attn.experts.0.w1",
            "model.layers.0.self_attn.experts.up_proj.weight",
        ):
            self.assertEqual(self.kind(name, (3, 4, 8)), "attention_expert", name)

    def test_are_biases_of_experts(self) -> None:
        for word in ("0.fc1.bias", "gate_up_proj_bias", "0.up_proj.biases_fp"):
            self.assertEqual(self.kind(f"{MLP}.experts.{word}", (4,)), "expert_bias", word)

    def test_are_factors_of_adapters(self) -> None:
        self.assertEqual(self.kind(f"{MLP}.experts.0.up_proj.lora_A.weight"), "adapter")

    def test_give_way_to_rules_of_user_and_preset(self) -> None:
        name = "model.layers.0.self_attn.experts.up_proj.weight"
        rule = make_rule(".*", expert=0, rows=1, cols=2)
        for options in ({"changes": rules(rule)}, {"preset": make_preset(rule)}):
            plan = plan_one(name, (3, 4, 8), **options)  # type: ignore[arg-type]
            self.assertEqual(len(plan.matrices), 3)

    def test_give_way_to_rules_for_codes_that_cannot_be_read_too(self) -> None:
        name = "model.layers.0.self_attn.experts.up_proj.weight"
        rule = make_rule(".*", expert=0, rows=1, cols=2)
        for options in ({"changes": rules(rule)}, {"preset": make_preset(rule)}):
            plan = plan_one(name, (3, 4, 8), dtype_code="F8_E4M3", **options)  # type: ignore[arg-type]
            self.assertEqual(reasons_of(plan), {name: "missing_companion"})

    def test_are_no_gates_of_single_experts(self) -> None:
        for name, shape in (
            (f"{MLP}.experts.1.gate.weight", (6, 8)),
            (f"{MLP}.experts.gate.weight", (2, 6, 8)),
            (f"{MLP}.shared_expert.gate.weight", (6, 8)),
        ):
            plan = plan_one(name, shape)
            self.assertEqual(lookalikes_of(plan), {})
            self.assertEqual({matrix.proj for matrix in plan.matrices}, {"gate_proj"})


class IdentityExperts(unittest.TestCase):
    CONFIG: Mapping[str, Any] = {
        "model_type": "longcat_flash",
        "n_routed_experts": 2,
        "zero_expert_num": 2,
        "hidden_size": 8,
        "expert_ffn_hidden_size": 6,
        "num_layers": 1,
    }

    def test_are_ids_beyond_the_routed_ones(self) -> None:
        shapes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
        tensors = {
            f"{MLP}.experts.{expert}.{proj}.weight": shape
            for expert in range(4)
            for proj, shape in shapes.items()
            if expert < 2 or proj != "down_proj"
        }
        plan = plan_headers(make_headers(tensors), model_config=self.CONFIG)
        beyond = {name for name in tensors if ".2." in name or ".3." in name}
        self.assertEqual(lookalikes_of(plan), dict.fromkeys(beyond, "identity_expert"))
        self.assertEqual(set(keys_of(plan)), set(tensors) - beyond)
        self.assertTrue(plan.coverage.complete)

    def test_are_only_where_config_json_announces_them(self) -> None:
        config = self.CONFIG | {"zero_expert_num": 0}
        plan = plan_one(f"{MLP}.experts.2.up_proj.weight", (6, 8), model_config=config)
        self.assertEqual(lookalikes_of(plan), {})
        self.assertEqual(len(plan.units), 1)


class Copies(unittest.TestCase):
    UP = f"{MLP}.experts.0.up_proj.weight"

    def test_in_other_folders_and_files_are_set_apart(self) -> None:
        for file in (
            "original/model.safetensors",
            "original/deep/model-1.safetensors",
            "consolidated.safetensors",
            "consolidated-00001-of-00002.safetensors",
            "sub/consolidated/model.safetensors",
        ):
            native = "layers.0.experts.0.w1.weight"
            headers = [
                make_header(self.UP, (6, 8)),
                make_header(self.UP, (6, 8), file=file),
                make_header(native, (6, 8), file=file),
                make_header("norm.weight", (8,), file=file),
            ]
            plan = plan_headers(headers)
            with self.subTest(file=file):
                self.assertEqual([u.source.header.file for u in plan.units], ["model.safetensors"])
                copies = [item for item in plan.accounts if item.fate == "lookalike"]
                self.assertEqual(
                    [(item.tensor, item.file, item.detail, item.nbytes) for item in copies],
                    [(self.UP, file, "copy", 96), (native, file, "copy", 96)],
                )
                self.assertEqual(plan.in_scope, {self.UP, native})

    def test_alone_are_the_model_itself(self) -> None:
        plan = plan_headers([make_header(self.UP, (6, 8), file="consolidated.safetensors")])
        self.assertEqual(len(plan.units), 1)
        self.assertEqual(lookalikes_of(plan), {})

    def test_are_accounted_where_a_rule_names_them(self) -> None:
        headers = [
            make_header(self.UP, (6, 8)),
            make_header("ffn.bank", (2, 6, 8), file="original/a.safetensors"),
            make_header("ffn.other", (2, 6, 8), file="original/a.safetensors"),
        ]
        rule = make_rule(r"ffn\.bank", expert=0, rows=1, cols=2)
        plan = plan_headers(headers, rules(rule))
        self.assertEqual(lookalikes_of(plan), {"ffn.bank": "copy"})
