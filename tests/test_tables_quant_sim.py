from __future__ import annotations

import unittest

from moe_weights.quantize.error import EXTRA_COLUMNS
from moe_weights.tables.quant_sim import quant_sim_schema, quant_sim_table
from tests.support.runs import row_of


def row(**cells: object) -> dict[str, object]:
    return row_of(quant_sim_schema(EXTRA_COLUMNS), **cells)


class Columns(unittest.TestCase):
    def test_are_the_contracts_then_the_additive_ones(self) -> None:
        self.assertEqual(
            ", ".join(quant_sim_schema(EXTRA_COLUMNS).column_names),
            "file, source_tensor, derived_tensor, layer, block4, proj, expert_id, "
            "is_shared_expert, rows, cols, scheme, mode, bits, group_size, w_rel_fro, w_rel_max, "
            "scale_mean, scale_max, bias_mean, bias_max, error, scale_abs_max, sqnr_db, cosine, "
            "n_saturated, n_zero_scale, bits_per_weight, backend, quant_dtype, stack, "
            "extracted_via, encoding, layout_evidence",
        )

    def test_are_without_the_additive_numbers_that_nobody_chose(self) -> None:
        extra = [column for column in EXTRA_COLUMNS if column.name == "cosine"]
        names = quant_sim_schema(extra).column_names
        self.assertEqual(names[21:25], ("scale_abs_max", "cosine", "backend", "quant_dtype"))
        self.assertNotIn("sqnr_db", names)

    def test_are_all_there_with_no_rows(self) -> None:
        table = quant_sim_table([], ["q4"], EXTRA_COLUMNS)
        self.assertEqual(table.n_rows, 0)
        self.assertEqual(tuple(table.values), quant_sim_schema(EXTRA_COLUMNS).column_names)
        self.assertNotIn("expert_id_in_bank", table.values)


class Order(unittest.TestCase):
    def test_is_that_of_matrix_stats_then_the_schemes_of_the_config(self) -> None:
        rows = [
            row(layer=layer, expert_id=expert, scheme=scheme)
            for scheme in ("a", "b", "c")
            for expert in (10, 2)
            for layer in (1, 0)
        ]
        table = quant_sim_table(rows, ["c", "a", "b"], EXTRA_COLUMNS)
        found = zip(
            table.values["layer"], table.values["expert_id"], table.values["scheme"], strict=True
        )
        self.assertEqual(
            list(found),
            [(layer, e, s) for layer in (0, 1) for e in (2, 10) for s in ("c", "a", "b")],
        )
