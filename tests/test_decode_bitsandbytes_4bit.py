from __future__ import annotations

import json
import unittest
from dataclasses import replace

import ml_dtypes
import numpy as np

from moe_weights.decode.bitsandbytes_4bit import Bitsandbytes4Bit
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from moe_weights.errors import CheckpointError
from tests.support.encoded_tensors import EncodedTensors

W = "model.layers.0.mlp.experts.7.up_proj.weight"
STATE = f"{W}.quant_state.bitsandbytes__nf4"
TABLE = np.linspace(-1, 1, 16).astype(np.float32)


def as_json(**facts: object) -> np.ndarray:
    return np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)


def stored(
    nibbles: np.ndarray, shape: tuple[int, ...], absmax: np.ndarray, *, block: int = 64, **more
) -> EncodedTensors:
    """Pack nibbles, the first of each pair high; `more` are facts of the JSON."""
    padded = np.append(nibbles, np.zeros(nibbles.size % 2, dtype=nibbles.dtype))
    packed = (padded[::2] << 4 | padded[1::2]).astype(np.uint8).reshape(-1, 1)
    facts = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    return EncodedTensors(
        arrays={
            W: packed,
            f"{W}.absmax": absmax,
            f"{W}.quant_map": TABLE,
            STATE: as_json(**facts, **more),
        }
    )


def nested(tensors: EncodedTensors, absmax: np.ndarray, table: np.ndarray) -> EncodedTensors:
    return tensors.replaced(f"{W}.nested_absmax", absmax).replaced(f"{W}.nested_quant_map", table)


class Values(unittest.TestCase):
    def decode(self, tensors: EncodedTensors) -> np.ndarray:
        return tensors.decode(Bitsandbytes4Bit(), W)

    def test_the_first_value_lies_in_the_high_nibble(self) -> None:
        # Bytes 0xF0 and 0x80: entries 15, 0, 8, 0 of the table, times 2.
        tensors = stored(np.zeros(4, np.int64), (1, 4), np.array([2], np.float32), block=4)
        table = np.arange(16, dtype=np.float32)
        tensors = tensors.replaced(f"{W}.quant_map", table)
        tensors = tensors.replaced(W, np.array([[0xF0], [0x80]], dtype=np.uint8))

        values = self.decode(tensors)

        self.assertEqual(values.dtype, np.float32)
        self.assertEqual(values.tolist(), [[30, 0, 16, 0]])

    def test_blocks_run_over_row_ends(self) -> None:
        # Three rows of 3: blocks of 4 hold elements 0-3, 4-7 and the ninth alone.
        tensors = stored(np.full(9, 15), (3, 3), np.array([1, 2, 3], dtype=np.float32), block=4)
        self.assertEqual(self.decode(tensors).tolist(), [[1, 1, 1], [1, 2, 2], [2, 2, 3]])

    def test_ragged_shapes_agree_with_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        for shape in ((5, 7), (3, 96), (1, 1), (8, 16), (2, 3, 50)):
            count = int(np.prod(shape))
            nibbles = rng.integers(0, 16, count)
            absmax = rng.random(-(-count // 64)).astype(np.float32)
            expected = np.array(
                [TABLE[nibble] * absmax[at // 64] for at, nibble in enumerate(nibbles)]
            ).reshape(shape)
            with self.subTest(shape=shape):
                values = self.decode(stored(nibbles, shape, absmax))
                np.testing.assert_array_equal(values, expected)

    def test_double_quantisation_adds_the_offset_of_the_state(self) -> None:
        # absmax codes 0, 1, 2 in nested blocks of 2: 0 * 4 + 1, 0.5 * 4 + 1, 1 * 8 + 1.
        table = np.zeros(256, dtype=np.float32)
        table[:3] = 0, 0.5, 1
        tensors = stored(
            np.full(6, 15),
            (2, 3),
            np.array([0, 1, 2], dtype=np.uint8),
            block=2,
            nested_blocksize=2,
            nested_dtype="float32",
            nested_offset=1.0,
        )

        values = self.decode(nested(tensors, np.array([4, 8], np.float32), table))

        self.assertEqual(values.tolist(), [[1, 1, 3], [3, 9, 9]])

    def test_other_storage_types_hold_the_same_bytes(self) -> None:
        plain = stored(np.arange(32) % 16, (4, 8), np.array([1.5], dtype=np.float32))
        for dtype in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64, np.int8):
            viewed = plain.arrays[W].reshape(-1).view(dtype).reshape(-1, 1)
            with self.subTest(dtype=dtype):
                np.testing.assert_array_equal(
                    self.decode(plain.replaced(W, viewed)), self.decode(plain)
                )

    def test_part_of_the_codes_is_an_error(self) -> None:
        tensors = stored(np.arange(32) % 16, (2, 4, 4), np.array([1.5], dtype=np.float32))
        tensor = tensors.claim(Bitsandbytes4Bit(), W)
        assert isinstance(tensor, StoredTensor)
        parts = {role: tensors.arrays[header.name] for role, header in tensor.parts}

        with self.assertRaises(CheckpointError) as caught:
            Bitsandbytes4Bit().decode(tensor, parts | {"weight": parts["weight"][:8]})

        self.assertEqual(
            str(caught.exception),
            f"{W}: 8 bytes of codes for 32 values; blocks of bitsandbytes run over the whole "
            "tensor, which must be read at once",
        )


class Claims(unittest.TestCase):
    def setUp(self) -> None:
        self.tensors = stored(np.zeros(192, np.int64), (2, 96), np.ones(3, np.float32))
        doubled = stored(
            np.zeros(192, np.int64),
            (2, 96),
            np.zeros(3, np.uint8),
            nested_blocksize=256,
            nested_dtype="float32",
            nested_offset=0.5,
        )
        self.doubled = nested(doubled, np.ones(1, np.float32), np.ones(256, np.float32))

    def assert_refused(self, tensors: EncodedTensors, kind: RefusalKind, cause: str) -> None:
        refusal = tensors.claim(Bitsandbytes4Bit(), W)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))

    def test_the_state_tells_the_shape(self) -> None:
        for tensors in (self.tensors, self.doubled):
            tensor = tensors.claim(Bitsandbytes4Bit(), W)
            assert isinstance(tensor, StoredTensor)
            self.assertEqual((tensor.name, tensor.shape), (W, (2, 96)))
            names = {header.name for _role, header in tensor.parts}
            self.assertEqual(names, set(tensors.arrays))

    def test_other_tensors_are_not_claimed(self) -> None:
        for name in (f"{W}.absmax", f"{W}.quant_map", STATE):
            self.assertIsNone(self.tensors.claim(Bitsandbytes4Bit(), name))
        alone = EncodedTensors(arrays={W: np.zeros((96, 1), dtype=np.uint8)})
        self.assertIsNone(alone.claim(Bitsandbytes4Bit(), W))

    def test_missing_companions_are_named(self) -> None:
        codes = f"codes {W} U8 [96, 1] without "
        state = f"{STATE} or {W}.quant_state.bitsandbytes__fp4"
        for tensors, gone, words in (
            (self.tensors, [f"{W}.absmax"], f"{W}.absmax"),
            (self.tensors, [f"{W}.quant_map"], f"{W}.quant_map"),
            (self.tensors, [STATE], state),
            (self.tensors, [f"{W}.absmax", STATE], f"{W}.absmax, {state}"),
            (self.doubled, [f"{W}.nested_absmax"], f"{W}.nested_absmax"),
            (self.doubled, [f"{W}.nested_quant_map"], f"{W}.nested_quant_map"),
            (
                self.doubled,
                [f"{W}.nested_absmax", f"{W}.nested_quant_map"],
                f"{W}.nested_absmax, {W}.nested_quant_map",
            ),
        ):
            self.assert_refused(
                tensors.without(*gone), RefusalKind.MISSING_COMPANION, codes + words
            )

    def test_codes_without_any_companion_are_refused_where_the_config_tells(self) -> None:
        alone = EncodedTensors(
            arrays={W: self.tensors.arrays[W]}, config={"quant_method": "bitsandbytes"}
        )
        self.assert_refused(
            alone,
            RefusalKind.MISSING_COMPANION,
            f"codes {W} U8 [96, 1] without {W}.absmax, {W}.quant_map, {STATE} or "
            f"{W}.quant_state.bitsandbytes__fp4",
        )

    def test_states_that_bitsandbytes_does_not_write_are_refused(self) -> None:
        good = {"quant_type": "nf4", "blocksize": 64, "shape": [2, 96]}
        for facts in (
            good | {"quant_type": "fp4"},
            good | {"shape": None},
            good | {"shape": [2, -96]},
            good | {"blocksize": 0},
        ):
            state = as_json(**facts)
            self.assert_refused(
                self.tensors.replaced(STATE, state),
                RefusalKind.BAD_COMPANION,
                f"state {STATE} U8 [{state.size}] of codes {W} U8 [96, 1] does not give "
                "quant_type, blocksize and shape as bitsandbytes writes them",
            )
        for raw in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 60_000):
            broken = self.tensors.replaced(STATE, np.frombuffer(raw, dtype=np.uint8))
            self.assertIsInstance(broken.claim(Bitsandbytes4Bit(), W), EncodingRefusal)

    def test_double_quantisation_needs_its_offset(self) -> None:
        facts = {"quant_type": "nf4", "blocksize": 64, "shape": [2, 96], "nested_blocksize": 256}
        refusal = self.doubled.replaced(STATE, as_json(**facts)).claim(Bitsandbytes4Bit(), W)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)

    def test_an_offset_that_float32_does_not_hold_is_refused(self) -> None:
        facts = {"quant_type": "nf4", "blocksize": 64, "shape": [2, 96], "nested_blocksize": 256}
        for offset in (float("nan"), float("-inf"), 1e39, 10**400, True):
            state = as_json(**facts, nested_offset=offset)
            self.assert_refused(
                self.doubled.replaced(STATE, state),
                RefusalKind.BAD_COMPANION,
                f"state {STATE} U8 [{state.size}] of codes {W} U8 [96, 1] does not give "
                "quant_type, blocksize and shape as bitsandbytes writes them",
            )

    def test_a_state_too_large_to_be_read_is_refused(self) -> None:
        large = self.tensors.replaced(STATE, np.zeros(70_000, dtype=np.uint8))
        context = replace(large.context(), read_metadata=lambda header: None)
        refusal = Bitsandbytes4Bit().claim(large.header(W), context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"state {STATE} U8 [70000] of codes {W} U8 [96, 1] is too large for the short text "
            "that bitsandbytes writes",
        )

    def test_codes_of_another_length_are_refused(self) -> None:
        for array, words in (
            (np.zeros((95, 1), np.uint8), "U8 [95, 1]"),
            (np.zeros((1, 96), np.uint8), "U8 [1, 96]"),
            (np.zeros((96, 1), ml_dtypes.bfloat16), "BF16 [96, 1]"),
        ):
            self.assert_refused(
                self.tensors.replaced(W, array),
                RefusalKind.BAD_COMPANION,
                f"codes {W} {words} do not hold the 192 values of shape [2, 96] that {STATE} "
                "states",
            )

    def test_companions_of_another_length_or_type_are_refused(self) -> None:
        for tensors, role, array, words, expected in (
            (self.tensors, "absmax", np.ones(2, np.float32), "F32 [2]", "BF16 or F16 or F32 [3]"),
            (
                self.tensors,
                "quant_map",
                np.ones(8, np.float32),
                "F32 [8]",
                "BF16 or F16 or F32 [16]",
            ),
            (self.doubled, "absmax", np.ones(3, np.float32), "F32 [3]", "U8 [3]"),
            (
                self.doubled,
                "nested_absmax",
                np.ones(2, np.float32),
                "F32 [2]",
                "BF16 or F16 or F32 [1]",
            ),
            (
                self.doubled,
                "nested_quant_map",
                np.ones(255, np.float32),
                "F32 [255]",
                "BF16 or F16 or F32 [256]",
            ),
        ):
            self.assert_refused(
                tensors.replaced(f"{W}.{role}", array),
                RefusalKind.BAD_COMPANION,
                f"{W}.{role} {words} does not fit codes {W} U8 [96, 1] of weights [2, 96] in "
                f"blocks of 64; expected {expected}",
            )


if __name__ == "__main__":
    unittest.main()
