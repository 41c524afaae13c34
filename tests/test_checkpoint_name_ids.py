from __future__ import annotations

import unittest

from moe_weights.checkpoint.name_ids import ids_pattern, templates_of, without_ids


class NamesWithoutIds(unittest.TestCase):
    def test_have_zeros_for_segments_that_are_numbers(self) -> None:
        for name, expected in {
            "model.layers.12.mlp.experts.345.w1.weight": "model.layers.0.mlp.experts.0.w1.weight",
            "a.1.2.3": "a.0.0.0",
            "3.a.expert_7.x1": "3.a.expert_7.x1",
            "a.1x.x1.٣.1\n": "a.1x.x1.٣.1\n",
            "": "",
        }.items():
            self.assertEqual(without_ids(name), expected)

    def test_of_many_are_one_text_for_those_called_alike(self) -> None:
        first, second, third = templates_of(["a.1.b", "a.22.b", "a.b"])
        self.assertEqual((first, third), ("a.0.b", "a.b"))
        self.assertIs(first, second)


class IdsPattern(unittest.TestCase):
    def test_takes_the_ids_out_of_names_that_are_called_alike(self) -> None:
        pattern = ids_pattern("1.layers.0.w[1].0")
        found = pattern.fullmatch("1.layers.012.w[1].7")
        assert found is not None
        self.assertEqual(found.groups(), ("012", "7"))

    def test_takes_no_others(self) -> None:
        pattern = ids_pattern("layers.0.w")
        for name in ("layers.0.w.0", "layers.x.w", "layers.1234567890.w", "layers.٣.w", "layers.w"):
            self.assertIsNone(pattern.fullmatch(name), name)
