"""AutoAWQ's GEMM layout: 4-bit codes packed along the outputs, in a shuffled order.

`X.qweight` I32 (in, out / 8), `X.qzeros` I32 (in / group, out / 8), `X.scales` (in / group, out);
value = (code - zero point) * scale, transposed to (out, in). Output 8k + i lies in nibble
(0, 4, 1, 5, 2, 6, 3, 7)[i] of word k, of codes and zero points alike.

Source:
    AutoAWQ, awq/utils/packing_utils.py and awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.encoding import Parts
from moe_weights.decode.qweight import (
    AWQ,
    SCALE_CODES,
    Qweight,
    config_number,
    config_word,
    find_qweight,
    refuse_codes,
)
from moe_weights.decode.row_cuts import RowCuts
from moe_weights.decode.scale_names import describe
from moe_weights.decode.scaled_lookup import scale_centred_codes
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_BITS = 4
_PER_WORD = 8
_NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)
_SYMMETRIC_ZERO_POINT = 8


class Awq:
    """4-bit codes of AutoAWQ."""

    name = "awq"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise AWQ codes and their companions; see `Encoding.claim`."""
        found = find_qweight(header, context)
        if found is None or found.family != AWQ:
            return None
        refusal = refuse_codes(found) or _refuse_config(found, context)
        if refusal is not None:
            return refusal
        rows, words = header.shape
        columns = words * _PER_WORD
        scales, qzeros = found.scales, found.qzeros
        if scales is None:
            return found.refuse_missing("scales")
        if (
            scales.dtype_code not in SCALE_CODES
            or scales.ndim != 2
            or scales.shape[1] != columns
            or not _makes_groups(rows, scales.shape[0], config_number(context, "group_size"))
        ):
            return found.refuse_misfit(scales, _wanted_scales(rows, columns, context))
        companions: tuple[tuple[str, TensorHeader], ...] = (("scale", scales),)
        if qzeros is not None:
            if qzeros.dtype_code != "I32" or qzeros.shape != (scales.shape[0], words):
                return found.refuse_misfit(
                    qzeros, f"I32 {[scales.shape[0], words]} beside {describe(scales)}"
                )
            companions += (("zero_point", qzeros),)
        elif context.quantization.get("zero_point") is not False:
            return found.refuse_missing("qzeros")
        return StoredTensor(
            name=found.name,
            encoding=self.name,
            header=header,
            shape=(columns, rows),
            companions=companions,
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return (code - zero point) * scale in float32, (out, in); see `Encoding.decode`."""
        scales = parts["scale"].T.astype(np.float32)
        codes = self.codes(tensor, parts)
        zero_points = (
            _by_output(parts["zero_point"]).astype(np.float32)
            if "zero_point" in parts
            else np.full_like(scales, _SYMMETRIC_ZERO_POINT)
        )
        group_size = codes.shape[1] // scales.shape[1]
        groups = np.arange(codes.shape[1]) // group_size
        return scale_centred_codes(codes, zero_points, scales, groups)

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the codes (out, in); see `Encoding.codes`."""
        return _by_output(parts[WEIGHT])

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Return None: words hold codes of many outputs; see `Encoding.row_cuts`."""
        return None


def _by_output(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Unpack words (n, out / 8) to codes (out, n)."""
    by_word = np.ascontiguousarray(words.T).view(np.uint32)
    codes = np.empty((by_word.shape[0], _PER_WORD, by_word.shape[1]), dtype=np.uint8)
    for output, nibble in enumerate(_NIBBLE_OF_OUTPUT):
        codes[:, output] = (by_word >> np.uint32(_BITS * nibble)) & np.uint32((1 << _BITS) - 1)
    return codes.reshape(-1, by_word.shape[1])


def _refuse_config(found: Qweight, context: EncodingContext) -> EncodingRefusal | None:
    bits = config_number(context, "bits")
    if bits not in (None, _BITS):
        return found.refuse(
            RefusalKind.BAD_COMPANION,
            f"config.json gives AWQ codes {describe(found.codes)} {bits} bits; only 4 are known",
        )
    for key in ("version", "checkpoint_format", "format"):
        layout = config_word(context, key)
        if layout not in (None, "gemm"):
            return found.refuse(
                RefusalKind.AMBIGUOUS_ENCODING,
                f"config.json gives AWQ codes {describe(found.codes)} the {key} {layout!r}; "
                "only 'gemm' is known",
            )
    return None


def _makes_groups(rows: int, n_groups: int, group_size: int | None) -> bool:
    if n_groups < 1 or rows % n_groups:
        return False
    return group_size is None or rows // n_groups == (rows if group_size == -1 else group_size)


def _wanted_scales(rows: int, columns: int, context: EncodingContext) -> str:
    group_size = config_number(context, "group_size")
    dtypes = " or ".join(sorted(SCALE_CODES))
    if group_size == -1:
        return f"{dtypes} [1, {columns}]"
    if group_size is None or group_size < 1 or rows % group_size:
        return f"{dtypes} [groups, {columns}], the groups dividing {rows} inputs"
    return f"{dtypes} {[rows // group_size, columns]} (groups of {group_size}, config.json)"
