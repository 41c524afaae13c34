from __future__ import annotations

import unittest

from moe_weights.findings import Finding, FindingKind
from moe_weights.quantize.findings import failure_findings

HINT = "the rows stand in data/quant_sim with this text in the column error"


def row(name: str, error: str | None, scheme: str = "q4") -> dict[str, str | None]:
    return {
        "scheme": scheme,
        "error": error,
        "derived_tensor": name,
        "file": "a.safetensors",
        "source_tensor": f"{name}.source",
    }


class FailedSchemes(unittest.TestCase):
    def test_that_do_not_fail_give_nothing(self) -> None:
        self.assertEqual(failure_findings([row("a", None)]), [])
        self.assertEqual(failure_findings([]), [])

    def test_give_one_warning_per_scheme_and_cause_with_three_names(self) -> None:
        rows = [row(name, "ValueError: no") for name in "dacb"]
        self.assertEqual(
            failure_findings([*rows, row("a", None, "q8")]),
            [
                Finding(
                    kind=FindingKind.QUANT_SIM,
                    message="[quant_sim] scheme=q4 failed: ValueError: no "
                    "[4 matrices (a, b, c, ...)]",
                    file="a.safetensors",
                    tensor="d.source",
                    count=4,
                    hint=HINT,
                )
            ],
        )

    def test_are_told_apart_by_cause_and_scheme(self) -> None:
        rows = [row("a", "E: 2"), row("a", "E: 1"), row("a", "E: 1", "q8")]
        self.assertEqual(
            [finding.message for finding in failure_findings(rows)],
            [
                "[quant_sim] scheme=q4 failed: E: 1 [a]",
                "[quant_sim] scheme=q4 failed: E: 2 [a]",
                "[quant_sim] scheme=q8 failed: E: 1 [a]",
            ],
        )

    def test_are_silent_about_weights_that_are_not_finite(self) -> None:
        self.assertEqual(failure_findings([row("a", "NonFiniteWeights: 1 NaN, 0 Inf")]), [])
