from __future__ import annotations

import unittest

import numpy as np

from moe_weights.decode.scale_codes import decode_e4m3, decode_e8m0
from tests.support.reference import read_e4m3, read_e8m0

ALL_CODES = np.arange(256, dtype=np.uint8)


class E8M0(unittest.TestCase):
    def test_is_a_power_of_two_for_every_code(self) -> None:
        np.testing.assert_array_equal(decode_e8m0(ALL_CODES), [read_e8m0(c) for c in range(256)])

    def test_has_known_values(self) -> None:
        codes = np.array([[127, 120], [128, 0]], dtype=np.uint8)
        self.assertEqual(decode_e8m0(codes).tolist(), [[1.0, 2.0**-7], [2.0, 2.0**-127]])

    def test_has_one_nan(self) -> None:
        self.assertEqual(np.flatnonzero(np.isnan(decode_e8m0(ALL_CODES))).tolist(), [255])


class E4M3(unittest.TestCase):
    def test_is_sign_exponent_and_fraction_for_every_code(self) -> None:
        np.testing.assert_array_equal(decode_e4m3(ALL_CODES), [read_e4m3(c) for c in range(256)])

    def test_has_known_values(self) -> None:
        codes = np.array([[0x38, 0x7E], [0x01, 0xB8]], dtype=np.uint8)
        self.assertEqual(decode_e4m3(codes).tolist(), [[1.0, 448.0], [2.0**-9, -1.0]])

    def test_has_two_nans(self) -> None:
        self.assertEqual(np.flatnonzero(np.isnan(decode_e4m3(ALL_CODES))).tolist(), [127, 255])
