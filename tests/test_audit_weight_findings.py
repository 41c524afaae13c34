from __future__ import annotations

import unittest
from collections.abc import Sequence

from moe_weights.audit.weight_findings import weight_findings
from moe_weights.findings import Finding


def row(expert: int = 0, **cells: object) -> dict[str, object]:
    name = f"l.0.experts.{expert}.up_proj.weight"
    return {
        "file": "a",
        "source_tensor": name,
        "derived_tensor": f"{name}::up_proj",
        "stack": "",
        "layer": 0,
        "proj": "up_proj",
        "expert_id": expert,
        "rows": 2,
        "cols": 3,
        "dtype": "float32",
        "n_nan": 0,
        "n_inf": 0,
        "n_zero": 0,
        **cells,
    }


def findings(
    rows: Sequence[dict[str, object]],
    digests: Sequence[str] = (),
    constant: Sequence[bool] = (),
) -> list[Finding]:
    return weight_findings(
        rows,  # type: ignore[arg-type]
        digests or [str(number) for number in range(len(rows))],
        constant or [False] * len(rows),
    )


def texts(found: list[Finding]) -> list[str]:
    return [finding.message for finding in found]


NAME = "l.0.experts.{0}.up_proj.weight::up_proj expert {0}"


class Weights(unittest.TestCase):
    def test_without_faults_give_nothing(self) -> None:
        self.assertEqual(findings([]), [])
        self.assertEqual(findings([row(0), row(1, n_zero=5)]), [])

    def test_that_are_not_finite_give_one_line_with_a_count_and_three_names(self) -> None:
        rows = [row(expert, n_nan=expert % 2, n_inf=(expert + 1) % 2) for expert in (3, 2, 1, 0)]
        found = findings(rows)
        self.assertEqual(
            texts(found),
            [
                (
                    f"[weights] NaN or Inf in 4 matrices ({NAME.format(0)}, {NAME.format(1)}, "
                    f"{NAME.format(2)}, ...)"
                )
            ],
        )
        self.assertEqual((found[0].count, found[0].file), (4, "a"))

    def test_all_zero_are_told_as_zero_and_not_as_constant(self) -> None:
        self.assertEqual(
            texts(findings([row(0, n_zero=6), row(1)], constant=[True, True])),
            [
                f"[weights] all weights are zero in {NAME.format(0)}",
                f"[weights] all weights are equal in {NAME.format(1)}",
            ],
        )

    def test_of_nan_alone_are_told_as_not_finite_and_not_as_constant(self) -> None:
        self.assertEqual(
            texts(findings([row(0, n_nan=6), row(1, n_inf=6)], constant=[True, True])),
            [
                f"[weights] NaN or Inf in 2 matrices ({NAME.format(0)}, {NAME.format(1)})",
                f"[weights] all weights are equal in {NAME.format(1)}",
            ],
        )

    def test_identical_within_one_layer_and_projection_are_grouped(self) -> None:
        rows = [
            row(0), row(1), row(2), row(3),
            row(4, layer=1), row(5, proj="gate_proj"), row(6, dtype="float16"), row(7, rows=3),
            row(8, stack="encoder"),
        ]  # fmt: skip
        self.assertEqual(
            texts(findings(rows, ["x", "y", "x", "y", "x", "x", "x", "x", "x"])),
            [
                f"[weights] identical weights in 2 matrices ({NAME.format(0)}, {NAME.format(2)})",
                f"[weights] identical weights in 2 matrices ({NAME.format(1)}, {NAME.format(3)})",
            ],
        )

    def test_of_tensors_that_hold_several_layers_name_the_layer(self) -> None:
        bank = {"derived_tensor": "experts.up_proj::up_proj"}
        rows = [row(expert, layer=layer, **bank) for layer in (0, 1) for expert in (0, 1)]
        rows.append(row(2, n_inf=1))
        self.assertEqual(
            texts(findings(rows, ["x", "x", "y", "y", "z"])),
            [f"[weights] NaN or Inf in {NAME.format(2)}"]
            + [
                "[weights] identical weights in 2 matrices "
                f"(experts.up_proj::up_proj layer {layer} expert 0, "
                f"experts.up_proj::up_proj layer {layer} expert 1)"
                for layer in (0, 1)
            ],
        )

    def test_a_second_copy_of_one_matrix_in_another_file_is_not_a_twin(self) -> None:
        self.assertEqual(findings([row(0), row(0, file="b")], ["x", "x"]), [])

    def test_are_told_in_one_order_whatever_the_order_of_the_rows(self) -> None:
        halves = [row(0, derived_tensor=half, file=file, n_inf=1) for half, file in ("az", "by")]
        names = f"(a expert 0, b expert 0, {NAME.format(1)}, ...)"
        rows = [*halves, row(1, n_inf=1), row(2, n_inf=1)]
        for shown in (rows, rows[::-1]):
            self.assertEqual(
                texts(findings(shown, ["x"] * 4)),
                [
                    f"[weights] NaN or Inf in 4 matrices {names}",
                    f"[weights] identical weights in 4 matrices {names}",
                ],
            )


if __name__ == "__main__":
    unittest.main()
