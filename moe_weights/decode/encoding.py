"""Which on-disk encodings can be turned into numbers, and by which member of this room.

Names and dtype codes only, so that a plan can be made without NumPy.
"""

from __future__ import annotations

_PLAIN_DTYPE_CODES = frozenset({"F64", "F32", "F16", "BF16"})


def encoding_for(dtype_code: str) -> str | None:
    """Return the name of the `decode` member for a stored dtype, or None when there is none.

    Args:
        dtype_code: Code as in safetensors headers.
    """
    return "plain" if dtype_code in _PLAIN_DTYPE_CODES else None
