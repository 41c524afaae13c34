"""Tensors whose names say expert and that are something else: named, never measured."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

from moe_weights.config.preset import find_preset
from moe_weights.extract.plan import ExtractionPlan
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


class SideTensorsWithoutWeights(unittest.TestCase):
    """Are known by the name that their weights would have, whatever the module is called."""

    MOE = "model.layers.3.moe"
    STACKS: Mapping[str, Any] = make_rule(
        r"(?:\w+\.)*layers\.(\d+)\.moe\.(gate_proj|up_proj|down_proj)\.weight$",
        expert=0, rows=1, cols=2, ndim=3, layer_group=1, proj_group=2,
    )  # fmt: skip
    SHARED: Mapping[str, Any] = make_rule(
        r"(?:\w+\.)*layers\.(\d+)\.extra\.(up_proj)\.weight$",
        layer_group=1, proj_group=2, is_shared_expert=True,
    )  # fmt: skip

    def test_are_unmatched_and_in_the_ledger(self) -> None:
        ways = {"changes": rules(self.STACKS)}, {"preset": make_preset(self.STACKS)}
        for ending, shape, code in (
            ("weight_scale_inv", (4, 1, 1), "F32"),
            ("weight_scale_inv", (4,), "BF16"),
            ("weight_scale", (4, 1, 1), "F8_E8M0"),
            ("scales", (4, 6, 1), "U8"),
            ("weight.absmax", (6,), "F32"),
            ("weight.quant_state.bitsandbytes__nf4", (90,), "U8"),
        ):
            name = f"{self.MOE}.gate_proj.{ending}"
            for way in ways:
                with self.subTest(name=name, by=list(way)):
                    plan = plan_one(name, shape, dtype_code=code, **way)  # type: ignore[arg-type]
                    self.assertEqual(reasons_of(plan), {name: "side_tensor"})
                    self.assertEqual(fates_of(plan), {name: ("unmatched", "side_tensor")})
                    (account,) = plan.accounts
                    self.assertEqual(
                        (account.stack, account.layer, account.proj, account.is_routed),
                        ("text", 3, "gate_proj", True),
                    )
                    self.assertEqual((plan.in_scope, plan.units), ({name}, ()))

    def test_keep_a_checkpoint_with_all_weights_from_being_complete(self) -> None:
        config = {
            "model_type": "step3p5", "hidden_size": 8, "moe_intermediate_size": 6,
            "moe_num_experts": 2, "num_hidden_layers": 1, "moe_layers_enum": "0",
        }  # fmt: skip
        moe = "model.layers.0.moe"
        tensors = {
            f"{moe}.{proj}.weight": (2, *shape)
            for proj, shape in {
                "gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)
            }.items()
        }  # fmt: skip
        preset = find_preset("step3p5")
        sound = plan_headers(make_headers(tensors), model_config=config, preset=preset)
        self.assertIs(sound.coverage.complete, True)
        scale = make_header(f"{moe}.old_proj.weight_scale_inv", (2, 1, 1), "F32")
        plan = plan_headers([*make_headers(tensors), scale], model_config=config, preset=preset)
        self.assertIs(plan.coverage.complete, True)  # no rule would take its weights
        scale = make_header(f"{moe}.gate_proj.qscale_weight", (2, 1, 1), "F32")
        plan = plan_headers([*make_headers(tensors), scale], model_config=config, preset=preset)
        self.assertIs(plan.coverage.complete, False)
        self.assertEqual(reasons_of(plan), {scale.name: "side_tensor"})

    def test_of_shared_experts_are_shared_and_left_out_with_them(self) -> None:
        name = "model.layers.3.extra.up_proj.weight_scale"
        for code in ("F32", "U8"):
            plan = plan_one(name, (8, 1), rules(self.SHARED), dtype_code=code)
            (account,) = plan.accounts
            self.assertEqual((str(account.fate), account.is_routed), ("unmatched", False))
            changes = rules(self.SHARED) | {"scan.include_shared_expert": False}
            plan = plan_one(name, (8, 1), changes, dtype_code=code)
            self.assertEqual(fates_of(plan), {name: ("excluded", "shared_expert")})

    def test_that_are_biases_are_look_alikes(self) -> None:
        name = f"{self.MOE}.gate_proj.bias"
        plan = plan_one(name, (4, 6), rules(self.STACKS))
        self.assertEqual(lookalikes_of(plan), {name: "expert_bias"})

    def test_in_a_second_copy_of_the_model_are_accounted_for(self) -> None:
        name = f"{self.MOE}.gate_proj.weight_scale"
        copy = make_header(name, (4, 1, 1), "F32", file="original/model.safetensors")
        main = make_header("model.layers.3.mlp.experts.0.up_proj.weight", (6, 8))
        plan = plan_headers([main, copy], rules(self.STACKS))
        self.assertEqual(fates_of(plan)[name], ("lookalike", "copy"))

    def test_of_dense_layers_are_none_of_the_ledgers_business(self) -> None:
        for name in (f"{self.MOE}.gate.weight_scale", "lm_head.weight_scale", "odd.weight.absmax"):
            for code in ("F32", "U8"):
                plan = plan_one(name, (4, 1), rules(self.STACKS), dtype_code=code)
                self.assertEqual((plan.accounts, plan.unmatched, plan.in_scope), ((), (), set()))


class RefusedTensors(unittest.TestCase):
    """Have the place in the ledger that the rule gives them which cannot take them."""

    def account_of(self, plan: ExtractionPlan) -> tuple[str, int, str]:
        (account,) = plan.accounts
        return account.stack, account.layer, account.proj

    def test_with_the_ids_and_the_projection_of_the_rule(self) -> None:
        rule = make_rule(
            r"(\w+)\.block_(\d+)\.unit_(\d+)\.(alpha|gate)$",
            stack_group=1, layer_group=2, expert_group=3, proj_group=4,
            proj_map={"alpha": "down_proj"},
        )  # fmt: skip
        name = "encoder.block_4.unit_1.{}"
        for word, proj in (("alpha", "down_proj"), ("gate", "gate")):
            plan = plan_one(name.format(word), (4, 6), rules(rule), dtype_code="F8_E4M3")
            self.assertEqual(reasons_of(plan), {name.format(word): "missing_companion"})
            self.assertEqual(self.account_of(plan), ("encoder", 4, proj))

    def test_with_no_projection_where_the_rule_splits_several(self) -> None:
        split = {"axis": "rows", "projs": ["gate_proj", "up_proj"]}
        rule = make_rule(
            r"b(\d+)\.(up)$", expert=0, rows=1, cols=2, layer_group=1, packed_split=split
        )
        plan = plan_one("b7.up", (2, 4, 6), rules(rule), dtype_code="F8_E4M3")
        self.assertEqual(self.account_of(plan), ("text", 7, ""))

    def test_with_the_projection_of_the_name_where_the_rule_does_not_say(self) -> None:
        rule = make_rule(r"b(\d+)\.", expert=0, rows=1, cols=2, layer_group=1)
        plan = plan_one("b7.up_proj", (2, 4, 6), rules(rule), dtype_code="F8_E4M3")
        self.assertEqual(self.account_of(plan), ("text", 7, "up_proj"))
        rule["proj"] = "down_proj"
        plan = plan_one("b7.up_proj", (2, 4, 6), rules(rule), dtype_code="F8_E4M3")
        self.assertEqual(self.account_of(plan), ("text", 7, "down_proj"))


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
