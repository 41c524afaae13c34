"""Every way in which experts lie on disk, told by rules, against plain NumPy slicing."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.support.extraction import make_rule, rules
from tests.support.measured_plans import digest_of, numbered, plan_and_measure
from tests.support.runs import temporary_folder

E, H, WIDTH, LAYERS = 3, 8, 6, 2  # experts, hidden size, inner width, layers
GATE_UP = ["gate_proj", "up_proj"]

Matrices = dict[tuple[str, int, int, str], np.ndarray]


class LayoutKind(unittest.TestCase):
    def check(
        self, tensors: Mapping[str, np.ndarray], expected: Matrices, *used: dict[str, Any]
    ) -> None:
        """Plan `tensors` by rules alone and compare the values of every matrix."""
        plan, found = plan_and_measure(temporary_folder(self), tensors, rules(*used))
        self.assertEqual(found, {key: digest_of(matrix) for key, matrix in expected.items()})
        self.assertEqual((plan.unmatched, plan.findings), ((), ()))
        self.assertTrue(all(unit.extracted_via.startswith("rule:") for unit in plan.units))
        self.assertEqual({account.fate for account in plan.accounts}, {"measured"})
        self.assertEqual(
            sum(account.nbytes for account in plan.accounts),
            sum(array.nbytes for array in tensors.values()),
        )


class PerExpert(LayoutKind):
    def per_expert(self, words: Mapping[str, str], pattern: str) -> tuple[Any, Matrices]:
        """Return one tensor per expert and what each holds; words map file names to projections."""
        tensors: dict[str, np.ndarray] = {}
        expected: Matrices = {}
        start = 0
        for layer in range(LAYERS):
            for expert in range(E):
                for word, proj in words.items():
                    shape = (H, WIDTH) if proj == "down_proj" else (WIDTH, H)
                    name = pattern.format(layer=layer, expert=expert, word=word)
                    tensors[name] = numbered(*shape, start=start)
                    expected["text", layer, expert, proj] = tensors[name]
                    start += H * WIDTH
        return tensors, expected

    def test_kind_a_names_gate_up_and_down(self) -> None:
        words = {proj: proj for proj in (*GATE_UP, "down_proj")}
        tensors, expected = self.per_expert(
            words, "model.layers.{layer}.mlp.experts.{expert}.{word}.weight"
        )
        rule = make_rule(r".*experts\.(\d+)\.(\w+)\.weight$", expert_group=1, proj_group=2)
        self.check(tensors, expected, rule)

    def test_kind_b_names_w1_w2_w3_and_w2_is_down(self) -> None:
        words = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        tensors, expected = self.per_expert(
            words, "model.layers.{layer}.block_sparse_moe.experts.{expert}.{word}.weight"
        )
        rule = make_rule(r".*experts\.(\d+)\.(w[123])\.weight$", expert_group=1, proj_group=2)
        self.check(tensors, expected, rule)

    def test_kind_c_has_no_gate_and_words_of_its_own(self) -> None:
        tensors, expected = self.per_expert(
            {"wi": "up_proj", "wo": "down_proj"},
            "decoder.block.{layer}.layer.2.mlp.experts.expert_{expert}.{word}.weight",
        )
        rule = make_rule(
            r"(encoder|decoder)\.block\.(\d+)\.layer\.\d\.mlp\.experts\.expert_(\d+)\.(w[io])\.",
            stack_group=1,
            layer_group=2,
            expert_group=3,
            proj_group=4,
            proj_map={"wi": "up_proj", "wo": "down_proj"},
        )
        self.check(tensors, {("decoder", *key[1:]): m for key, m in expected.items()}, rule)


class Fused(LayoutKind):
    NAME = "model.layers.4.mlp.experts.gate_up_proj"

    def bank(self, *shape: int) -> np.ndarray:
        return numbered(E, *shape)

    def expected(self, **parts: np.ndarray) -> Matrices:
        """Return matrices of banks (E, R, C) in canonical orientation."""
        return {
            ("text", 4, expert, proj): bank[expert]
            for proj, bank in parts.items()
            for expert in range(E)
        }

    def test_kind_d_has_contiguous_halves_of_rows_gate_first(self) -> None:
        bank = self.bank(2 * WIDTH, H)
        split = {"axis": "rows", "splits": None, "projs": GATE_UP}
        self.check(
            {self.NAME: bank},
            self.expected(gate_proj=bank[:, :WIDTH], up_proj=bank[:, WIDTH:]),
            make_rule(".*gate_up_proj$", expert=0, rows=1, cols=2, packed_split=split),
        )

    def test_kind_e_is_turned_with_contiguous_halves_of_columns(self) -> None:
        bank = self.bank(H, 2 * WIDTH)
        split = {"axis": "rows", "splits": [WIDTH, WIDTH], "projs": GATE_UP}
        turned = bank.swapaxes(1, 2)
        self.check(
            {self.NAME: bank},
            self.expected(gate_proj=turned[:, :WIDTH], up_proj=turned[:, WIDTH:]),
            make_rule(".*gate_up_proj$", expert=0, rows=2, cols=1, packed_split=split),
        )

    def test_kind_f_is_turned_and_interleaved(self) -> None:
        bank = self.bank(H, 2 * WIDTH)
        down = numbered(E, WIDTH, H, start=1000)
        split = {"axis": "rows", "interleaved": True, "projs": GATE_UP}
        name = self.NAME.replace("gate_up", "down")
        self.check(
            {self.NAME: bank, name: down},
            self.expected(
                gate_proj=bank[:, :, 0::2].swapaxes(1, 2),
                up_proj=bank[:, :, 1::2].swapaxes(1, 2),
                down_proj=down.swapaxes(1, 2),
            ),
            make_rule(".*gate_up_proj$", expert=0, rows=2, cols=1, packed_split=split),
            make_rule(r".*\.(down_proj)$", expert=0, rows=2, cols=1, proj_group=1),
        )

    def test_kind_g_has_interleaved_rows(self) -> None:
        bank = self.bank(2 * WIDTH, H)
        split = {"axis": "rows", "interleaved": True, "projs": GATE_UP}
        name = "model.llm.layers.4.mlp.experts.w13_weight"
        self.check(
            {name: bank},
            self.expected(gate_proj=bank[:, 0::2], up_proj=bank[:, 1::2]),
            make_rule(".*w13_weight$", expert=0, rows=1, cols=2, packed_split=split),
        )

    def test_kind_h_has_three_stacks(self) -> None:
        tensors = {
            f"model.layers.4.moe.{proj}.weight": numbered(E, *shape, start=1000 * position)
            for position, (proj, shape) in enumerate(
                {
                    "gate_proj": (WIDTH, H),
                    "up_proj": (WIDTH, H),
                    "down_proj": (H, WIDTH),
                }.items()
            )
        }
        banks = {name.split(".")[-2]: bank for name, bank in tensors.items()}
        self.check(
            tensors,
            self.expected(**banks),
            make_rule(r".*\.moe\.(\w+_proj)\.weight$", expert=0, rows=1, cols=2, proj_group=1),
        )

    def test_kind_i_stacks_experts_on_the_rows_and_turns_down_alone(self) -> None:
        tensors = {
            f"transformer.layers.4.ffn.experts.mlp.{word}": numbered(
                E * WIDTH, H, start=1000 * position
            )
            for position, word in enumerate(("w1", "v1", "w2"))
        }
        w1, v1, w2 = (array.reshape(E, WIDTH, H) for array in tensors.values())
        self.check(
            tensors,
            self.expected(gate_proj=w1, up_proj=v1, down_proj=w2.swapaxes(1, 2)),
            make_rule(
                r".*\.mlp\.(w1|v1)$",
                stacked=0,
                expert_count=E,
                proj_group=1,
                proj_map={"w1": "gate_proj", "v1": "up_proj"},
            ),
            make_rule(r".*\.mlp\.w2$", rows=1, cols=0, stacked=0, expert_count=E, proj="down_proj"),
        )

    def test_experts_side_by_side_on_the_columns(self) -> None:
        stored = numbered(H, E * WIDTH)
        self.check(
            {"layers.4.experts.down": stored},
            self.expected(down_proj=stored.reshape(H, E, WIDTH).swapaxes(0, 1)),
            make_rule(".*down$", stacked=1, expert_count=E, proj="down_proj"),
        )


class LayerStacked(LayoutKind):
    def test_kind_j_holds_layers_and_experts_in_any_order_of_axes(self) -> None:
        bank = numbered(LAYERS, E, WIDTH, H)
        expected = {
            ("text", layer, expert, "up_proj"): bank[layer, expert]
            for layer in range(LAYERS)
            for expert in range(E)
        }
        orders = ((0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1), (2, 0, 3, 1))
        for order in orders:  # the stored axis `order[i]` of (L, E, R, C) comes i-th
            layer, expert, rows, cols = (order.index(axis) for axis in range(4))
            with self.subTest(order=order):
                self.check(
                    {"params.moe.up": np.ascontiguousarray(bank.transpose(order))},
                    expected,
                    make_rule(
                        ".*up$", layer=layer, expert=expert, rows=rows, cols=cols, proj="up_proj"
                    ),
                )

    def test_layers_alone_on_an_axis_beside_an_expert_in_the_name(self) -> None:
        bank = numbered(LAYERS, WIDTH, H)
        self.check(
            {"params.experts.5.up": bank},
            {("text", layer, 5, "up_proj"): bank[layer] for layer in range(LAYERS)},
            make_rule(".*up$", layer=0, rows=1, cols=2, proj="up_proj"),
        )


class Splits(LayoutKind):
    NAME = "layers.0.experts.fused"

    def check_split(self, bank: np.ndarray, parts: list[np.ndarray], **split: Any) -> None:
        """Split a bank (E, R, C) and compare the parts, named a, b, c."""
        projs = list("abc")[: len(parts)]
        expected = {
            ("text", 0, expert, proj): part[expert]
            for proj, part in zip(projs, parts, strict=True)
            for expert in range(len(bank))
        }
        rule = make_rule(
            ".*fused$", expert=0, rows=1, cols=2, packed_split={"projs": projs, **split}
        )
        changes = rules(rule) | {"parsing.proj_aliases": {}}
        _plan, found = plan_and_measure(temporary_folder(self), {self.NAME: bank}, changes)
        self.assertEqual(found, {key: digest_of(matrix) for key, matrix in expected.items()})

    def test_of_unequal_parts(self) -> None:
        bank = numbered(2, 6, 5)
        parts = [bank[:, :1], bank[:, 1:4], bank[:, 4:]]
        self.check_split(bank, parts, axis="rows", splits=[1, 3, 2])
        self.check_split(
            bank, [bank[:, :, :2], bank[:, :, 2:]], axis="cols", splits=[2, 3], interleaved=False
        )

    def test_of_three_equal_parts(self) -> None:
        bank = numbered(2, 6, 9)
        self.check_split(bank, [bank[:, :2], bank[:, 2:4], bank[:, 4:]], axis="rows")
        thirds = [bank[:, :, :3], bank[:, :, 3:6], bank[:, :, 6:]]
        self.check_split(bank, thirds, axis="cols", splits=None)

    def test_of_three_interleaved_parts(self) -> None:
        bank = numbered(2, 6, 9)
        self.check_split(bank, [bank[:, n::3] for n in range(3)], axis="rows", interleaved=True)
        self.check_split(
            bank, [bank[:, :, n::3] for n in range(3)], axis="cols", interleaved=True,
            splits=[3, 3, 3],
        )  # fmt: skip

    def test_of_one_part_is_the_whole(self) -> None:
        bank = numbered(2, 3, 4)
        self.check_split(bank, [bank], axis="rows", interleaved=True)
