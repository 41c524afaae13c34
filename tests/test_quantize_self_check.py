from __future__ import annotations

import json
import unittest
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.quantize.check_matrices import check_matrices
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.self_check import check_native, describe_difference
from tests.support.matrices import DTYPES
from tests.support.quantizers import EVERY_SCHEME, slow_quantise

SCHEMES = [
    SchemeSpec(name="int4", mode="affine", bits=4, group_size=64),
    SchemeSpec(name="fp4", mode="mxfp4", bits=4, group_size=32),
]


class Altered(NativeBackend):
    """Stands for an MLX that differs in one place."""

    def __init__(self, field: str, value: Any) -> None:
        super().__init__()
        self._field, self._value = field, value

    def round_trip(self, matrix: np.ndarray, scheme: SchemeSpec) -> RoundTrip:
        found = super().round_trip(matrix, scheme)
        changed = getattr(found, self._field).copy()
        changed[1, 2] = self._value
        return replace(found, **{self._field: changed})


class Failing(NativeBackend):
    def round_trip(self, matrix: np.ndarray, scheme: SchemeSpec) -> RoundTrip:
        raise RuntimeError("no kernel")


class TheInstalledMlx(unittest.TestCase):
    def test_is_equal_in_every_scheme_and_dtype(self) -> None:
        schemes = [
            SchemeSpec(name=f"{mode}-{bits}-{size}", mode=mode, bits=bits, group_size=size)
            for mode, bits, size in EVERY_SCHEME
        ]
        check = check_native(MlxBackend("cpu"), schemes, ["bfloat16", "float16", "float32"])
        self.assertEqual({pair.difference for pair in check.pairs}, {""})
        self.assertEqual(len(check.pairs), 3 * len(schemes))

    def test_that_refuses_a_scheme_in_the_same_words_is_equal(self) -> None:
        schemes = [
            SchemeSpec(name="a", mode="affine", bits=4, group_size=size) for size in (96, 16)
        ]
        check = check_native(MlxBackend("cpu"), schemes, ["float16"])
        self.assertEqual([pair.difference for pair in check.pairs], ["", ""])


class AnMlxThatDiffers(unittest.TestCase):
    def test_is_told_with_the_first_place(self) -> None:
        cases = {
            ("codes", 99): r"normal weights: codes\[1, 2\] is 99 in MLX, \d+ in native",
            ("scales", 0.5): r"normal weights: scales\[1, 2\] is 0.5 in MLX, -?0\.\d+ in native",
            ("biases", np.nan): r"normal weights: biases\[1, 2\] is nan in MLX, -?\d.* in native",
            ("values", 9.0): r"normal weights: values\[1, 2\] is 9.0 in MLX, -?\d.* in native",
        }
        for (field, value), pattern in cases.items():
            check = check_native(Altered(field, value), SCHEMES[:1], ["bfloat16"])
            self.assertRegex(check.pairs[0].difference, f"^{pattern}$")

    def test_in_a_failure_is_told_with_its_text(self) -> None:
        check = check_native(Failing(), SCHEMES, ["float32"])
        expected = "normal weights: MLX fails with RuntimeError: no kernel, native succeeds"
        self.assertEqual([pair.difference for pair in check.pairs], [expected, expected])

    def test_in_what_it_gives_at_all_is_told(self) -> None:
        one = np.zeros((1, 2), dtype=np.float32)
        scales = np.ones((1, 1))
        plain = RoundTrip(one, scales, None)
        cases = {
            "codes are given by one of them alone":
                RoundTrip(one, scales, None, np.zeros((1, 2), dtype=np.uint8)),
            "scales have shape (1, 1) in MLX, (1, 2) in native":
                RoundTrip(one, np.ones((1, 2)), None),
            "values[0, 0] is 0.0 in MLX, -0.0 in native": RoundTrip(-one, scales, None),
        }  # fmt: skip
        for text, ours in cases.items():
            self.assertEqual(describe_difference(plain, ours), text)
        self.assertEqual(describe_difference(plain, plain), "")

    def test_in_the_sums_alone_is_told(self) -> None:
        # Stands for kernels whose two compiled forms disagree.
        def add_nothing(self: NativeBackend, *arguments: Any) -> None:
            return None

        with mock.patch.object(NativeBackend, "add_errors", add_nothing):
            check = check_native(MlxBackend("cpu"), SCHEMES[:1], ["bfloat16"])
        self.assertEqual(check.pairs[0].difference, "normal weights: the sums of errors differ")


class Outcome(unittest.TestCase):
    def test_is_ready_for_json(self) -> None:
        check = check_native(MlxBackend("cpu"), SCHEMES, ["bfloat16"])
        document = json.loads(json.dumps(check.as_json()))
        self.assertEqual(
            document["pairs"],
            [
                {"scheme": "int4", "dtype": "bfloat16", "difference": ""},
                {"scheme": "fp4", "dtype": "bfloat16", "difference": ""},
            ],
        )
        self.assertGreater(document["seconds"], 0)


class Matrices(unittest.TestCase):
    def test_reach_every_code_and_both_ends_of_the_scales(self) -> None:
        never_given = {"mxfp4": {8}, "nvfp4": {8}, "mxfp8": {127, 255}}
        for dtype in ("bfloat16", "float16", "float32"):
            for mode, bits, size in EVERY_SCHEME:
                one = SchemeSpec(name="s", mode=mode, bits=bits, group_size=size)
                codes: set[int] = set()
                for _, matrix in check_matrices(one, DTYPES[dtype]):
                    self.assertTrue(np.isfinite(matrix.astype(np.float32)).all())
                    codes |= set(slow_quantise(matrix, mode, bits, size).codes.reshape(-1).tolist())
                missing = set(range(2**bits)) - codes - never_given.get(mode, set())
                with self.subTest(dtype=dtype, mode=mode, bits=bits, size=size):
                    self.assertEqual(missing, set())
