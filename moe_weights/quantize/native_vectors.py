"""What can kernels do with sixteen numbers at once?

The functions are called inside kernels, without the builder that LLVM code is written with:
`choose(mask, a, b)`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from moe_weights.quantize.native_lanes import (
    BITS,
    DOUBLES,
    FLOATS,
    HALVES,
    LANES,
    MASK,
    Vector,
    lane_operation,
    lane_operations,
)

BYTES = types.Array(types.uint8, 1, "C")
_FLOAT_ARRAY = types.Array(types.float32, 1, "C")
_INDEX = types.intp


def place_of(builder: Any, data: Any, index: Any, width: int, kind: ir.Type) -> Any:
    """Return the place of element `index`, `width` bytes each, as a pointer to `kind`."""
    raw = builder.bitcast(data, ir.PointerType(ir.IntType(8)))
    offset = builder.mul(index, ir.Constant(index.type, width))
    place = builder.gep(raw, [offset], source_etype=ir.IntType(8))
    return builder.bitcast(place, ir.PointerType(kind))


@lane_operation(HALVES, BYTES, _INDEX)
def load_halves(builder: Any, data: Any, index: Any) -> Any:
    """Return sixteen 16-bit elements from the one numbered `index` on."""
    kind = HALVES.in_llvm
    return builder.load(place_of(builder, data, index, 2, kind), align=1, typ=kind)


@lane_operation(types.none, BYTES, _INDEX, HALVES)
def store_halves(builder: Any, data: Any, index: Any, lanes: Any) -> Any:
    """Write sixteen 16-bit elements."""
    builder.store(lanes, place_of(builder, data, index, 2, HALVES.in_llvm), align=1)
    return ir.Constant(ir.IntType(8).as_pointer(), None)


@lane_operation(BITS, BYTES, _INDEX)
def load_words(builder: Any, data: Any, index: Any) -> Any:
    """Return sixteen 32-bit elements from the one numbered `index` on."""
    kind = BITS.in_llvm
    return builder.load(place_of(builder, data, index, 4, kind), align=1, typ=kind)


@lane_operation(types.none, BYTES, _INDEX, BITS)
def store_words(builder: Any, data: Any, index: Any, lanes: Any) -> Any:
    """Write sixteen 32-bit elements."""
    builder.store(lanes, place_of(builder, data, index, 4, BITS.in_llvm), align=1)
    return ir.Constant(ir.IntType(8).as_pointer(), None)


@lane_operation(FLOATS, _FLOAT_ARRAY, _INDEX)
def load_floats(builder: Any, data: Any, index: Any) -> Any:
    """Return sixteen elements of a float32 array."""
    kind = FLOATS.in_llvm
    return builder.load(place_of(builder, data, index, 4, kind), align=4, typ=kind)


@lane_operation(types.none, _FLOAT_ARRAY, _INDEX, FLOATS)
def store_floats(builder: Any, data: Any, index: Any, lanes: Any) -> Any:
    """Write sixteen elements of a float32 array."""
    builder.store(lanes, place_of(builder, data, index, 4, FLOATS.in_llvm), align=4)
    return ir.Constant(ir.IntType(8).as_pointer(), None)


@lane_operation(types.none, BYTES, _INDEX, BITS)
def store_bytes(builder: Any, data: Any, index: Any, lanes: Any) -> Any:
    """Write the low byte of every lane."""
    kind = ir.VectorType(ir.IntType(8), LANES)
    builder.store(builder.trunc(lanes, kind), place_of(builder, data, index, 1, kind), align=1)
    return ir.Constant(ir.IntType(8).as_pointer(), None)


def _splat(builder: Any, scalar: Any, vector: Vector) -> Any:
    first = builder.insert_element(
        ir.Constant(vector.in_llvm, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector.in_llvm, ir.Undefined), zeros)


@lane_operation(FLOATS, types.float32)
def floats(builder: Any, scalar: Any) -> Any:
    """Return one float32 in every lane."""
    return _splat(builder, scalar, FLOATS)


@lane_operation(DOUBLES, types.float64)
def doubles(builder: Any, scalar: Any) -> Any:
    """Return one float64 in every lane."""
    return _splat(builder, scalar, DOUBLES)


@lane_operation(BITS, types.uint32)
def bits(builder: Any, scalar: Any) -> Any:
    """Return one integer in every lane."""
    return _splat(builder, scalar, BITS)


@lane_operation(MASK, types.int64)
def lanes_below(builder: Any, stop: Any) -> Any:
    """Return a mask of the first `stop` lanes; all of them from 16 on."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), LANES), list(range(LANES)))
    first = ir.Constant(numbers.type, ir.Undefined)
    spread = builder.insert_element(first, stop, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.icmp_signed("<", numbers, builder.shuffle_vector(spread, first, zeros))


@lane_operation(BITS, FLOATS)
def bits_of(builder: Any, lanes: Any) -> Any:
    """Return the bit patterns of floats."""
    return builder.bitcast(lanes, BITS.in_llvm)


@lane_operation(FLOATS, BITS)
def floats_of(builder: Any, lanes: Any) -> Any:
    """Return the floats that have these bit patterns."""
    return builder.bitcast(lanes, FLOATS.in_llvm)


@lane_operation(BITS, HALVES)
def widen_halves(builder: Any, lanes: Any) -> Any:
    """Return 16-bit elements as 32-bit ones, filled with zeros."""
    return builder.zext(lanes, BITS.in_llvm)


def _all_but_sign(lanes: Any) -> tuple[ir.Constant, ir.Constant]:
    """Return a mask of the bits below the sign, and the sign's number."""
    sign = lanes.type.element.width - 1
    kind = lanes.type
    return ir.Constant(kind, [(1 << sign) - 1] * LANES), ir.Constant(kind, [sign] * LANES)


@lane_operations((HALVES, HALVES), (BITS, BITS))
def in_order(builder: Any, lanes: Any) -> Any:
    """Return patterns of floats as signed integers in the order of the floats, and back again."""
    below_sign, sign = _all_but_sign(lanes)
    return builder.xor(lanes, builder.and_(builder.ashr(lanes, sign), below_sign))


@lane_operations((HALVES, HALVES), (BITS, BITS))
def pattern_without_sign(builder: Any, lanes: Any) -> Any:
    """Return the patterns of the magnitudes of floats."""
    return builder.and_(lanes, _all_but_sign(lanes)[0])


@lane_operation(BITS, FLOATS)
def to_integers(builder: Any, lanes: Any) -> Any:
    """Return floats that are integers below 2**31 as integers."""
    return builder.fptosi(lanes, BITS.in_llvm)


@lane_operation(DOUBLES, FLOATS)
def widen(builder: Any, lanes: Any) -> Any:
    """Return floats as doubles."""
    return builder.fpext(lanes, DOUBLES.in_llvm)


def _call(name: str, vector: Vector, builder: Any, *lanes: Any) -> Any:
    declared = ir.FunctionType(vector.in_llvm, [vector.in_llvm] * len(lanes))
    function = builder.module.globals.get(name)
    return builder.call(function or ir.Function(builder.module, declared, name), lanes)


@lane_operation(FLOATS, DOUBLES)
def narrow(builder: Any, lanes: Any) -> Any:
    """Return doubles as the nearest floats."""
    return builder.fptrunc(lanes, FLOATS.in_llvm)


@lane_operation(FLOATS, FLOATS)
def nearest(builder: Any, lanes: Any) -> Any:
    """Round to the nearest integer, ties to the even one."""
    return _call("llvm.rint.v16f32", FLOATS, builder, lanes)


@lane_operation(DOUBLES, DOUBLES)
def magnitude(builder: Any, lanes: Any) -> Any:
    """Return the doubles without their signs."""
    return _call("llvm.fabs.v16f64", DOUBLES, builder, lanes)


@lane_operation(DOUBLES, DOUBLES, DOUBLES, DOUBLES)
def add_product(builder: Any, one: Any, other: Any, onto: Any) -> Any:
    """Return one * other + onto, rounded once."""
    return _call("llvm.fma.v16f64", DOUBLES, builder, one, other, onto)


@lane_operations(*((one, MASK, one, one) for one in (FLOATS, DOUBLES, BITS)))
def choose(builder: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Return lanes of `yes` where the mask is set, else of `no`."""
    return builder.select(mask, yes, no)


@lane_operations(*((one, one, one) for one in (FLOATS, DOUBLES)))
def smaller(builder: Any, a: Any, b: Any) -> Any:
    """Return the smaller lanes; where one is NaN, `b`."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


@lane_operations(*((one, one, one) for one in (FLOATS, DOUBLES)))
def larger(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger lanes; where one is NaN, `b`."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@lane_operation(types.int64, MASK)
def count(builder: Any, mask: Any) -> Any:
    """Return how many lanes of the mask are set."""
    packed = builder.bitcast(mask, ir.IntType(LANES))
    return builder.zext(builder.ctpop(packed), ir.IntType(64))


@lane_operation(types.int64, MASK)
def pattern_of(builder: Any, mask: Any) -> Any:
    """Return lane i of the mask as bit i."""
    return builder.zext(builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(64))


@lane_operation(types.int64, types.int64)
def trailing_zeros(builder: Any, pattern: Any) -> Any:
    """Return the number of the lowest set bit, 64 where none is."""
    return builder.cttz(pattern, ir.Constant(ir.IntType(1), 0))
