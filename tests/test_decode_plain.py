from __future__ import annotations

import unittest

import numpy as np

from moe_weights.decode.encoding import encoding_for
from moe_weights.decode.plain import decode_plain
from moe_weights.errors import UnsupportedDtypeError
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
            values = decode_plain(raw, code)
            with self.subTest(code=code):
                self.assertEqual(values.dtype, DTYPES[dtype])
                self.assertEqual(values.astype(np.float64).tolist(), [1.0, -2.5])

    def test_are_a_view_of_the_buffer(self) -> None:
        for buffer in (bytearray(4), memoryview(bytearray(5))[1:]):
            values = decode_plain(buffer, "F32")
            buffer[3] = 0x40
            self.assertEqual(values.tolist(), [2.0])

    def test_keep_every_bit(self) -> None:
        raw = np.arange(65_536, dtype="<u2").tobytes()
        for code in ("F16", "BF16"):
            self.assertEqual(decode_plain(raw, code).tobytes(), raw)

    def test_of_no_bytes_are_none(self) -> None:
        for code in GOLDEN:
            self.assertEqual(decode_plain(b"", code).size, 0)

    def test_do_not_end_within_an_element(self) -> None:
        for code in GOLDEN:
            with self.assertRaises(ValueError):
                decode_plain(bytes(9), code)

    def test_refuse_other_codes(self) -> None:
        with self.assertRaises(UnsupportedDtypeError) as caught:
            decode_plain(bytes(4), "F8_E4M3")
        self.assertEqual(
            str(caught.exception),
            "dtype F8_E4M3 is not stored as plain floats; plain are F64, F32, F16, BF16",
        )


class Encodings(unittest.TestCase):
    def test_of_plain_codes_are_plain_and_decode_plain_takes_them(self) -> None:
        for code, (raw, _dtype) in GOLDEN.items():
            self.assertEqual(encoding_for(code), "plain")
            decode_plain(raw, code)

    def test_of_other_codes_are_none(self) -> None:
        for code in ("F8_E4M3", "F8_E5M2", "F4", "U8", "I32", "U32", "BOOL", "|V2", "<U4", ""):
            self.assertIsNone(encoding_for(code))
