from __future__ import annotations

import pickle
import sys
import unittest
from unittest import mock

import numpy as np

from moe_weights.errors import BackendUnavailableError
from moe_weights.findings import Finding, FindingKind
from moe_weights.quantize.choose_backend import choose_backends, open_backend
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec

SCHEMES = [
    SchemeSpec(name="int4", mode="affine", bits=4, group_size=64),
    SchemeSpec(name="fp4", mode="mxfp4", bits=4, group_size=32),
]
NO_MLX = {"mlx": None, "mlx.core": None}


class WrongInMxfp4(MlxBackend):
    """An MLX that rounds one code of mxfp4 otherwise."""

    def round_trip(self, matrix: np.ndarray, scheme: SchemeSpec) -> RoundTrip:
        found = super().round_trip(matrix, scheme)
        if scheme.mode == "mxfp4":
            assert found.codes is not None
            found.codes[0, 0] ^= 1
        return found


class Auto(unittest.TestCase):
    def test_takes_native_kernels_where_mlx_is_equal(self) -> None:
        choice = choose_backends(SCHEMES, "auto", "cpu", ["bfloat16", "float32"])
        self.assertEqual(
            choice.names,
            tuple(
                (scheme, dtype, "native_verified")
                for scheme in ("int4", "fp4")
                for dtype in ("bfloat16", "float32")
            ),
        )
        self.assertEqual(choice.findings, ())
        assert choice.check is not None
        self.assertLess(choice.check.seconds, 30)
        backend = choice.backend("int4", "float32")
        self.assertIsInstance(backend, NativeBackend)
        self.assertEqual(backend.name, "native_verified")

    def test_takes_mlx_where_it_differs_and_says_so(self) -> None:
        choice = choose_backends(SCHEMES, "auto", "cpu", ["bfloat16", "float16"], WrongInMxfp4)
        self.assertEqual(
            choice.names,
            (
                ("int4", "bfloat16", "native_verified"),
                ("int4", "float16", "native_verified"),
                ("fp4", "bfloat16", "mlx"),
                ("fp4", "float16", "mlx"),
            ),
        )
        self.assertEqual(
            choice.findings,
            (
                Finding(
                    kind=FindingKind.QUANT_SIM,
                    message="[quant_sim] native kernels differ from the installed MLX, which is "
                    "used instead: 2 schemes (fp4 in bfloat16, fp4 in float16); first, normal "
                    "weights: codes[0, 0] is 0 in MLX, 1 in native",
                    count=2,
                    hint="numbers are MLX's own, only slower; logs/run_context.json lists every "
                    "scheme",
                ),
            ),
        )
        self.assertEqual(choice.backend("fp4", "float16").name, "mlx")

    def test_without_mlx_is_an_import_error(self) -> None:
        for setting in ("auto", "mlx"):
            with mock.patch.dict(sys.modules, NO_MLX), self.assertRaises(ImportError):
                choose_backends(SCHEMES, setting, "cpu", ["bfloat16"])

    def test_without_the_device_is_refused(self) -> None:
        with (
            mock.patch("mlx.core.is_available", return_value=False),
            self.assertRaises(BackendUnavailableError),
        ):
            choose_backends(SCHEMES, "auto", "gpu", ["bfloat16"])


class ASettingThatLeavesNoChoice(unittest.TestCase):
    def test_is_followed_without_a_check(self) -> None:
        choice = choose_backends(SCHEMES, "mlx", "cpu", ["float16"])
        self.assertEqual(choice.names, (("int4", "float16", "mlx"), ("fp4", "float16", "mlx")))
        self.assertEqual((choice.check, choice.findings), (None, ()))
        self.assertIsInstance(choice.backend("fp4", "float16"), MlxBackend)

    def test_of_native_needs_no_mlx(self) -> None:
        with mock.patch.dict(sys.modules, NO_MLX):
            choice = choose_backends(SCHEMES, "native", "cpu", ["float16"])
            backend = choice.backend("int4", "float16")
        self.assertEqual(
            choice.names, (("int4", "float16", "native"), ("fp4", "float16", "native"))
        )
        self.assertEqual(backend.name, "native")


class Choice(unittest.TestCase):
    def test_travels_by_names_alone(self) -> None:
        choice = choose_backends(SCHEMES, "auto", "cpu", ["bfloat16"])
        self.assertEqual(pickle.loads(pickle.dumps(choice)), choice)
        self.assertLess(len(pickle.dumps(choice)), 2000)
        self.assertIs(choice.backend("int4", "bfloat16"), open_backend("native_verified", "cpu"))

    def test_of_an_unknown_pair_is_a_key_error(self) -> None:
        choice = choose_backends(SCHEMES, "native", "cpu", ["bfloat16"])
        with self.assertRaises(KeyError) as caught:
            choice.backend("int4", "float32")
        self.assertEqual(
            caught.exception.args, ("no backend was chosen for scheme int4 in float32",)
        )
