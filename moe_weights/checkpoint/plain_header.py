"""Is this safetensors header as every writer writes it, and what does it then say?

Of a hundred thousand entries none is looked at twice: what holds for the whole text (no escapes, no
repeated keys, no numbers but integers) is checked on the text, what holds for a dtype and a shape
is checked once for both. Any doubt whatever gives None, and the strict reader, which names every
problem, decides.
"""

from __future__ import annotations

import json
import math

from moe_weights.checkpoint.dtype_codes import dtype_bits
from moe_weights.checkpoint.strict_json import is_plain
from moe_weights.checkpoint.tensor_header import TensorHeader

# What parsing and looking into a text of unknown form raise.
_ODD = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_TEXTS_OF_ENTRY = 5  # the tensor's name, three keys and the dtype
_MAX_COUNT = 2**48  # far above real tensors; whether more can be counted is judged elsewhere

# (dtype code, shape) as found, to the same and the size in bytes
_Kinds = dict[tuple[str, tuple[int, ...]], tuple[str, tuple[int, ...], int]]


def parse_plain_header(
    encoded: bytes, values_nbytes: int, values_offset: int, file: str
) -> tuple[tuple[TensorHeader, ...], dict[str, str]] | None:
    """Parse a header that has nothing unusual.

    Args:
        encoded: The JSON text.
        values_nbytes: Length of what follows the header, bytes.
        values_offset: First byte after the header, from the start of the file.
        file: Goes into the headers.

    Returns:
        The tensors in the order of their bytes, and the metadata; None when the strict reader must
        decide.
    """
    try:
        return _parse(encoded.decode("utf-8"), values_nbytes, values_offset, file)
    except _ODD:
        return None


def _parse(
    text: str, values_nbytes: int, values_offset: int, file: str
) -> tuple[tuple[TensorHeader, ...], dict[str, str]] | None:
    # A bool would pass for an integer.
    if not is_plain(text) or "true" in text or "false" in text:
        return None
    members = json.loads(text, parse_float=_refuse, parse_constant=_refuse)
    metadata = members.pop("__metadata__", None)
    n_texts = _TEXTS_OF_ENTRY * len(members)
    if metadata is not None:
        if not all(type(value) is str for value in metadata.values()):
            return None
        n_texts += 1 + 2 * len(metadata)
    # Everything that is there besides, also what a repeated key hides, would have quotes.
    if text.count('"') != 2 * n_texts:
        return None
    tensors: list[TensorHeader] = []
    kinds: _Kinds = {}
    stop, is_in_order = 0, True
    for name, member in members.items():
        shape = member["shape"]
        if type(shape) is not list:
            return None
        found = (member["dtype"], tuple(shape))
        begin, end = member["data_offsets"]
        # Equal texts and shapes of 100 000 tensors become one.
        kind = kinds.get(found) or _add_kind(found, kinds)
        if kind is None or end - begin != kind[2]:
            return None
        is_in_order = is_in_order and begin == stop and begin != end
        stop = end
        code, lengths, nbytes = kind
        fields = (file, name, code, lengths, values_offset + begin, nbytes, "", False)
        tensors.append(tuple.__new__(TensorHeader, fields))
    if not is_in_order:
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes, tensor.name))
        stop = 0
        for tensor in tensors:
            if tensor.offset != values_offset + stop:
                return None
            stop += tensor.nbytes
    return None if stop != values_nbytes else (tuple(tensors), metadata or {})


def _add_kind(
    kind: tuple[str, tuple[int, ...]], kinds: _Kinds
) -> tuple[str, tuple[int, ...], int] | None:
    """Check a dtype and a shape and keep their size; None when either is odd."""
    code, shape = kind
    bits = dtype_bits(code) if type(code) is str else None
    if bits is None or not all(type(length) is int and length >= 0 for length in shape):
        return None
    nbytes, rest = divmod(math.prod(shape) * bits, 8)
    if rest or math.prod(length or 1 for length in shape) > _MAX_COUNT:
        return None
    kinds[kind] = (code, shape, nbytes)
    return kinds[kind]


def _refuse(literal: str) -> object:
    raise ValueError(f"{literal} is no integer")
