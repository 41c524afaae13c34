from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.raw_array import view_raw
from moe_weights.errors import UnsupportedDtypeError
from tests.support.checkpoints import CODE_OF_DTYPE
from tests.support.matrices import DTYPES

GOLDEN = {
    "F64": (bytes.fromhex("000000000000f03f00000000000004c0"), "float64"),
    "F32": (bytes.fromhex("0000803f000020c0"), "float32"),
    "F16": (bytes.fromhex("003c00c1"), "float16"),
    "BF16": (bytes.fromhex("803f20c0"), "bfloat16"),
}


class PlainFloats(unittest.TestCase):
    def test_are_read_from_little_endian_bytes(self) -> None:
        for code, (raw, dtype) in GOLDEN.items():
            values = view_raw(raw, code)
            with self.subTest(code=code):
                self.assertEqual(values.dtype, DTYPES[dtype])
                self.assertEqual(values.astype(np.float64).tolist(), [1.0, -2.5])

    def test_are_a_view_of_the_buffer(self) -> None:
        for buffer in (bytearray(4), memoryview(bytearray(5))[1:]):
            values = view_raw(buffer, "F32")
            buffer[3] = 0x40
            self.assertEqual(values.tolist(), [2.0])

    def test_keep_every_bit(self) -> None:
        raw = np.arange(65_536, dtype="<u2").tobytes()
        for code in ("F16", "BF16"):
            self.assertEqual(view_raw(raw, code).tobytes(), raw)

    def test_of_no_bytes_are_none(self) -> None:
        for code in GOLDEN:
            self.assertEqual(view_raw(b"", code).size, 0)

    def test_do_not_end_within_an_element(self) -> None:
        for code in GOLDEN:
            with self.assertRaises(ValueError):
                view_raw(bytes(9), code)


class Codes(unittest.TestCase):
    def test_of_every_array_type_come_back_as_they_were_stored(self) -> None:
        raw = bytes([0, 1, 0, 1, 1, 0, 0, 0])
        for dtype, code in CODE_OF_DTYPE.items():
            if dtype == "complex64":
                continue
            values = view_raw(raw, code)
            with self.subTest(code=code):
                self.assertEqual(values.dtype.name, dtype)
                self.assertEqual(values.tobytes(), raw)

    def test_of_four_bits_lie_two_in_a_byte_the_low_half_first(self) -> None:
        values = view_raw(bytes([0x21, 0xF7]), "F4")
        self.assertEqual(values.dtype, np.dtype(ml_dtypes.float4_e2m1fn))
        self.assertEqual(values.astype(np.float32).tolist(), [0.5, 1.0, 6.0, -6.0])

    def test_without_an_array_type_are_refused(self) -> None:
        for code in ("F6_E2M3", "C64", "|V2", "<U4", ""):
            with self.assertRaises(UnsupportedDtypeError) as caught:
                view_raw(bytes(4), code)
            self.assertTrue(
                str(caught.exception).startswith(
                    f"dtype {code} has no array type; known are F64, F32, F16, BF16, "
                ),
                caught.exception,
            )
