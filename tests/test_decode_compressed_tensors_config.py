from __future__ import annotations

import unittest

from moe_weights.decode.compressed_tensors_config import (
    IntScheme,
    int_schemes,
    scale_block_of,
)


def group(targets: list[str], **weights: object) -> dict[str, object]:
    return {"targets": targets, "weights": {"type": "int", "symmetric": True, **weights}}


def config(*groups: object) -> dict[str, object]:
    return {"config_groups": {f"group_{i}": entry for i, entry in enumerate(groups)}}


def scheme(bits: int, block: tuple[int, int], *, is_symmetric: bool = True) -> IntScheme:
    return IntScheme(bits=bits, block=block, is_symmetric=is_symmetric)


class Targets(unittest.TestCase):
    CONFIG = config(
        group(["Linear"], num_bits=8, strategy="channel"),
        group(["re:.*experts.*", "a.b"], num_bits=4, strategy="group", group_size=32),
        group(["re:.*down_proj$"], num_bits=3, strategy="group", group_size=64),
    )

    def bits_of(self, module: str) -> int:
        found = int_schemes(self.CONFIG).of_module(module)
        assert found is not None
        return found.bits

    def test_a_name_counts_before_patterns_and_patterns_before_the_class(self) -> None:
        self.assertEqual(self.bits_of("a.b"), 4)
        self.assertEqual(self.bits_of("m.experts.0.up_proj"), 4)
        self.assertEqual(self.bits_of("m.q_proj"), 8)

    def test_of_two_patterns_the_first_in_text_order_counts(self) -> None:
        self.assertEqual(self.bits_of("m.experts.0.down_proj"), 3)

    def test_patterns_match_from_the_start_of_the_name(self) -> None:
        schemes = int_schemes(config(group(["re:up_proj"], num_bits=4, strategy="channel")))
        self.assertIsNone(schemes.of_module("m.up_proj"))

    def test_a_module_of_a_float_group_has_no_integer_scheme(self) -> None:
        floats = {"targets": ["a.b"], "weights": {"type": "float", "num_bits": 8}}
        schemes = int_schemes(config(group(["Linear"], num_bits=4, strategy="channel"), floats))
        self.assertIsNone(schemes.of_module("a.b"))
        self.assertEqual([entry.bits for entry in schemes.all], [4])

    def test_another_config_is_read_anew(self) -> None:
        one = config(group(["Linear"], num_bits=2, strategy="channel"))
        two = config(group(["Linear"], num_bits=4, strategy="channel"))
        self.assertEqual([int_schemes(c).all[0].bits for c in (one, two, one)], [2, 4, 2])


class Schemes(unittest.TestCase):
    def read(self, **weights: object) -> IntScheme | None:
        return int_schemes(config(group(["Linear"], **weights))).of_module("x")

    def test_every_strategy_gives_its_block(self) -> None:
        for weights, expected in (
            ({"strategy": "tensor"}, (0, 0)),
            ({"strategy": "channel"}, (1, 0)),
            ({"strategy": "group", "group_size": 32}, (1, 32)),
            ({"strategy": "block", "block_structure": [128, 64]}, (128, 64)),
            ({"strategy": "block", "block_structure": "128x64"}, (128, 64)),
            ({"group_size": None}, (0, 0)),
            ({"group_size": -1}, (1, 0)),
            ({"group_size": 16}, (1, 16)),
        ):
            with self.subTest(weights=weights):
                self.assertEqual(self.read(num_bits=4, **weights), scheme(4, expected))

    def test_an_asymmetric_scheme_is_known_as_such(self) -> None:
        found = self.read(num_bits=4, strategy="channel", symmetric=False)
        self.assertEqual(found, scheme(4, (1, 0), is_symmetric=False))

    def test_what_cannot_be_understood_is_no_scheme(self) -> None:
        for weights in (
            {"num_bits": 16, "strategy": "channel"},
            {"num_bits": "4", "strategy": "channel"},
            {"num_bits": True, "strategy": "channel"},
            {"num_bits": 4, "strategy": "group", "group_size": True},
            {"num_bits": 4, "strategy": "token"},
            {"num_bits": 4, "strategy": "group"},
            {"num_bits": 4, "strategy": "block", "block_structure": [128]},
            {"num_bits": 4, "strategy": "block", "block_structure": [0, 128]},
        ):
            with self.subTest(weights=weights):
                self.assertIsNone(self.read(**weights))

    def test_configs_of_other_shapes_have_no_schemes(self) -> None:
        for other in (
            {},
            {"config_groups": [1]},
            config("W4A16"),
            config({"targets": 3, "weights": None}),
            config(group(["re:("], num_bits=4, strategy="channel"))["config_groups"],
        ):
            with self.subTest(other=other):
                self.assertEqual(int_schemes(other).all, ())

    def test_a_broken_pattern_matches_nothing(self) -> None:
        for broken in ("(", "a{99999999999999999999}", "(" * 10_000):
            targets = [f"re:{broken}", "re:a"]
            schemes = int_schemes(config(group(targets, num_bits=4, strategy="channel")))
            self.assertEqual(schemes.of_module("a"), scheme(4, (1, 0)))
            self.assertIsNone(schemes.of_module("("))


class ScaleBlocks(unittest.TestCase):
    def test_a_scheme_must_fit_the_shape_of_the_scale(self) -> None:
        for block, scale_shape, expected in (
            ((1, 32), (6, 3), (1, 32)),
            ((1, 32), (6, 2), None),
            ((1, 40), (6, 3), (1, 40)),
            ((1, 128), (6, 1), (1, 96)),
            ((1, 0), (6, 1), (1, 96)),
            ((1, 0), (6,), (1, 96)),
            ((1, 0), (5, 1), None),
            ((0, 0), (1,), (6, 96)),
            ((0, 0), (), (6, 96)),
            ((0, 0), (6, 1), None),
            ((4, 64), (2, 2), (4, 64)),
        ):
            with self.subTest(block=block, scale_shape=scale_shape):
                found = scale_block_of((6, 96), scale_shape, scheme(4, block))
                self.assertEqual(found, expected)

    def test_without_a_scheme_columns_divide_into_equal_groups(self) -> None:
        self.assertEqual(scale_block_of((6, 96), (6, 2), None), (1, 48))
        self.assertIsNone(scale_block_of((6, 96), (6, 5), None))
        self.assertEqual(scale_block_of((6, 96), (6, 1), None), (1, 96))
        self.assertEqual(scale_block_of((2, 6, 96), (2, 6, 3), None), (1, 32))

    def test_stacked_weights_may_have_one_scale_each(self) -> None:
        self.assertEqual(scale_block_of((5, 6, 96), (5,), scheme(4, (0, 0))), (6, 96))


if __name__ == "__main__":
    unittest.main()
