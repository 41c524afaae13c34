"""Encoded experts, cut and whole: the same values, each byte read with its own companions."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.decode.stored_tensor import StoredTensor, is_cut_with_experts
from tests.support.extraction import make_header, make_rule, rules
from tests.support.measured_plans import digest_of, plan_and_measure
from tests.support.runs import temporary_folder
from tests.support.scaled_codes import e2m1, e8m0
from tests.support.work_units import AFFINE_Q4, make_work_settings, run_rows

E, R, C = 5, 6, 64
NAME = "layers.0.experts.gate_up_proj"
BANK = make_rule(
    r".*gate_up_proj",
    expert=0,
    rows=1,
    cols=2,
    packed_split={
        "axis": "rows",
        "interleaved": True,
        "projs": ["gate_proj", "up_proj"],
    },
)


def codes(*shape: int, dtype: Any = np.uint8, seed: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


class EncodedBank(unittest.TestCase):
    def check(
        self,
        tensors: Mapping[str, np.ndarray],
        values: np.ndarray,
        encoding: str,
        quantization: Mapping[str, object] | None = None,
        rule: dict[str, Any] = BANK,
    ) -> None:
        """Measure in units of one expert and in one unit; both give `values` (E, R, C)."""
        expected = {
            ("text", 0, expert, proj): digest_of(values[expert, first::2].astype(np.float32))
            for expert in range(len(values))
            for first, proj in enumerate(("gate_proj", "up_proj"))
        }
        for target, n_units in ((1, len(values)), (2**20, 1)):
            with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", target):
                plan, found = plan_and_measure(
                    temporary_folder(self), tensors, rules(rule), quantization=quantization
                )
            self.assertEqual({unit.source.encoding for unit in plan.units}, {encoding})
            self.assertEqual(len(plan.units), n_units)
            self.assertEqual(found, expected)
            self.assertEqual((plan.unmatched, plan.findings), ((), ()))
            stored = sum(array.nbytes for array in tensors.values())
            self.assertEqual(plan.coverage.nbytes["measured"], stored)
            self.assertGreaterEqual(plan.nbytes, stored)
            self.assertLess(plan.nbytes, stored + len(values))

    def test_of_fp8_with_ragged_blocks(self) -> None:
        weights = np.random.default_rng(1).normal(size=(E, 160, 136))
        stored = weights.astype(ml_dtypes.float8_e4m3fn)
        scales = np.random.default_rng(2).uniform(0.5, 2, (E, 2, 2)).astype(np.float32)
        values = stored.astype(np.float32)
        for expert, r, c in np.ndindex(E, 160, 136):
            values[expert, r, c] *= scales[expert, r // 128, c // 128]
        self.check(
            {NAME: stored, f"{NAME}_scale_inv": scales},
            values,
            "fp8",
            {"weight_block_size": [128, 128]},
        )

    def test_of_fp8_with_one_scale_for_each_expert_or_for_all(self) -> None:
        stored = np.random.default_rng(1).normal(size=(E, R, C)).astype(ml_dtypes.float8_e5m2)
        for shape in ((E,), (E, 1, 1), ()):
            scales = np.random.default_rng(3).uniform(0.5, 2, shape).astype(np.float32)
            scales = np.asarray(scales, dtype=np.float32)
            per_expert = np.broadcast_to(scales.reshape(-1), (E,))
            values = stored.astype(np.float32) * per_expert[:, None, None]
            self.check({NAME: stored, f"{NAME}_scale": scales}, values, "fp8")

    def test_of_mxfp4_blocks(self) -> None:
        blocks = codes(E, R, C // 32, 16)
        scales = codes(E, R, C // 32, seed=1, high=20) + np.uint8(118)
        values = np.empty((E, R, C), dtype=np.float32)
        for expert, r, c in np.ndindex(E, R, C):
            byte = int(blocks[expert, r, c // 32, c % 32 // 2])
            nibble = byte >> 4 if c % 2 else byte & 15
            values[expert, r, c] = e2m1(nibble) * e8m0(int(scales[expert, r, c // 32]))
        self.check({f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}, values, "mxfp4")

    def test_of_mlx_affine_words(self) -> None:
        words = codes(E, R, C // 8, dtype=np.uint32, high=2**32)
        scales = np.random.default_rng(4).normal(size=(E, R, C // 32)).astype(np.float16)
        biases = np.random.default_rng(5).normal(size=(E, R, C // 32)).astype(np.float16)
        values = np.empty((E, R, C), dtype=np.float32)
        for expert, r, c in np.ndindex(E, R, C):
            code = np.float32(int(words[expert, r, c // 8]) >> (4 * (c % 8)) & 15)
            group = expert, r, c // 32
            product = np.float32(code * np.float32(scales[group]))
            values[expert, r, c] = product + np.float32(biases[group])
        tensors = {
            f"{NAME}.weight": words,
            f"{NAME}.scales": scales,
            f"{NAME}.biases": biases,
        }
        self.check(tensors, values, "mlx_affine", {"bits": 4, "group_size": 32})

    def test_turned_with_the_experts_on_another_axis_stays_whole(self) -> None:
        stored = np.random.default_rng(1).normal(size=(C, 4, R)).astype(ml_dtypes.float8_e4m3fn)
        scale = np.asarray(0.5, dtype=np.float32)
        values = stored.astype(np.float32).transpose(1, 2, 0) * scale
        rule = BANK | {"layout": {"expert_axis": 1, "rows_axis": 2, "cols_axis": 0}}
        with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", 1):
            plan, found = plan_and_measure(
                temporary_folder(self), {NAME: stored, f"{NAME}_scale": scale}, rules(rule)
            )
        self.assertEqual(len(plan.units), 1)
        self.assertEqual(
            found,
            {
                ("text", 0, expert, proj): digest_of(values[expert, first::2])
                for expert in range(4)
                for first, proj in enumerate(("gate_proj", "up_proj"))
            },
        )

    def test_stacked_in_two_axes_stays_whole(self) -> None:
        stored = np.random.default_rng(1).normal(size=(E * R, C)).astype(ml_dtypes.float8_e4m3fn)
        scale = np.asarray([2.0], dtype=np.float32)
        rule = make_rule(".*w1$", stacked=0, expert_count=E)
        name = "layers.0.experts.w1"
        with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", 1):
            plan, found = plan_and_measure(
                temporary_folder(self), {name: stored, f"{name}_scale": scale}, rules(rule)
            )
        self.assertEqual(len(plan.units), 1)
        values = (stored.astype(np.float32) * 2).reshape(E, R, C)
        self.assertEqual(
            found,
            {("text", 0, e, "gate_proj"): digest_of(values[e]) for e in range(E)},
        )


class RowsOfEncodedMatrices(unittest.TestCase):
    def test_keep_the_stored_dtype_and_name_the_encoding(self) -> None:
        folder: Path = temporary_folder(self)
        name = "layers.0.experts.3.up_proj.weight"
        stored = np.random.default_rng(1).normal(size=(8, 64)).astype(ml_dtypes.float8_e4m3fn)
        scale = np.asarray([2.0], dtype=np.float32)
        plan, _found = plan_and_measure(folder, {name: stored, f"{name}_scale": scale})
        (row,), (quant_row,) = run_rows(plan.units, make_work_settings(folder, schemes=[AFFINE_Q4]))
        self.assertEqual(
            (row["dtype"], row["encoding"], row["source_tensor"], row["derived_tensor"]),
            ("float8_e4m3fn", "fp8", name, f"{name}::up_proj"),
        )
        self.assertEqual(row["max_abs"], 2 * float(np.abs(stored.astype(np.float64)).max()))
        self.assertEqual((quant_row["quant_dtype"], quant_row["error"]), ("float32", None))


class PartsCutWithExperts(unittest.TestCase):
    def is_cut(self, role: str, *shape: int, of: tuple[int, ...] = (E, R, C)) -> bool:
        header = make_header("x", of, "F8_E4M3")
        tensor = StoredTensor(name="x", encoding="fp8", header=header, shape=of)
        return is_cut_with_experts(role, make_header("part", shape, "F32"), tensor)

    def test_have_the_axis_of_the_experts_first(self) -> None:
        self.assertTrue(self.is_cut("scale", E, 1, 1))
        self.assertTrue(self.is_cut("weight", E, R, C))
        self.assertTrue(self.is_cut("bias", E, R, 2))
        self.assertFalse(self.is_cut("scale", R, E))

    def test_of_one_axis_are_scales_and_zero_points_and_nothing_else(self) -> None:
        for role in ("scale", "global_scale", "input_scale", "zero_point", "divisor"):
            self.assertTrue(self.is_cut(role, E), role)
        for role in ("g_idx", "quant_map", "shape", "weight_format", "permutation"):
            self.assertFalse(self.is_cut(role, E), role)

    def test_of_one_element_describe_the_whole(self) -> None:
        self.assertFalse(self.is_cut("scale", 1, of=(1, R, C)))
        self.assertFalse(self.is_cut("scale"))

    def test_are_none_of_a_single_matrix(self) -> None:
        self.assertFalse(self.is_cut("scale", R, 1, of=(R, C)))
