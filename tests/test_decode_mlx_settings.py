from __future__ import annotations

import unittest

from moe_weights.decode.mlx_settings import MlxSettings, settings_of

GATE = "model.layers.0.mlp.gate"
AFFINE_8 = MlxSettings(mode="affine", bits=8, group_size=64)
MXFP4 = MlxSettings(mode="mxfp4", bits=4, group_size=32)
TOP: dict[str, object] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}


class WholeCheckpoint(unittest.TestCase):
    def test_settings_without_a_mode_are_affine(self) -> None:
        self.assertEqual(
            settings_of(GATE, {"group_size": 64, "bits": 3}),
            MlxSettings(mode="affine", bits=3, group_size=64),
        )

    def test_the_mode_is_taken(self) -> None:
        self.assertEqual(settings_of(GATE, TOP), MXFP4)

    def test_blocks_of_other_writers_say_nothing(self) -> None:
        for block in (
            {},
            {"quant_method": "awq", "bits": 4, "group_size": 64},
            {"bits": 4},
            {"group_size": 64, f"{GATE}x": {"bits": 8}},
        ):
            with self.subTest(block=block):
                self.assertIsNone(settings_of(GATE, block))


class Overrides(unittest.TestCase):
    def test_an_override_without_a_mode_is_affine_whatever_the_rest_is(self) -> None:
        self.assertEqual(settings_of(GATE, {**TOP, GATE: {"group_size": 64, "bits": 8}}), AFFINE_8)

    def test_an_override_leaves_other_modules_alone(self) -> None:
        block = {**TOP, "model.layers.1.mlp.gate": {"group_size": 64, "bits": 8}}
        self.assertEqual(settings_of(GATE, block), MXFP4)
        self.assertEqual(settings_of(f"{GATE}_proj", {**TOP, GATE: {"bits": 8}}), MXFP4)

    def test_what_an_override_leaves_out_is_the_default_of_its_mode(self) -> None:
        cases: tuple[tuple[dict[str, object], tuple[str, int, int]], ...] = (
            ({"bits": 8}, ("affine", 8, 64)),
            ({"group_size": 128}, ("affine", 4, 128)),
            ({"mode": "mxfp8"}, ("mxfp8", 8, 32)),
            ({"mode": "nvfp4"}, ("nvfp4", 4, 16)),
        )
        for override, (mode, bits, group_size) in cases:
            with self.subTest(override=override):
                self.assertEqual(
                    settings_of(GATE, {**TOP, GATE: override}),
                    MlxSettings(mode=mode, bits=bits, group_size=group_size),
                )

    def test_true_means_like_the_rest(self) -> None:
        self.assertEqual(settings_of(GATE, {**TOP, GATE: True}), MXFP4)

    def test_false_means_not_quantised(self) -> None:
        self.assertEqual(
            settings_of(GATE, {**TOP, GATE: False}),
            f"config.json says under {GATE} that it is not quantised",
        )

    def test_an_announced_global_scale_is_kept(self) -> None:
        self.assertEqual(
            settings_of(GATE, {GATE: {"mode": "nvfp4", "global_scale": True}}),
            MlxSettings(mode="nvfp4", bits=4, group_size=16, global_scale=True),
        )

    def test_paths_may_lack_a_prefix_or_have_one_more(self) -> None:
        override = {"group_size": 64, "bits": 8}
        for path in ("layers.0.mlp.gate", f"language_model.{GATE}"):
            with self.subTest(path=path):
                self.assertEqual(settings_of(GATE, {**TOP, path: override}), AFFINE_8)

    def test_the_exact_path_comes_first(self) -> None:
        block = {**TOP, "layers.0.mlp.gate": False, GATE: {"bits": 8}, f"x.{GATE}": {"bits": 2}}
        self.assertEqual(settings_of(GATE, block), AFFINE_8)

    def test_a_single_word_is_no_path(self) -> None:
        self.assertEqual(settings_of(GATE, {**TOP, "gate": {"bits": 8}}), MXFP4)

    def test_two_prefixes_that_disagree_are_told(self) -> None:
        block = {**TOP, f"a.{GATE}": {"bits": 8}, f"b.{GATE}": {"bits": 4}}
        self.assertEqual(
            settings_of(GATE, block),
            f"config.json has different settings under a.{GATE}, b.{GATE}",
        )
        self.assertEqual(
            settings_of(GATE, {**TOP, f"a.{GATE}": {"bits": 8}, f"b.{GATE}": {"bits": 8}}),
            AFFINE_8,
        )


class BadValues(unittest.TestCase):
    def test_each_is_told_with_its_place(self) -> None:
        cases: tuple[tuple[dict[str, object], str], ...] = (
            (
                {"bits": 4, "group_size": 32, "mode": "mxfp5"},
                (
                    "config.json under quantization names mode 'mxfp5'; known are affine, mxfp4, "
                    "mxfp8, nvfp4"
                ),
            ),
            (
                {"bits": 4, "group_size": 32, "mode": ["affine"]},
                (
                    "config.json under quantization names mode ['affine']; known are affine, "
                    "mxfp4, mxfp8, nvfp4"
                ),
            ),
            (
                {GATE: {"bits": "4"}},
                f"config.json under {GATE} has bits '4' and group_size 64; both must be integers",
            ),
            (
                {GATE: {"bits": True}},
                f"config.json under {GATE} has bits True and group_size 64; both must be integers",
            ),
            (
                {GATE: {"bits": 7}},
                (
                    f"config.json under {GATE} has 7 bits in groups of 64; affine codes have "
                    "1, 2, 3, 4, 5, 6, 8 bits and groups of at least 1"
                ),
            ),
            (
                {GATE: {"bits": 4, "group_size": 64, "mode": "nvfp4"}},
                (
                    f"config.json under {GATE} has 4 bits in groups of 64; nvfp4 has 4 bits in "
                    "groups of 16"
                ),
            ),
        )
        for block, cause in cases:
            with self.subTest(block=block):
                self.assertEqual(settings_of(GATE, block), cause)


if __name__ == "__main__":
    unittest.main()
