"""bitsandbytes NF4 and FP4: value = table[nibble] * largest absolute value of its block.

`X.weight` holds two codes a byte, the first in the high nibble, as U8 (ceil(N / 2), 1) or, with
another `quant_storage`, the same bytes under that dtype. Its shape stands only in the JSON of
`X.weight.quant_state.bitsandbytes__nf4` or `__fp4`. Blocks run through the flattened weights, over
row ends. With double quantisation `X.weight.absmax` is U8: its values are
`nested_quant_map[code] * nested_absmax` of 256 blocks each, plus an offset that the JSON holds.
Fused experts have the same companions behind their own name. They must be read whole: experts
need not end where blocks or bytes end.

Source:
    bitsandbytes 0.50.2: functional.py (QuantState), backends/default/ops.py (dequantize_4bit),
    nn/parametrize.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.bit_stream import NIBBLES, unpack_nibbles
from moe_weights.decode.encoding import Parts
from moe_weights.decode.row_cuts import WHOLE, PartCut, RowCuts, first_row_of, n_entries
from moe_weights.decode.scale_names import describe
from moe_weights.decode.scaled_lookup import scale_codes
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)
from moe_weights.errors import CheckpointError

_KINDS = ("nf4", "fp4")
_ROLES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_NESTED = frozenset({"nested_absmax", "nested_quant_map"})
_FLOAT_CODES = frozenset({"F32", "F16", "BF16"})
_LARGEST_OFFSET = float(np.finfo(np.float32).max)
_TABLE_LENGTH, _NESTED_TABLE_LENGTH = 16, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What the JSON companion says."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    offset: float


class Bitsandbytes4Bit:
    """NF4 and FP4 codes with a table and a scale per block."""

    name = "bitsandbytes_4bit"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise codes by the companions behind their name; see `Encoding.claim`."""
        found = _find_companions(header.name, context.by_name)
        if not found and not _is_orphan(header, context.quantization):
            return None

        def refuse(kind: RefusalKind, cause: str) -> EncodingRefusal:
            return EncodingRefusal(
                name=header.name,
                header=header,
                kind=kind,
                cause=cause,
                companions=tuple(found.values()),
            )

        missing = _missing(header.name, found)
        if missing:
            return refuse(
                RefusalKind.MISSING_COMPANION,
                f"codes {describe(header)} without " + ", ".join(missing),
            )
        described = f"state {describe(found['quant_state'])} of codes {describe(header)}"
        raw = context.read_metadata(found["quant_state"])
        if raw is None:
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"{described} is too large for the short text that bitsandbytes writes",
            )
        state = _read_state(
            raw,
            kind=found["quant_state"].name.rpartition("__")[2],
            is_nested="nested_absmax" in found,
        )
        if state is None:
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"{described} does not give quant_type, blocksize and shape as bitsandbytes "
                "writes them",
            )
        n_values = math.prod(state.shape)
        if header.shape != (header.n_elements, 1) or header.nbytes != -(-n_values // 2):
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"codes {describe(header)} do not hold the {n_values} values of shape "
                f"{list(state.shape)} that {found['quant_state'].name} states",
            )
        for role, lengths in _expected(n_values, state, found).items():
            companion = found[role]
            codes = {"U8"} if role == "absmax" and "nested_absmax" in found else _FLOAT_CODES
            if companion.shape != (lengths,) or companion.dtype_code not in codes:
                return refuse(
                    RefusalKind.BAD_COMPANION,
                    f"{describe(companion)} does not fit codes {describe(header)} "
                    f"of weights {list(state.shape)} in blocks of {state.block}; expected "
                    f"{' or '.join(sorted(codes))} [{lengths}]",
                )
        return StoredTensor(
            name=header.name,
            encoding=self.name,
            header=header,
            shape=state.shape,
            companions=tuple(found.items()),
            options=(
                ("block", state.block),
                ("nested_block", state.nested_block),
                ("offset", state.offset),
            ),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return table[nibble] * absmax in float32; see `Encoding.decode`.

        Raises:
            CheckpointError: the codes are not those of the whole tensor.
        """
        block, offset = tensor.option("block"), tensor.option("offset")
        assert isinstance(block, int)
        assert isinstance(offset, float)
        scales = parts["absmax"].reshape(-1)
        if "nested_absmax" in parts:
            nested_block = tensor.option("nested_block")
            assert isinstance(nested_block, int)
            first = first_row_of(tensor) * tensor.shape[-1] // block
            outer = parts["nested_absmax"].astype(np.float32)
            blocks = np.arange(first, first + scales.size) // nested_block
            # Damaged scales may be infinite or NaN; what comes out is counted by who measures.
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                scales = parts["nested_quant_map"].astype(np.float32)[scales] * outer[blocks]
                scales += np.float32(offset)
        table = parts["quant_map"].astype(np.float32)
        codes, pairs = _bytes_of(tensor, parts), table[NIBBLES[:, ::-1]]
        if block % 2:  # blocks end within bytes
            codes, pairs = self.codes(tensor, parts).reshape(-1), table[:, None]
        values = scale_codes(codes[None], pairs, scales.astype(np.float32), (1, block))
        return values.reshape(-1)[: tensor.n_elements].reshape(tensor.shape)

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the indices into the table; see `Encoding.codes`."""
        packed = _bytes_of(tensor, parts)
        low_first = packed >> np.uint8(4) | packed << np.uint8(4)
        return unpack_nibbles(low_first)[: tensor.n_elements].reshape(tensor.shape)

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut between rows that end with bytes and blocks; see `Encoding.row_cuts`."""
        block, cols = tensor.option("block"), tensor.shape[-1]
        assert isinstance(block, int)
        companions = dict(tensor.companions)
        n_rows = n_entries(tensor) * tensor.shape[-2] if tensor.ndim > 1 else 0
        if not n_rows or cols % block or tensor.header.n_elements % n_rows:
            return None
        cuts = {role: WHOLE for role in _ROLES if role in companions}
        cuts |= {WEIGHT: PartCut(rows=1), "absmax": PartCut(rows=1)}
        return RowCuts(parts=cuts)


def _bytes_of(tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
    """Return the packed codes, flat; the earlier code of a byte lies in its high nibble.

    Raises:
        CheckpointError: they are not those of the whole tensor, or of the rows it was cut to.
    """
    packed = np.ascontiguousarray(parts[WEIGHT]).reshape(-1).view(np.uint8)
    count = tensor.n_elements
    if packed.size != -(-count // 2):
        raise CheckpointError(
            f"{tensor.header.name}: {packed.size} bytes of codes for {count} values; blocks of "
            "bitsandbytes run over the whole tensor, which must be read at once"
        )
    return packed


def _find_companions(name: str, by_name: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    names = {role: f"{name}.{role}" for role in _ROLES}
    found = {role: by_name[word] for role, word in names.items() if word in by_name}
    states = [word for kind in _KINDS if (word := _state_name(name, kind)) in by_name]
    if states:
        found["quant_state"] = by_name[states[0]]
    return found


def _state_name(name: str, kind: str) -> str:
    return f"{name}.quant_state.bitsandbytes__{kind}"


def _is_orphan(header: TensorHeader, quantization: Mapping[str, object]) -> bool:
    """Tell whether this can only be codes whose companions are all missing."""
    return (
        header.dtype_code == "U8"
        and header.name.endswith(".weight")
        and header.shape == (header.n_elements, 1)
        and quantization.get("quant_method") == "bitsandbytes"
    )


def _missing(name: str, found: Mapping[str, TensorHeader]) -> list[str]:
    needed = ["absmax", "quant_map"]
    is_nested = not _NESTED.isdisjoint(found)
    if is_nested or ("absmax" in found and found["absmax"].dtype_code == "U8"):
        needed += sorted(_NESTED)
    missing = [f"{name}.{role}" for role in needed if role not in found]
    if "quant_state" not in found:
        missing.append(" or ".join(_state_name(name, kind) for kind in _KINDS))
    return missing


def _read_state(raw: bytes, kind: str, is_nested: bool) -> _State | None:
    """Read the JSON; None when it is not what bitsandbytes writes."""
    try:
        state = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(state, dict) or state.get("quant_type") != kind:
        return None
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or not shape or not all(_is_length(side) for side in shape):
        return None
    nested_block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if not is_nested:
        nested_block, offset = 1, 0.0
    if not _is_length(block) or not _is_length(nested_block) or not _is_number(offset):
        return None
    return _State(shape=tuple(shape), block=block, nested_block=nested_block, offset=float(offset))


def _is_length(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST_OFFSET  # also false for NaN


def _expected(n_values: int, state: _State, found: Mapping[str, TensorHeader]) -> dict[str, int]:
    """Return the length that each companion must have."""
    n_blocks = -(-n_values // state.block)
    lengths = {"absmax": n_blocks, "quant_map": _TABLE_LENGTH}
    if "nested_absmax" in found:
        lengths["nested_absmax"] = -(-n_blocks // state.nested_block)
        lengths["nested_quant_map"] = _NESTED_TABLE_LENGTH
    return lengths
