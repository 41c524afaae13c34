"""What the inventory says that tensors are for, and small tensors that describe others."""

from __future__ import annotations

import unittest
from collections.abc import Mapping

import numpy as np

from tests.support.command_line import HIDDEN, WIDTH, expert_tensors, random_weights
from tests.support.declared_models import GATE, ON, DeclaredCase


class Roles(DeclaredCase):
    ROLES: Mapping[str, str] = {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.input_layernorm.weight": "norm",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.mlp.gate.e_score_correction_bias": "router_bias",
        "model.layers.0.mlp.experts.e_score_correction_bias": "router_bias",
        "model.layers.0.mlp.shared_expert.up_proj.weight": "shared_expert",
        "model.layers.0.mlp.shared_expert_gate.weight": "router",
        "model.layers.1.mlp.up_proj.weight": "dense_mlp",
        "model.layers.0.odd_thing": "other",
    }

    def test_sort_every_byte_of_the_checkpoint_once(self) -> None:
        tensors = expert_tensors() | {
            name: random_weights(4, 4, seed=seed) for seed, name in enumerate(self.ROLES)
        }
        self.write(tensors)
        self.collected(ON)
        inventory = self.frame("data/tensor_inventory")
        found = dict(zip(inventory["tensor_name"], inventory["role"], strict=True))
        expected = {name: self.ROLES.get(name, "routed_expert") for name in tensors}
        self.assertEqual(found, expected)
        by_role = inventory.groupby("role")["nbytes"].sum()
        self.assertEqual(by_role.sum(), sum(array.nbytes for array in tensors.values()))
        self.assertEqual(by_role["routed_expert"], 2 * 3 * 4 * HIDDEN * WIDTH)

    def test_of_companions_are_those_of_the_weights_they_explain(self) -> None:
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        codes, scale = GATE.format(0), f"{GATE.format(0)}_scale"
        tensors[codes] = np.ones((WIDTH, HIDDEN), np.int8)
        tensors[scale] = np.ones((WIDTH, 1), np.float32)
        self.write(tensors)
        self.collected(ON)
        inventory = self.frame("data/tensor_inventory").set_index("tensor_name")
        self.assertEqual(inventory["role"][scale], "routed_expert")
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        self.assertEqual(
            tuple(rows.loc[codes][["dtype", "encoding", "mean"]]), ("int8", "int8", 1.0)
        )
        ledger = self.log("coverage.json")
        self.assertIs(ledger["complete"], True)
        self.assertEqual(ledger["bytes"]["measured"], 4 * 5 * 2048 + 2048 + 4 * WIDTH)


class Descriptions(DeclaredCase):
    """Small tensors that describe others are read while the plan is made; large ones are not."""

    def test_are_read_where_the_shape_stands_in_one(self) -> None:
        stem = GATE.format(0).removesuffix(".weight")
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        # Codes of 0 mean -8; the last word of a row is not full.
        tensors[f"{stem}.weight_packed"] = np.zeros((WIDTH, HIDDEN // 8), np.int32)
        tensors[f"{stem}.weight_scale"] = np.full((WIDTH, 1), 0.5, np.float32)
        tensors[f"{stem}.weight_shape"] = np.array([WIDTH, HIDDEN - 1], np.int64)
        self.write(tensors)
        self.collected(ON)
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        row = rows.loc[f"{stem}.weight_packed"]
        self.assertEqual(
            (row["encoding"], row["rows"], row["cols"], row["mean"]),
            ("packed_int", WIDTH, HIDDEN - 1, -4.0),
        )
        self.assertEqual(set(self.frame("data/coverage")["status"]), {"complete", "wrong_shape"})

    def test_beyond_the_limit_are_none(self) -> None:
        codes = GATE.format(0).removesuffix(".weight")
        tensors = expert_tensors()
        del tensors[GATE.format(0)]
        tensors[f"{codes}.weight_packed"] = np.zeros((WIDTH, HIDDEN // 8), np.int32)
        tensors[f"{codes}.weight_scale"] = np.ones((WIDTH, 1), np.float32)
        tensors[f"{codes}.weight_shape"] = np.zeros(8193, np.int64)
        self.write(tensors)
        self.collected(ON)  # its shape alone says that it is no description, so nobody reads it
        state = GATE.format(0) + ".quant_state.bitsandbytes__nf4"
        tensors = expert_tensors() | {
            GATE.format(0): np.zeros((WIDTH * HIDDEN // 2, 1), np.uint8),
            f"{GATE.format(0)}.absmax": np.ones(WIDTH * HIDDEN // 64, np.float32),
            f"{GATE.format(0)}.quant_map": np.ones(16, np.float32),
            state: np.zeros(65_537, np.uint8),
        }
        self.write(tensors)
        self.collected(ON)
        name = GATE.format(0)
        self.assertIn(
            f"[read] refused (bad_companion): state {state} U8 [65537] of codes {name} U8 "
            f"[{WIDTH * HIDDEN // 2}, 1] is too large for the short text that bitsandbytes writes: "
            f"{name}",
            self.warnings(),
        )
        unmatched = self.frame("data/unmatched_tensors").set_index("tensor_name")
        self.assertEqual(unmatched["reason"][name], "bad_companion")


if __name__ == "__main__":
    unittest.main()
