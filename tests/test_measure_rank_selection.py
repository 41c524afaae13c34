from __future__ import annotations

import unittest

import numpy as np

from moe_weights.measure.rank_selection import RankSelection, take_neighbours


class Ranks(unittest.TestCase):
    def check(self, numbers: np.ndarray, ranks: list[int], limit: int) -> int:
        """Compare with sorting; return how many passes that took."""
        integer = np.dtype(f"u{numbers.dtype.itemsize}")
        bits = np.abs(numbers).view(integer)
        width = 8 * integer.itemsize
        first = np.bincount((bits >> integer.type(width - 16)).astype(np.int64), minlength=32768)
        wanted = np.array(ranks, dtype=np.int64)
        selection = RankSelection(wanted, first, key_bits=width, limit=limit)
        n_passes = 0
        while selection.needs_another_pass:
            for part in np.array_split(numbers.view(integer), 3):  # signs do not matter
                selection.search(part)
            selection.end_pass()
            n_passes += 1
        keys = selection.keys(wanted) >> np.uint64(64 - width)
        self.assertEqual(keys.tolist(), np.sort(bits)[ranks].tolist())
        return n_passes

    def test_of_float32_need_one_pass(self) -> None:
        numbers = np.random.default_rng(0).normal(size=5001).astype(np.float32)
        for limit in (0, 50, 10**6):
            self.assertEqual(self.check(numbers, [0, 17, 2500, 2501, 5000], limit), 1)

    def test_of_float64_need_one_pass_where_classes_are_small(self) -> None:
        numbers = np.random.default_rng(0).normal(size=5001)
        self.assertEqual(self.check(numbers, [0, 2500, 2501, 5000], 10**6), 1)

    def test_of_float64_need_three_passes_at_most(self) -> None:
        numbers = np.random.default_rng(0).normal(size=5001)
        numbers[1000:2000] = 0.7
        numbers[2000] = np.nextafter(0.7, 1)
        for limit in (0, 100, 900):
            self.assertLessEqual(self.check(numbers, [0, 2500, 2501, 3000, 5000], limit), 3)

    def test_of_many_classes_are_found_sixteen_at_a_time(self) -> None:
        numbers = np.ldexp(1.0 + np.arange(40) / 64, np.arange(40)).astype(np.float32)
        self.assertEqual(self.check(numbers, list(range(40)), 0), 3)

    def test_of_equal_numbers(self) -> None:
        for dtype in (np.float32, np.float64):
            for value in (0.0, -0.1):
                for limit in (0, 10**6):
                    self.check(np.full(99, value, dtype=dtype), [0, 49, 98], limit)

    def test_are_refused_when_other_numbers_are_shown(self) -> None:
        for limit in (0, 100):
            first = np.bincount([0x3F80] * 10, minlength=32768)
            selection = RankSelection(np.array([5]), first, key_bits=32, limit=limit)
            selection.search(np.full(11, 1.0, dtype=np.float32).view(np.uint32))
            if limit:  # as many as were announced are kept
                selection.end_pass()
                continue
            with self.assertRaises(ValueError) as caught:
                selection.end_pass()
            self.assertEqual(
                str(caught.exception), "the rows of a later pass are not those of the first"
            )


class NumbersThatAreKept(unittest.TestCase):
    def test_have_the_keys_that_sorting_finds(self) -> None:
        generator = np.random.default_rng(0)
        for size in (1, 2, 3, 100, 5001):
            for name, numbers in {
                "alike": 1 + generator.gamma(5.0, 0.4, size=size),
                "apart": np.exp(30 * generator.normal(size=size)),
                "few": generator.integers(0, 4, size=size) / 3,
                "equal": np.full(size, 0.7),
                "neighbours": np.nextafter(0.7, generator.integers(0, 2, size=size)),
            }.items():
                expected = np.sort(numbers).view(np.uint64).tolist()
                for rank in sorted({0, size // 2, int(0.95 * (size - 1)), size - 1}):
                    found = take_neighbours(numbers.copy().view(np.uint64), rank)
                    n_known = min(2, size - rank)
                    with self.subTest(size=size, name=name, rank=rank):
                        self.assertEqual(list(found[:n_known]), expected[rank : rank + n_known])

    def test_may_use_all_bits(self) -> None:
        numbers = np.array([2**64 - 1, 0, 2**63, 1], dtype=np.uint64)
        for rank, pair in enumerate([(0, 1), (1, 2**63), (2**63, 2**64 - 1)]):
            self.assertEqual(take_neighbours(numbers.copy(), rank), pair)
