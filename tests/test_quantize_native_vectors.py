"""Every lane operation against NumPy, compiled anew by each run: nothing here is cached."""

from __future__ import annotations

import unittest
from typing import Any

import numba
import numpy as np

from moe_weights.quantize import native_folds as folds
from moe_weights.quantize import native_vectors as v
from moe_weights.quantize.native_rounding import (
    KIND_BFLOAT16,
    KIND_FLOAT16,
    code_of_e2m1,
    load_weights,
    round_to_bfloat16,
    round_to_float16,
)
from tests.support.matrices import DTYPES

ONE, OTHER = (
    np.random.default_rng(seed).permutation(np.linspace(-40, 40, 16)).astype(np.float32)
    for seed in (0, 1)
)


def compiled(function: Any) -> Any:
    return numba.njit(error_model="numpy")(function)


def as_bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)


def added_in_order(lanes: np.ndarray) -> float:
    """Return the sum of sixteen doubles: neighbours first, then sums of two, four and eight."""
    while lanes.size > 1:
        lanes = lanes[::2] + lanes[1::2]
    return float(lanes[0])


class Floats(unittest.TestCase):
    def test_are_calculated_and_compared_lane_by_lane(self) -> None:
        @compiled
        def calculate(a: Any, b: Any, out: Any) -> None:
            one, other = v.load_floats(a, 0), v.load_floats(b, 0)
            v.store_floats(out, 0, one + other)
            v.store_floats(out, 16, one - other)
            v.store_floats(out, 32, one * other)
            v.store_floats(out, 48, one / other)
            v.store_floats(out, 64, v.nearest(one))
            v.store_floats(out, 80, v.smaller(one, other))
            v.store_floats(out, 96, v.larger(one, other))
            v.store_floats(out, 112, v.choose((one < other) | (one >= v.floats(a[3])), one, other))
            v.store_floats(out, 128, v.choose((one > other) & (one <= v.floats(a[5])), one, other))
            v.store_floats(out, 144, v.choose(one != other, one, other))
            v.store_floats(out, 160, v.choose(one == other, one, other))

        found = np.zeros(176, dtype=np.float32)
        calculate(ONE, OTHER, found)
        expected = [
            ONE + OTHER, ONE - OTHER, ONE * OTHER, ONE / OTHER, np.rint(ONE),
            np.minimum(ONE, OTHER), np.maximum(ONE, OTHER),
            np.where((ONE < OTHER) | (ONE[3] <= ONE), ONE, OTHER),
            np.where((ONE > OTHER) & (ONE[5] >= ONE), ONE, OTHER), ONE, OTHER,
        ]  # fmt: skip
        np.testing.assert_array_equal(found.reshape(-1, 16), expected)

    def test_compare_to_masks_that_are_counted(self) -> None:
        @compiled
        def reduce(a: Any, b: Any) -> Any:
            one, other = v.load_floats(a, 0), v.load_floats(b, 0)
            positive = one > v.floats(np.float32(0))
            pattern = v.pattern_of(positive & v.lanes_below(9))
            return (v.count(positive & (other == other)), pattern, v.trailing_zeros(pattern))

        found = reduce(ONE, OTHER)
        pattern = sum(1 << place for place in range(9) if ONE[place] > 0)
        expected = ((ONE > 0).sum(), pattern, (pattern & -pattern).bit_length() - 1)
        self.assertEqual(found, expected)


class Doubles(unittest.TestCase):
    def test_are_added_in_a_fixed_order(self) -> None:
        @compiled
        def add(a: Any, b: Any, out: Any) -> Any:
            one, other = v.widen(v.load_floats(a, 0)), v.widen(v.load_floats(b, 0))
            product = v.add_product(one, other, v.doubles(0.5))
            product += v.doubles(1.0) / (one * one) - v.choose(one < other, one, other)
            v.store_floats(out, 0, v.narrow(product))
            return folds.total(product), folds.largest(v.magnitude(product))

        out = np.zeros(16, dtype=np.float32)
        found = add(ONE, OTHER, out)
        one, other = ONE.astype(np.float64), OTHER.astype(np.float64)
        lanes = one * other + 0.5  # products of float32 are exact, so this rounds once
        lanes = lanes + (1.0 / (one * one) - np.where(one < other, one, other))
        np.testing.assert_array_equal(out, lanes.astype(np.float32))
        largest = np.abs(lanes).max()
        self.assertEqual(found, (added_in_order(lanes), largest))


class Bits(unittest.TestCase):
    def test_are_shifted_compared_and_stored(self) -> None:
        @compiled
        def work(raw: Any, whole: Any, out: Any, stored: Any) -> None:
            halves, words = v.widen_halves(v.load_halves(raw, 16)), v.load_words(raw, 0)
            v.store_floats(out, 0, v.floats_of((words << v.bits(3)) | (halves >> v.bits(5))))
            v.store_floats(out, 16, v.floats_of((words & v.bits(0xFF00)) + halves - v.bits(7)))
            size = v.choose(words > v.bits(0x7FFFFFFF), halves, words)
            v.store_floats(out, 32, v.floats_of(size))
            v.store_bytes(stored, 0, v.bits_of(v.load_floats(out, 16)))
            v.store_bytes(stored, 16, v.to_integers(v.load_floats(whole, 0)))

        raw = np.random.default_rng(2).integers(0, 256, 64, dtype=np.uint8)
        out, stored = np.zeros(48, dtype=np.float32), np.zeros(32, dtype=np.uint8)
        words, halves = raw.view(np.uint32), raw.view(np.uint16)[16:].astype(np.uint32)
        work(raw, halves.astype(np.float32), out, stored)
        expected = [
            (words << 3) | (halves >> 5), (words & 0xFF00) + halves - np.uint32(7),
            np.where(words > 0x7FFFFFFF, halves, words),
        ]  # fmt: skip
        np.testing.assert_array_equal(out.view(np.uint32).reshape(3, 16), expected)
        bytes_expected = [expected[1].astype(np.uint8), halves.astype(np.uint8)]
        np.testing.assert_array_equal(stored.reshape(2, 16), bytes_expected)


class Folds(unittest.TestCase):
    def test_give_one_lane_to_each_of_four_vectors(self) -> None:
        @compiled
        def fold(a: Any, largest: Any, sums: Any) -> None:
            one, two = v.load_floats(a, 0), v.load_floats(a, 16)
            three, four = v.load_floats(a, 32), v.load_floats(a, 48)
            largest_lanes = folds.largest_of_each(one, two, three, four)
            sum_lanes = folds.totals(v.widen(one), v.widen(two), v.widen(three), v.widen(four))
            for number in range(4):
                largest[number] = folds.lane(largest_lanes, number)
                sums[number] = folds.lane(sum_lanes, number)

        vectors = np.random.default_rng(4).normal(size=(4, 16)).astype(np.float32)
        largest, sums = np.zeros(4, dtype=np.float32), np.zeros(4)
        fold(vectors.reshape(-1), largest, sums)
        self.assertEqual(largest.tolist(), vectors.max(axis=1).tolist())
        wide = vectors.astype(np.float64)
        self.assertEqual(sums.tolist(), [added_in_order(vector) for vector in wide])

    def test_give_one_lane_to_each_of_sixteen_vectors_of_patterns(self) -> None:
        @compiled
        def fold(data: Any, halves: Any, words: Any) -> None:
            v.store_halves(halves, 0, folds.lowest_halves(data, 1))
            v.store_halves(halves, 16, folds.highest_halves(data, 1))
            v.store_words(words, 0, folds.lowest_words(data, 1))
            v.store_words(words, 16, folds.highest_words(data, 1))

        data = np.random.default_rng(5).integers(0, 256, 2 * 16 * 16 * 4, dtype=np.uint8)
        halves, words = np.zeros(64, dtype=np.uint8), np.zeros(128, dtype=np.uint8)
        fold(data, halves, words)
        for found, kind in ((halves, np.int16), (words, np.int32)):
            vectors = data.view(kind).reshape(-1, 16)[16:32]
            expected = np.concatenate([vectors.min(axis=1), vectors.max(axis=1)])
            np.testing.assert_array_equal(found.view(kind), expected)

    def test_compare_patterns_in_the_order_of_the_floats(self) -> None:
        @compiled
        def convert(halves: Any, words: Any, ordered: Any, sizes: Any, back: Any) -> None:
            for index in range(0, halves.size // 2, 16):
                lanes = v.load_halves(halves, index)
                v.store_halves(ordered[0], index, v.in_order(lanes))
                v.store_halves(sizes[0], index, v.pattern_without_sign(lanes))
                v.store_halves(back[0], index, v.in_order(v.in_order(lanes)))
            for index in range(0, words.size // 4, 16):
                numbers = v.load_words(words, index)
                v.store_words(ordered[1], index, v.in_order(numbers))
                v.store_words(sizes[1], index, v.pattern_without_sign(numbers))
                v.store_words(back[1], index, v.in_order(v.in_order(numbers)))

        every = np.arange(2**16, dtype=np.uint16).view(DTYPES["bfloat16"])
        words = np.random.default_rng(6).integers(0, 2**32, 2**12, dtype=np.uint32).view(np.float32)
        floats = (every, np.concatenate([words, -words, ONE, -ONE]))
        made = [tuple(np.zeros_like(as_bytes(part)) for part in floats) for _ in range(3)]
        convert(*map(as_bytes, floats), *made)
        for stored, ordered, size, back in zip(floats, *made, strict=True):
            integers = ordered.view(f"i{stored.itemsize}")
            known = ~np.isnan(stored)
            in_order = stored[known].astype(np.float64)[np.argsort(integers[known])]
            self.assertTrue((in_order[1:] >= in_order[:-1]).all())
            np.testing.assert_array_equal(size, as_bytes(np.abs(stored)))
            np.testing.assert_array_equal(back, as_bytes(stored))

    def test_take_the_lower_and_the_higher_of_signed_patterns(self) -> None:
        @compiled
        def compare(data: Any, found: Any) -> None:
            one, two = v.load_halves(data, 0), v.load_halves(data, 16)
            v.store_halves(found, 0, folds.lower(one, two))
            v.store_halves(found, 16, folds.higher(one, two))
            three, four = v.load_words(data, 0), v.load_words(data, 16)
            v.store_words(found, 16, folds.lower(three, four))
            v.store_words(found, 32, folds.higher(three, four))

        data = np.random.default_rng(7).integers(0, 256, 128, dtype=np.uint8)
        found = np.zeros(192, dtype=np.uint8)
        compare(data, found)
        halves, words = data.view(np.int16)[:32].reshape(2, 16), data.view(np.int32).reshape(2, 16)
        expected = [halves.min(axis=0), halves.max(axis=0), words.min(axis=0), words.max(axis=0)]
        np.testing.assert_array_equal(found, np.concatenate([as_bytes(part) for part in expected]))


class Rounding(unittest.TestCase):
    def test_reads_every_pattern_of_16_bits(self) -> None:
        @compiled
        def read(raw: Any, kind: int, out: Any) -> None:
            for index in range(0, out.size, 16):
                v.store_floats(out, index, load_weights(raw, index, kind))

        patterns = np.arange(2**16, dtype=np.uint16)
        for name, kind in (("bfloat16", KIND_BFLOAT16), ("float16", KIND_FLOAT16)):
            found = np.zeros(2**16, dtype=np.float32)
            read(as_bytes(patterns), kind, found)
            expected = patterns.view(DTYPES[name]).astype(np.float32)
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))

    def test_is_that_of_the_dtypes_also_for_ties_and_denormals(self) -> None:
        @compiled
        def round_all(numbers: Any, bfloats: Any, halves: Any) -> None:
            for index in range(0, numbers.size, 16):
                lanes = v.load_floats(numbers, index)
                v.store_floats(bfloats, index, round_to_bfloat16(lanes))
                v.store_floats(halves, index, round_to_float16(lanes))

        upper = np.arange(2**16, dtype=np.uint32) << 16
        lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
        numbers = (upper[:, None] | lower.astype(np.uint32)).reshape(-1).view(np.float32)
        bfloats, halves = np.zeros_like(numbers), np.zeros_like(numbers)
        round_all(numbers, bfloats, halves)
        with np.errstate(over="ignore", invalid="ignore"):
            for found, name in ((bfloats, "bfloat16"), (halves, "float16")):
                expected = numbers.astype(DTYPES[name]).astype(np.float32)
                known = ~np.isnan(numbers)
                np.testing.assert_array_equal(found[known], expected[known])
                # the NaN that arithmetic makes; others may carry a payload that rounds up
                plain = numbers.view(np.uint32) & 0x7FFFFFFF == 0x7FC00000
                self.assertTrue(np.isnan(found[plain]).all())

    def test_gives_the_codes_of_e2m1(self) -> None:
        @compiled
        def encode(grid: Any, codes: Any) -> None:
            v.store_bytes(codes, 0, code_of_e2m1(v.load_floats(grid, 0)))

        sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        codes = np.zeros(16, dtype=np.uint8)
        encode(np.array(sizes + [-size for size in sizes], dtype=np.float32), codes)
        self.assertEqual(codes.tolist(), list(range(16)))


class OtherTypes(unittest.TestCase):
    def test_are_refused_when_a_kernel_is_compiled(self) -> None:
        @compiled
        def mixed(a: Any) -> Any:
            return v.count(v.load_floats(a, 0) < v.widen(v.load_floats(a, 0)))

        with self.assertRaisesRegex(numba.core.errors.TypingError, "Floats, Doubles"):
            mixed(ONE)
