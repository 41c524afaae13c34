from __future__ import annotations

import subprocess
import sys
import unittest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_weights.decode.scaled_lookup import scale_codes


def by_numpy(
    codes: np.ndarray,
    table: np.ndarray,
    scales: np.ndarray,
    block: tuple[int, int],
) -> np.ndarray:
    """Every step as an array of its own, each rounded to float32."""
    values = table[codes].reshape(*codes.shape[:-1], -1)
    rows, cols = values.shape[-2:]
    grid = (*values.shape[:-2], -(-rows // block[0]), -(-cols // block[1]))

    def spread(numbers: np.ndarray) -> np.ndarray:
        full = np.broadcast_to(numbers if numbers.size > 1 else numbers.reshape(()), grid)
        full = np.repeat(np.repeat(full, block[0], axis=-2), block[1], axis=-1)
        return full[..., :rows, :cols]

    with np.errstate(all="ignore"):
        return values * spread(scales)


class AgreesWithNumPy(unittest.TestCase):
    @settings(max_examples=150, deadline=None)
    @given(
        lead=st.lists(st.integers(1, 3), max_size=2),
        rows=st.integers(1, 9),
        n_bytes=st.integers(1, 20),
        block=st.tuples(st.integers(1, 10), st.integers(1, 12)),
        per_byte=st.integers(1, 2),
        has_one=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_bit_for_bit(
        self,
        lead: list[int],
        rows: int,
        n_bytes: int,
        block: tuple[int, int],
        per_byte: int,
        has_one: bool,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        block = block[0], block[1] * per_byte
        codes = rng.integers(0, 256, (*lead, rows, n_bytes), dtype=np.uint8)
        table = rng.normal(size=(256, per_byte)).astype(np.float32)
        table[0], table[1], table[2] = -0.0, 1e-44, 3e38
        grid = (*lead, -(-rows // block[0]), -(-n_bytes * per_byte // block[1]))
        shape = (1,) if has_one else grid
        scales = (rng.normal(size=shape) * 10.0 ** rng.integers(-40, 38, shape)).astype(np.float32)

        values = scale_codes(codes, table, scales, block)

        expected = by_numpy(codes, table, scales, block)
        np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))

    def test_with_scales_that_are_not_finite(self) -> None:
        codes = np.uint8([[0, 1], [2, 1]])
        table = np.zeros((256, 1), dtype=np.float32)
        table[:3, 0] = 0, 1, -1
        scales = np.float32([[np.inf], [np.nan]])
        values = scale_codes(codes, table, scales, (1, 2))
        np.testing.assert_array_equal(values, np.float32([[np.nan, np.inf], [np.nan, np.nan]]))

    def test_on_what_holds_nothing(self) -> None:
        table = np.zeros((256, 2), dtype=np.float32)
        for shape in ((0, 4), (3, 0), (0, 2, 2)):
            values = scale_codes(
                np.empty(shape, dtype=np.uint8), table, np.empty(0, dtype=np.float32), (1, 2)
            )
            self.assertEqual(values.shape, (*shape[:-1], 2 * shape[-1]))


class Plans(unittest.TestCase):
    def test_of_encoded_tensors_load_no_compiler(self) -> None:
        code = "import sys, moe_weights.decode.resolve; print('numba' in sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        self.assertEqual((ran.stdout.strip(), ran.stderr), ("False", ""))


if __name__ == "__main__":
    unittest.main()
