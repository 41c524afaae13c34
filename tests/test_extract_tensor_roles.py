from __future__ import annotations

import unittest

from moe_weights.extract.role_assignment import RoleAssignment
from moe_weights.extract.tensor_roles import role_by_name, stack_by_name
from tests.support.extraction import make_header, make_headers, plan_headers

L = "model.layers.3"

ROLES = {
    "router": (
        f"{L}.mlp.gate.weight", f"{L}.block_sparse_moe.gate.weight", f"{L}.mlp.router.weight",
        f"{L}.mlp.shared_expert_gate.weight", f"{L}.mlp.gate.wg.weight", f"{L}.moe.gate.weight",
        f"{L}.mlp.router.classifier.weight", f"{L}.block_sparse_moe.router.layer.weight",
        f"{L}.mlp.gate.weight_1", "layers.3.ffn.gate.tid2eid", "layers.3.gate.weight",
        "blk.3.ffn_gate_inp.weight", f"{L}.mlp.router.gate.weight", f"{L}.router.per_expert_scale",
        f"{L}.mlp.gate.scales", f"{L}.mlp.gate.global_scale",
        f"{L}.mlp.gate.down_proj.weight", f"{L}.mlp.gate.router_mlp.fc1.weight",
    ),
    "router_bias": (
        f"{L}.mlp.gate.e_score_correction_bias", f"{L}.mlp.e_score_correction_bias",
        f"{L}.mlp.moe_statics.e_score_correction_bias", f"{L}.mlp.expert_bias",
        f"{L}.mlp.gate.expert_bias", f"{L}.moe.router_bias", "layers.3.router_biases",
        f"{L}.mlp.router.bias", f"{L}.mlp.gate.bias", "blk.3.exp_probs_b",
        f"{L}.mlp.gate.balancing_biases",
    ),
    "norm": (
        f"{L}.input_layernorm.weight", f"{L}.self_attn.q_norm.weight", "model.norm.weight",
        f"{L}.post_attention_layernorm.bias", "transformer.h.3.ln_1.weight", "ln_f.weight",
        f"{L}.ffn_norm.weight", f"{L}.norm_attn_norm.norm_1.weight",
        f"{L}.post_attention_layernorm.0.weight", "embeddings.LayerNorm.weight",
    ),
    "attention": (
        f"{L}.self_attn.q_proj.weight", f"{L}.attention.wqkv.weight", f"{L}.linear_attn.in_proj",
        f"{L}.self_attn.kv_b_proj.weight_scale_inv", "layers.3.attn.wo_b.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
        f"{L}.norm_attn_norm.attn.Wqkv.weight", f"{L}.norm_attn_norm.attn.out_proj.weight",
    ),
    "dense_mlp": (
        f"{L}.mlp.gate_proj.weight", f"{L}.mlp.down_proj.weight_scale_inv",
        f"{L}.feed_forward.w1.weight", f"{L}.residual_mlp.w2.weight", f"{L}.mlps.0.up_proj.weight",
        "encoder.block.0.layer.1.DenseReluDense.wi.weight", f"{L}.ffn.fc1.weight",
        f"{L}.mixer.up_proj.weight", "model.visual.blocks.3.mlp.linear_fc1.weight",
    ),
    "embedding": (
        "model.embed_tokens.weight", "lm_head.weight", "transformer.wte.weight", "shared.weight",
        "token_embd.weight", "head.weight",
    ),
    "other": ("mtp.eh_proj.weight", f"{L}.mamba.A_log", "vision_tower.patch.weight", "x"),
}  # fmt: skip


class RolesByName(unittest.TestCase):
    def test_are_those_of_real_names(self) -> None:
        for role, names in ROLES.items():
            for name in names:
                with self.subTest(name=name):
                    self.assertEqual(role_by_name(name), role)

    def test_do_not_depend_on_ids(self) -> None:
        for role, names in ROLES.items():
            for name in names:
                self.assertEqual(role_by_name(name.replace(".3.", ".60.")), role, name)


class StacksByName(unittest.TestCase):
    def test_are_those_of_real_names(self) -> None:
        for name, stack in {
            "model.layers.0.mlp.experts.0.w1": "text",
            "model.language_model.layers.0.mlp.experts.w1": "text",
            "mtp.layers.0.mlp.experts.0.w1": "mtp",
            "model.mtp.layers.0.x": "mtp",
            "model.mtp_block.0.x": "mtp",
            "mtp_dspark.x": "mtp",
            "thinker.model.layers.0.x": "thinker",
            "talker.model.layers.0.x": "talker",
            "model.visual.blocks.0.x": "vision",
            "vision_tower.x": "vision",
            "encoder.block.0.x": "encoder",
            "model.decoder.layers.0.x": "decoder",
            "autoencoder.block.0": "text",
        }.items():
            with self.subTest(name=name):
                self.assertEqual(stack_by_name(name, 0, None), stack)

    def test_of_layers_past_the_last_are_extra_prediction_layers(self) -> None:
        name = "model.layers.4.x"
        self.assertEqual(stack_by_name(name, 4, 4), "mtp")
        self.assertEqual(stack_by_name(name, 3, 4), "text")
        self.assertEqual(stack_by_name(name, 4, None), "text")
        self.assertEqual(stack_by_name(name, None, 4), "text")
        self.assertEqual(stack_by_name("encoder.layers.4.x", 4, 4), "encoder")


class AssignedRoles(unittest.TestCase):
    def roles(self, tensors: dict[str, tuple[int, ...]], **changes: object) -> dict[str, str]:
        plan = plan_headers(
            make_headers(tensors), {k.replace("__", "."): v for k, v in changes.items()}
        )
        assignment = RoleAssignment(plan)
        return {name: str(assignment.role(name)) for name in tensors}

    def test_come_from_the_plan_and_else_from_the_name(self) -> None:
        mlp = f"{L}.mlp"
        expected = {
            f"{mlp}.experts.0.up_proj.weight": ((6, 8), "routed_expert"),
            f"{mlp}.experts.0.odd.weight": ((6, 8), "routed_expert"),
            f"{mlp}.experts.0.up_proj.bias": ((6,), "routed_expert"),
            f"{mlp}.experts.0.up_proj.lora_A.weight": ((2, 8), "routed_expert"),
            f"{mlp}.shared_experts.up_proj.lora_A.weight": ((2, 8), "shared_expert"),
            f"{L}.self_attn.experts.q_proj.lora_A.weight": ((2, 8), "attention"),
            f"{mlp}.shared_experts.up_proj.weight": ((6, 8), "shared_expert"),
            f"{mlp}.shared_experts.odd.weight": ((6, 8), "shared_expert"),
            f"{mlp}.shared_experts.up_proj.bias": ((6,), "shared_expert"),
            f"{mlp}.experts.e_score_correction_bias": ((2,), "router_bias"),
            f"{mlp}.experts.router.weight": ((2, 8), "router"),
            f"{L}.self_attn.experts.up_proj.weight": ((2, 6, 8), "attention"),
            f"{mlp}.up_proj.weight": ((6, 8), "dense_mlp"),
            "model.norm.weight": ((8,), "norm"),
        }
        tensors = {name: shape for name, (shape, _role) in expected.items()}
        roles = {name: role for name, (_shape, role) in expected.items()}
        self.assertEqual(self.roles(tensors), roles)
        excluded = self.roles(tensors, scan__include_shared_expert=False)
        self.assertEqual(excluded, roles)
        self.assertEqual(self.roles(tensors, scan__experts_only=False), roles)

    def test_of_companions_are_those_of_their_weights(self) -> None:
        name = f"{L}.mlp.experts.0.up_proj.weight"
        headers = [
            make_header(name, (128, 128), "F8_E4M3"),
            make_header(f"{name}_scale_inv", (1, 1), "F32"),
        ]
        assignment = RoleAssignment(plan_headers(headers))
        self.assertEqual(assignment.role(f"{name}_scale_inv"), "routed_expert")

    def test_of_declared_kinds_nobody_knows_come_from_the_name(self) -> None:
        name = f"{L}.mlp.up_proj.weight"
        lookalikes = [{"match": ".*", "kind": "anything"}]
        plan = plan_headers(make_headers({name: (6, 8)}), {"parsing.lookalikes": lookalikes})
        self.assertEqual(RoleAssignment(plan).role(name), "dense_mlp")

    def test_of_copies_never_change_those_of_the_model(self) -> None:
        name = f"{L}.mlp.experts.0.up_proj.weight"
        only_copied = "layers.3.experts.0.w1.weight"
        in_block = "layers.3.feed_forward.experts.0.w1.weight"
        shared = "layers.3.shared_experts.w1.weight"
        headers = [
            make_header(name, (6, 8)),
            *(
                make_header(other, (6, 8), file="original/m.safetensors")
                for other in (name, only_copied, in_block, shared)
            ),
        ]
        assignment = RoleAssignment(plan_headers(headers))
        self.assertEqual(
            [assignment.role(other) for other in (name, only_copied, in_block, shared)],
            ["routed_expert", "routed_expert", "routed_expert", "shared_expert"],
        )
