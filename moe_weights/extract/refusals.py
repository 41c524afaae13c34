"""Why a tensor cannot be measured, where its dtype, its size or its encoding say so."""

from __future__ import annotations

from moe_weights.checkpoint.dtype_codes import dtype_bits, is_float_like
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from moe_weights.extract.names import is_side_tensor
from moe_weights.extract.outcome import Refused, UnmatchedReason

VOID16 = "|V2"
_REASON_OF_REFUSAL = {
    RefusalKind.MISSING_COMPANION: UnmatchedReason.MISSING_COMPANION,
    RefusalKind.BAD_COMPANION: UnmatchedReason.BAD_COMPANION,
    RefusalKind.UNKNOWN_DTYPE: UnmatchedReason.UNKNOWN_DTYPE,
    RefusalKind.AMBIGUOUS_ENCODING: UnmatchedReason.AMBIGUOUS_LAYOUT,
}
_REFUSED_REASONS = frozenset(
    {
        UnmatchedReason.AMBIGUOUS_LAYOUT,
        UnmatchedReason.MISSING_COMPANION,
        UnmatchedReason.BAD_COMPANION,
    }
)


def refuse_by_encoding(refusal: EncodingRefusal) -> Refused:
    """Return the refusal of codes that cannot be decoded."""
    return Refused(reason=_REASON_OF_REFUSAL[refusal.kind], cause=refusal.cause)


def refuse_by_size(tensor: StoredTensor) -> Refused | None:
    """Return the refusal of a tensor without elements or axes; None for all others."""
    if 0 in tensor.shape:
        return Refused(
            reason=UnmatchedReason.ZERO_SIZE, cause=f"shape {list(tensor.shape)} has no elements"
        )
    if not tensor.shape and not is_side_tensor(tensor.name):
        return Refused(reason=UnmatchedReason.UNSUPPORTED_NDIM, cause="a scalar has no axes")
    return None


def refuse_by_dtype(header: TensorHeader) -> Refused:
    """Return the refusal of what no encoding claims: integers and unknown dtypes."""
    code = header.dtype_code
    is_integer = dtype_bits(code) is not None and not is_float_like(code)
    if is_side_tensor(header.name) or (is_integer and header.ndim < 2):
        return Refused(reason=UnmatchedReason.SIDE_TENSOR)
    if is_integer:
        return Refused(
            reason=UnmatchedReason.MISSING_COMPANION,
            cause=f"{code} codes of no known encoding, or their scales are missing",
        )
    hint = 'if it holds bfloat16, set parsing.npz_void16 to "bfloat16"'
    return Refused(
        reason=UnmatchedReason.UNKNOWN_DTYPE,
        cause=f"dtype {code} is not decoded",
        hint=hint if code == VOID16 else "",
    )


def may_hide_weights(refused: Refused, header: TensorHeader) -> bool:
    """The tensor may well be an expert matrix, but not one that is understood for certain."""
    if refused.reason in _REFUSED_REASONS:
        return True
    if refused.reason is UnmatchedReason.UNSUPPORTED_NDIM and header.ndim > 3:
        return True  # a bank of several layers, whose axes only a rule can name
    # A dtype nobody knows is reported; one that is known but not decoded hides weights.
    return refused.reason is UnmatchedReason.UNKNOWN_DTYPE and (
        header.dtype_code == VOID16 or dtype_bits(header.dtype_code) is not None
    )
