from __future__ import annotations

import unittest

import ml_dtypes  # noqa: F401 # registers the names that NumPy lacks
import numpy as np

from moe_weights.checkpoint.dtype_codes import (
    code_of_numpy,
    dtype_bits,
    dtype_info,
    dtype_name,
    is_float_like,
)
from tests.support.checkpoints import CODE_OF_DTYPE


class KnownCodes(unittest.TestCase):
    def test_names_and_sizes_are_those_of_numpy_and_ml_dtypes(self) -> None:
        for name, code in CODE_OF_DTYPE.items():
            with self.subTest(code=code):
                self.assertEqual(dtype_name(code), name)
                self.assertEqual(dtype_bits(code), 8 * np.dtype(name).itemsize)

    def test_codes_that_numpy_lacks_keep_their_code_as_name(self) -> None:
        for code, bits in (("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6)):
            self.assertEqual((dtype_name(code), dtype_bits(code)), (code, bits))

    def test_every_float_is_float_like_and_nothing_else(self) -> None:
        for code in ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F4"):
            self.assertTrue(is_float_like(code), code)
        for code in ("I8", "U8", "I64", "BOOL", "C64", "F4_NEW", "|V2", ">f4", ""):
            self.assertFalse(is_float_like(code), code)

    def test_types_without_a_code_have_their_numpy_name(self) -> None:
        for spelling in (
            "|V2", "|V40", "<c16", "<U4", "|S3", "|O", "<M8[ns]", "<M8[25s]", "<m8", "<m8[D]",
        ):  # fmt: skip
            self.assertEqual(dtype_name(spelling), np.dtype(spelling).name)
            self.assertIsNone(dtype_bits(spelling))
        self.assertEqual((dtype_name("|V2"), dtype_name("<f16")), ("void16", "float128"))
        for wide in (np.dtype(np.longdouble), np.dtype(np.clongdouble)):
            if wide not in (np.float64, np.complex128):  # as wide as that on some machines
                self.assertEqual(dtype_name(wide.str), wide.name)

    def test_swapped_bytes_and_codes_of_other_origin_stay_as_written(self) -> None:
        for code in (">f4", ">i8", ">U4", "<f1", "<f4,<f4", "f8", "|V", "|V0", "V2", "<M8[x", ""):
            self.assertEqual(dtype_name(code), code)

    def test_an_unknown_code_is_its_own_name_without_size(self) -> None:
        info = dtype_info("F3_X")
        self.assertEqual((info.name, info.bits, info.kind), ("F3_X", None, "unknown"))


class NumpySpellings(unittest.TestCase):
    def test_little_endian_types_have_the_code_of_the_same_type(self) -> None:
        for name in ("float64", "float32", "float16", "int8", "uint64", "bool", "complex64"):
            self.assertEqual(code_of_numpy(np.dtype(name).str), CODE_OF_DTYPE[name])

    def test_other_types_keep_their_spelling(self) -> None:
        for spelling in (">f4", "|V2", "<U4", "|O", "<c16", ">i8"):
            self.assertEqual(code_of_numpy(spelling), spelling)


if __name__ == "__main__":
    unittest.main()
