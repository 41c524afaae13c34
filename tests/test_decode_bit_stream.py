from __future__ import annotations

import unittest

import numpy as np

from moe_weights.decode.bit_stream import n_words, unpack_codes


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

    def test_the_last_word_may_be_padded(self) -> None:
        self.assertEqual([n_words(8, 4), n_words(9, 4), n_words(11, 3)], [1, 2, 2])


if __name__ == "__main__":
    unittest.main()
