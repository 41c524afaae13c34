"""GPTQ: codes of 2 to 8 bits packed along the inputs, with a group index for each input.

`X.qweight` I32 (ceil(in * bits / 32), out), `X.qzeros` I32 (groups, ceil(out * bits / 32)),
`X.scales` (groups, out), `X.g_idx` I32 (in,): value = (code - zero point) * scale of the input's
group, transposed to (out, in).

Zero points: `checkpoint_format` "gptq" (also when it is absent) stores them minus one, the others
as they are. For 2, 4 and 8 bits the one was taken from whole words, so that a zero point of 0
borrowed from its neighbour; for 3 bits from each zero point alone.

Codes: one bit stream, 3-bit codes crossing word borders. "gptq_p", and 5 to 7 bits always, is
planar: of 32 codes first the low bits of all, then the higher ones.

Source:
    GPTQModel, gptqmodel/nn_modules/qlinear and gptqmodel/utils/planar_packing.py.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.affine_codes import checked_groups, scale_integers
from moe_weights.decode.bit_stream import PERIOD, Planes, n_words, unpack_columns
from moe_weights.decode.encoding import Parts
from moe_weights.decode.gptq_config import GptqConfig, gptq_config
from moe_weights.decode.qweight import (
    GPTQ,
    SCALE_CODES,
    Qweight,
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

_BITS = (2, 3, 4, 5, 6, 7, 8)

# Width and lowest bit of each plane.
_PLANES: Final[dict[int, Planes]] = {
    3: ((2, 0), (1, 2)),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
}
_ONES: Final = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


class Gptq:
    """Codes of AutoGPTQ and GPTQModel."""

    name = "gptq"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise GPTQ codes and their companions; see `Encoding.claim`."""
        found = find_qweight(header, context)
        if found is None or found.family != GPTQ:
            return None
        config = gptq_config(context)
        if isinstance(config, str):
            return found.refuse(
                RefusalKind.AMBIGUOUS_ENCODING, f"codes {describe(header)}, but {config}"
            )
        refusal = refuse_codes(found)
        if refusal is not None:
            return refusal
        for companion, word in (
            (found.scales, "scales"),
            (found.qzeros, "qzeros"),
            (found.g_idx, "g_idx"),
        ):
            if companion is None:
                return found.refuse_missing(word)
        assert found.scales is not None
        assert found.qzeros is not None
        assert found.g_idx is not None
        wanted = _wanted_index(found.codes, found.qzeros, found.g_idx, config, context)
        if wanted is not None:
            return found.refuse_misfit(found.g_idx, wanted)
        return _checked(found, found.scales, found.qzeros, found.g_idx, config)

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return (code - zero point) * scale in float32, (out, in); see `Encoding.decode`."""
        rows = _rows_of(tensor)
        index = dict(tensor.companions)["group_index"]
        n_groups = len(parts["scale"])
        groups = checked_groups(index.name, parts["group_index"], n_groups)
        zero_points = _zero_points(tensor, parts["zero_point"])
        scales = parts["scale"][:, rows[0] : rows[1]]
        group_size = int(np.count_nonzero(groups == 0)) or 1
        consecutive = np.arange(groups.size) // group_size
        # An index may leave the last groups unused.
        is_plain = consecutive[-1] == n_groups - 1 and np.array_equal(groups, consecutive)
        return scale_integers(
            self.codes(tensor, parts),
            scales.T.astype(np.float32),
            (1, group_size),
            zeros=zero_points.T.astype(np.float32),
            group_of_column=None if is_plain else groups,
        )

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the codes (out, in); see `Encoding.codes`."""
        planes = _planes_of(tensor)
        return unpack_columns(parts[WEIGHT], _rows_of(tensor), tensor.shape[1], planes)

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Pass all parts whole: rows are their columns; see `Encoding.row_cuts`."""
        return RowCuts(parts=dict.fromkeys(dict(tensor.parts), WHOLE))


def _checked(
    found: Qweight,
    scales: TensorHeader,
    qzeros: TensorHeader,
    g_idx: TensorHeader,
    config: GptqConfig,
) -> StoredTensor | EncodingRefusal:
    words, rows = found.codes.shape
    columns = g_idx.shape[0]
    n_groups = config.n_groups(columns)
    if (
        scales.dtype_code not in SCALE_CODES
        or scales.ndim != 2
        or scales.shape[1] != rows
        or scales.shape[0] < 1
        or n_groups not in (None, scales.shape[0])
    ):
        want = "groups" if n_groups is None else n_groups
        return found.refuse_misfit(
            scales, f"{' or '.join(sorted(SCALE_CODES))} [{want}, {rows}] for {columns} inputs"
        )
    fitting = [
        bits
        for bits in _widths(config)
        if n_words(columns, bits) == words
        and qzeros.shape == (scales.shape[0], n_words(rows, bits))
    ]
    if qzeros.dtype_code != "I32" or not fitting:
        width = "one width of 2 to 8 bits" if config.bits is None else f"{config.bits} bits"
        return found.refuse(
            RefusalKind.BAD_COMPANION,
            f"{describe(qzeros)} and {describe(g_idx)} do not fit GPTQ codes "
            f"{describe(found.codes)} with {describe(scales)} at {width}",
        )
    if len(fitting) > 1:
        return found.refuse(
            RefusalKind.AMBIGUOUS_ENCODING,
            f"GPTQ codes {describe(found.codes)} may have {' or '.join(map(str, fitting))} bits, "
            "and config.json does not settle it",
        )
    bits = fitting[0]
    planar = bits in (5, 6, 7) or (bits == 3 and config.planar)
    if planar and (columns % PERIOD or rows % PERIOD):
        return found.refuse(
            RefusalKind.BAD_COMPANION,
            f"planar GPTQ codes {describe(found.codes)} for {columns} inputs and {rows} outputs; "
            f"both must be multiples of {PERIOD}",
        )
    return StoredTensor(
        name=found.name,
        encoding=Gptq.name,
        header=found.codes,
        shape=(rows, columns),
        companions=(("scale", scales), ("zero_point", qzeros), ("group_index", g_idx)),
        options=(
            ("bits", bits),
            ("planar", int(planar)),
            ("minus_one", int(config.minus_one and bits not in (5, 6, 7))),
        ),
    )


def _widths(config: GptqConfig) -> tuple[int, ...]:
    """Return the bits that codes may have; none where config.json gives a width unknown to GPTQ."""
    return tuple(bits for bits in _BITS if config.bits in (None, bits))


def _wanted_index(
    codes: TensorHeader,
    qzeros: TensorHeader,
    g_idx: TensorHeader,
    config: GptqConfig,
    context: EncodingContext,
) -> str | None:
    """Return what the group index should be; None where nothing shows that it is another."""
    words, rows = codes.shape
    widths = _widths(config)
    lengths = [
        words * PERIOD // bits
        for bits in widths
        if qzeros.ndim == 2
        and qzeros.shape[1] == n_words(rows, bits)
        and words * PERIOD % bits == 0
    ]
    if g_idx.dtype_code in {"I32", "I64"} and g_idx.ndim == 1 and g_idx.shape != (0,):
        length = g_idx.shape[0]
        fits = any(n_words(length, bits) == words for bits in widths)
        # A last word may be padded, but not where its whole width is that of an expert matrix.
        is_cut = length not in context.hidden_sizes and any(
            whole in context.hidden_sizes for whole in lengths
        )
        if not lengths or (fits and not is_cut):
            return None
    return f"I32 {' or '.join(f'[{length}]' for length in lengths) or '[in]'}"


def _rows_of(tensor: StoredTensor) -> tuple[int, int]:
    """Return the first row of a cut, and one past the last; see `cut_tensor`."""
    first = first_row_of(tensor)
    return first, first + tensor.shape[0]


def _bits_of(tensor: StoredTensor) -> int:
    bits = tensor.option("bits")
    assert isinstance(bits, int)
    return bits


def _planes_of(tensor: StoredTensor) -> Planes:
    bits = _bits_of(tensor)
    return _PLANES[bits] if tensor.option("planar") else ((bits, 0),)


def _zero_points(tensor: StoredTensor, words: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the zero points (groups, rows) of a cut's rows.

    Args:
        tensor: The tensor, or a cut.
        words: (groups, n) those of all rows, packed.
    """
    bits, minus_one = _bits_of(tensor), bool(tensor.option("minus_one"))
    first, last = _rows_of(tensor)
    before = first // PERIOD
    words = np.ascontiguousarray(words[:, before * bits : -(-last // PERIOD) * bits].T)
    if minus_one and bits in _ONES:
        # uint32 drops the carry out of the word, as the writer's subtraction did.
        words = words.view(np.uint32) + np.uint32(_ONES[bits])
    n_codes = last - before * PERIOD
    codes = unpack_columns(words, (0, words.shape[1]), n_codes, _planes_of(tensor))
    codes = codes[:, first - before * PERIOD :]
    if minus_one and bits not in _ONES:
        return (codes + np.uint8(1)) & np.uint8((1 << bits) - 1)
    return codes
