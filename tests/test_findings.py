from __future__ import annotations

import unittest

from moe_weights.findings import Finding, FindingKind, list_some, name_some


class Lists(unittest.TestCase):
    def test_are_whole_up_to_the_limit(self) -> None:
        self.assertEqual(list_some([]), "")
        self.assertEqual(list_some(["a", "b"], limit=2), "a, b")

    def test_say_how_many_more_there_are(self) -> None:
        self.assertEqual(list_some(["a", "b", "c"], limit=2), "a, b, ... (1 more, 3 in all)")
        names = [str(number) for number in range(21)]
        self.assertTrue(list_some(names).endswith(", 19, ... (1 more, 21 in all)"))


class Names(unittest.TestCase):
    def test_of_one_stand_alone(self) -> None:
        self.assertEqual(name_some(["a"], "tensor"), "a")

    def test_of_many_are_counted_and_three_are_shown(self) -> None:
        self.assertEqual(name_some(["a", "b", "c"], "tensor"), "3 tensors (a, b, c)")
        self.assertEqual(
            name_some(list("abcd"), "matrix", plural="matrices"), "4 matrices (a, b, c, ...)"
        )


class Findings(unittest.TestCase):
    def test_are_values(self) -> None:
        first = Finding(kind=FindingKind.INDEX, message="[index] x")
        self.assertEqual(first, Finding(kind=FindingKind.INDEX, message="[index] x"))
        self.assertEqual((first.file, first.tensor, first.count, first.hint), ("", "", 1, ""))

    def test_have_kinds_from_a_closed_list(self) -> None:
        self.assertEqual(
            [str(kind) for kind in FindingKind],
            [
                "config", "meta", "index", "scan", "read", "extract", "proj", "quant_sim",
                "weights", "coverage",
            ],
        )  # fmt: skip


if __name__ == "__main__":
    unittest.main()
