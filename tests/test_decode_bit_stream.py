from __future__ import annotations

import unittest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_weights.decode.bit_stream import (
    NIBBLES,
    n_words,
    unpack_codes,
    unpack_columns,
    unpack_nibbles,
)
from tests.support.slow_integers import PLANES, unpack, unpack_planes


def slow_unpack(row: np.ndarray, bits: int, n_codes: int) -> list[int]:
    """Read codes from one big integer, the whole row."""
    stream = int.from_bytes(row.astype("<i4").tobytes(), "little")
    return [(stream >> (bits * position)) & ((1 << bits) - 1) for position in range(n_codes)]


class Unpacking(unittest.TestCase):
    def test_the_first_code_lies_in_the_lowest_bits(self) -> None:
        words = np.array([[0x76543210, 0x0000000F]], dtype=np.int64).astype(np.int32)

        codes = unpack_codes(words, 4, 9)

        self.assertEqual(codes.tolist(), [[0, 1, 2, 3, 4, 5, 6, 7, 15]])

    def test_three_bit_codes_cross_words(self) -> None:
        # Code 10 (5 = 0b101) starts at bit 30: 0b01 on top of the first word, 0b1 in the second.
        words = np.array([[0x511F58D1, 0x7]], dtype=np.int64).astype(np.int32)

        codes = unpack_codes(words, 3, 12)

        self.assertEqual(codes.tolist(), [[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 5, 3]])

    def test_every_width_agrees_with_one_big_integer(self) -> None:
        rng = np.random.default_rng(0)
        for bits in range(1, 9):
            for n_codes in (1, 5, 31, 32, 33, 67, 128):
                words = rng.integers(-(2**31), 2**31, (3, n_words(n_codes, bits)))
                with self.subTest(bits=bits, n_codes=n_codes):
                    codes = unpack_codes(words.astype(np.int32), bits, n_codes)
                    expected = [slow_unpack(row, bits, n_codes) for row in words]
                    self.assertEqual(codes.tolist(), expected)

    def test_leading_axes_and_transposed_words_do_not_matter(self) -> None:
        words = np.random.default_rng(1).integers(0, 2**31, (2, 3, 5)).astype(np.int32)

        turned = unpack_codes(words.swapaxes(1, 2), 5, 19)

        self.assertEqual(turned.shape, (2, 5, 19))
        self.assertEqual(turned[1, 4].tolist(), slow_unpack(words[1, :, 4], 5, 19))

    @settings(max_examples=200, deadline=None)
    @given(
        bits=st.integers(1, 8),
        n_codes=st.integers(1, 300),
        n_streams=st.integers(1, 40),
        more=st.integers(0, 2),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_rows_and_columns_agree_with_numpy(
        self, bits: int, n_codes: int, n_streams: int, more: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        length = n_words(n_codes, bits) + more
        words = rng.integers(0, 2**32, (n_streams, length), dtype=np.uint32)
        expected = unpack(words, bits, n_codes)

        self.assertEqual(unpack_codes(words, bits, n_codes).tolist(), expected.tolist())

        first, last = sorted(rng.integers(0, n_streams + 1, 2).tolist())
        columns = unpack_columns(words.T, (first, last), n_codes, ((bits, 0),))
        self.assertEqual(columns.tolist(), expected[first:last].tolist())

    def test_planes_of_columns_agree_with_numpy(self) -> None:
        rng = np.random.default_rng(2)
        for bits, planes in PLANES.items():
            for n_codes in (32, 96, 320):
                words = rng.integers(0, 2**32, (n_words(n_codes, bits), 37), dtype=np.uint32)
                with self.subTest(bits=bits, n_codes=n_codes):
                    codes = unpack_columns(words, (3, 36), n_codes, planes)
                    expected = unpack_planes(words.T[3:36], bits, n_codes)
                    self.assertEqual(codes.tolist(), expected.tolist())

    def test_the_low_nibble_of_a_byte_comes_first(self) -> None:
        self.assertEqual(unpack_nibbles(np.uint8([[0x10, 0xFE]])).tolist(), [[0, 1, 14, 15]])
        self.assertEqual(NIBBLES[0xAB].tolist(), [0xB, 0xA])

    def test_the_last_word_may_be_padded(self) -> None:
        self.assertEqual([n_words(8, 4), n_words(9, 4), n_words(11, 3)], [1, 2, 2])


if __name__ == "__main__":
    unittest.main()
