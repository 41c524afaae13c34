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
from moe_weights.decode.affine_codes import scale_integers
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
from moe_weights.decode.row_cuts import WHOLE, RowCuts, first_row_of
from moe_weights.decode.scale_names import describe
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_BITS = 4
_PER_WORD = 8
_SHIFTS = np.array([_BITS * nibble for nibble in (0, 4, 1, 5, 2, 6, 3, 7)], dtype=np.uint32)
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
        first = first_row_of(tensor)
        scales = parts["scale"][:, first : first + tensor.shape[0]].T.astype(np.float32)
        zero_points = np.full(1, _SYMMETRIC_ZERO_POINT, dtype=np.float32)
        if "zero_point" in parts:
            zero_points = _by_output(tensor, parts["zero_point"]).astype(np.float32)
        block = 1, tensor.shape[1] // scales.shape[1]
        return scale_integers(self.codes(tensor, parts), scales, block, zeros=zero_points)

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the codes (out, in); see `Encoding.codes`."""
        return _by_output(tensor, parts[WEIGHT])

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Pass all parts whole: rows are their columns; see `Encoding.row_cuts`."""
        return RowCuts(parts=dict.fromkeys(dict(tensor.parts), WHOLE), row_grain=_PER_WORD)


def _by_output(tensor: StoredTensor, words: NDArray[Any]) -> NDArray[np.uint8]:
    """Unpack words (n, out / 8) to the codes (rows, n) of a cut's rows, whole words of them."""
    # Plans claim tensors without decoding any; they need not wait for a compiler to load.
    from moe_weights.decode.unpack_kernels import unpack_shuffled

    codes = np.empty((tensor.shape[0], len(words)), dtype=np.uint8)
    words = np.require(words, requirements=["C", "A"]).view(np.uint32)
    unpack_shuffled(words, first_row_of(tensor) // _PER_WORD, _SHIFTS, codes)
    return codes


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
