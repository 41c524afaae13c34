"""How sums over many weights are added: in sixteen fixed lanes, then lane by lane as a fixed tree.

Compilers must not reorder floating-point additions, so a plain loop adds one number at a time. Here
the order is written down with vectors of sixteen lanes; LLVM maps them to whatever the machine has
and the bits are the same everywhere.

What an array of bits stands for is told by its integer type, which is free to choose:
uint16 bfloat16, int16 float16, uint32 float32, uint64 float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types as numba_types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic

# Numba's helpers have no annotations.
types: Any = numba_types
cgutils: Any = numba_cgutils

N_LANES = 16
_DOUBLE = ir.DoubleType()
_FLOAT = ir.FloatType()
_DOUBLES = ir.VectorType(_DOUBLE, N_LANES)
_FLOAT_MAGNITUDE = 0x7FFFFFFF
_DOUBLE_MAGNITUDE = 0x7FFFFFFFFFFFFFFF
# float16 bits shifted to where float32 has them are the value times 2**-112, also if denormal.
_HALF_TO_FLOAT_SHIFT = 13
_HALF_TO_FLOAT_FACTOR = 2.0**112


def vector_code(function: Callable[..., Any]) -> Any:
    """Make a function that Numba calls with types into one that kernels call with values."""
    return intrinsic(function)


def _splat(scalar: ir.Constant) -> ir.Constant:
    return ir.Constant(ir.VectorType(scalar.type, N_LANES), [scalar] * N_LANES)


def _integers(width: int, value: int) -> ir.Constant:
    return _splat(ir.Constant(ir.IntType(width), value))


def address_of(context: Any, builder: Any, array_type: Any, array: Any, start: Any) -> Any:
    """Return the address of element `start` of a contiguous array, as a byte pointer."""
    struct = context.make_array(array_type)(context, builder, array)
    width = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    first = builder.bitcast(struct.data, ir.IntType(8).as_pointer())
    return builder.gep(first, [builder.mul(start, ir.Constant(start.type, width))])


def _load(builder: Any, address: Any, vector: Any, offset: Any, align: int) -> Any:
    place = builder.gep(address, [offset])
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=align)


def _splat_value(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, N_LANES), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, undefined, _integers(32, 0))


def _load_bits(builder: Any, element: Any, address: Any, part: Any) -> tuple[Any, Any]:
    """Return sixteen bit patterns, as float32 or float64 patterns, and their float vector type."""
    width = element.bitwidth // 8
    offset = builder.mul(part, ir.Constant(part.type, width * N_LANES))
    stored = ir.VectorType(ir.IntType(element.bitwidth), N_LANES)
    bits = _load(builder, address, stored, offset, width)
    if element is types.uint64:
        return bits, _DOUBLES
    floats = ir.VectorType(_FLOAT, N_LANES)
    if element is types.uint32:
        return bits, floats
    wide = builder.zext(bits, ir.VectorType(ir.IntType(32), N_LANES))
    if element is types.uint16:
        return builder.shl(wide, _integers(32, 16)), floats
    sign = builder.shl(builder.and_(wide, _integers(32, 0x8000)), _integers(32, 16))
    rest = builder.and_(wide, _integers(32, 0x7FFF))
    shifted = builder.shl(rest, _integers(32, _HALF_TO_FLOAT_SHIFT))
    factor = _splat(ir.Constant(_FLOAT, _HALF_TO_FLOAT_FACTOR))
    scaled = builder.fmul(builder.bitcast(shifted, floats), factor)
    return builder.or_(builder.bitcast(scaled, wide.type), sign), floats


def _to_doubles(builder: Any, bits: Any, floats: Any) -> Any:
    values = builder.bitcast(bits, floats)
    return values if floats is _DOUBLES else builder.fpext(values, _DOUBLES)


def _fold(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine lane i with lane i + half, halving until one is left."""
    half = N_LANES // 2
    while half:
        undefined = ir.Constant(vector.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(
                vector,
                undefined,
                ir.Constant(ir.VectorType(ir.IntType(32), half), [*range(start, start + half)]),
            )
            for start in (0, half)
        )
        vector = combine(low, high)
        half //= 2
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


def is_flat_array(array: Any) -> bool:
    """The type is that of a contiguous array of one axis."""
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"


def is_row(array: Any) -> bool:
    """The type is that of a row of bits, see above."""
    known = (types.uint16, types.int16, types.uint32, types.uint64)
    return is_flat_array(array) and array.dtype in known


@vector_code
def add_magnitudes(
    _context: Any,
    row: Any,
    start: Any,
    n_parts: Any,
    columns: Any,
    column: Any,
    square_scale: Any,
    sum_scale: Any,
) -> Any:  # pragma: no cover
    """Add 16 * n_parts elements of a row, from `start` on.

    Args:
        row: (C,) bits, contiguous.
        start: First element.
        n_parts: How many times sixteen elements.
        columns: float64; the square of each element is added to its column.
        column: Place of the first element in `columns`.
        square_scale: Squares are those of w * square_scale, if w is float64; otherwise of w.
        sum_scale: The sum is that of |w| * sum_scale, if w is float64; otherwise of |w|.

    Returns:
        Sum of |w|, sum of the squares, largest |w| (never scaled).
    """
    if not is_row(row):
        return None
    result = types.UniTuple(types.float64, 3)
    signature = result(
        row, types.intp, types.intp, columns, types.intp, types.float64, types.float64
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_array, start, n_parts, column_array, column, square_scale, sum_scale = arguments
        address = address_of(context, builder, signature.args[0], row_array, start)
        totals = address_of(context, builder, signature.args[3], column_array, column)
        element = signature.args[0].dtype
        is_double = element is types.uint64
        width, mask = (64, _DOUBLE_MAGNITUDE) if is_double else (32, _FLOAT_MAGNITUDE)
        square_scales = _splat_value(builder, square_scale)
        sum_scales = _splat_value(builder, sum_scale)
        zeros = _splat(ir.Constant(_DOUBLE, 0.0))
        sums = cgutils.alloca_once_value(builder, zeros)
        squares = cgutils.alloca_once_value(builder, zeros)
        largest = cgutils.alloca_once_value(builder, _integers(width, 0))
        with cgutils.for_range(builder, n_parts) as loop:
            bits, floats = _load_bits(builder, element, address, loop.index)
            bits = builder.and_(bits, _integers(width, mask))
            values = _to_doubles(builder, bits, floats)
            term = builder.fmul(values, sum_scales) if is_double else values
            builder.store(builder.fadd(builder.load(sums), term), sums)
            scaled = builder.fmul(values, square_scales) if is_double else values
            square = builder.fmul(scaled, scaled)
            builder.store(builder.fadd(builder.load(squares), square), squares)
            known = builder.load(largest)
            is_larger = builder.icmp_unsigned(">", bits, known)
            builder.store(builder.select(is_larger, bits, known), largest)
            offset = builder.mul(loop.index, ir.Constant(loop.index.type, 8 * N_LANES))
            total = _load(builder, totals, _DOUBLES, offset, 8)
            place = builder.bitcast(builder.gep(totals, [offset]), _DOUBLES.as_pointer())
            builder.store(builder.fadd(total, square), place, align=8)

        def larger(low: Any, high: Any) -> Any:
            return builder.select(builder.icmp_unsigned(">", low, high), low, high)

        maximum = _fold(builder, builder.load(largest), larger)
        maximum = builder.bitcast(maximum, _DOUBLE if is_double else _FLOAT)
        parts = [
            _fold(builder, builder.load(sums), builder.fadd),
            _fold(builder, builder.load(squares), builder.fadd),
            maximum if is_double else builder.fpext(maximum, _DOUBLE),
        ]
        return context.make_tuple(builder, signature.return_type, parts)

    return signature, generate


@vector_code
def add_centred_powers(
    _context: Any, row: Any, start: Any, n_parts: Any, scale: Any, high: Any, low: Any
) -> Any:  # pragma: no cover
    """Add powers of w * scale - (high + low) over 16 * n_parts elements of a row.

    Args:
        row: (C,) bits, contiguous.
        start: First element.
        n_parts: How many times sixteen elements.
        scale: Power of two.
        high: The centre, rounded.
        low: What the rounding left.

    Returns:
        Sum of the squares, sum of the fourth powers.
    """
    if not is_row(row):
        return None
    result = types.UniTuple(types.float64, 2)
    signature = result(row, types.intp, types.intp, types.float64, types.float64, types.float64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_array, start, n_parts, *numbers = arguments
        address = address_of(context, builder, signature.args[0], row_array, start)
        element = signature.args[0].dtype
        scales, highs, lows = (_splat_value(builder, number) for number in numbers)
        zeros = _splat(ir.Constant(_DOUBLE, 0.0))
        squares = cgutils.alloca_once_value(builder, zeros)
        fourths = cgutils.alloca_once_value(builder, zeros)
        with cgutils.for_range(builder, n_parts) as loop:
            bits, floats = _load_bits(builder, element, address, loop.index)
            values = builder.fmul(_to_doubles(builder, bits, floats), scales)
            centred = builder.fsub(builder.fsub(values, highs), lows)
            square = builder.fmul(centred, centred)
            fourth = builder.fmul(square, square)
            builder.store(builder.fadd(builder.load(squares), square), squares)
            builder.store(builder.fadd(builder.load(fourths), fourth), fourths)
        parts = [_fold(builder, builder.load(total), builder.fadd) for total in (squares, fourths)]
        return context.make_tuple(builder, signature.return_type, parts)

    return signature, generate
