"""How do kernels work on sixteen numbers at once, with the same bits on every machine?

Numba vectorises loops that it recognises, but never a sum of floats, whose order it must keep. Here
sixteen lanes are a value of their own: `Floats`, `Doubles`, `Bits` (32 wide), `Halves` (16 wide)
and `Mask`. LLVM cuts them to the width of the processor; what each lane computes, and the order in
which lanes are added, is written here and does not depend on it.

Operators work lane by lane on equal types, except `Halves`, which have none; comparisons of `Bits`
are unsigned and shifts are logical. Only comparison with `!=` is true for NaN.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

LANES = 16


class Vector(types.Type):
    """Sixteen lanes of one LLVM type, as Numba knows them."""

    def __init__(self, name: str, lane: ir.Type) -> None:
        """Name the type and say what its lanes are."""
        super().__init__(name)
        self.in_llvm = ir.VectorType(lane, LANES)


FLOATS = Vector("Floats", ir.FloatType())
DOUBLES = Vector("Doubles", ir.DoubleType())
BITS = Vector("Bits", ir.IntType(32))
HALVES = Vector("Halves", ir.IntType(16))
MASK = Vector("Mask", ir.IntType(1))


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.in_llvm)  # type: ignore[no-untyped-call]


def _takes(function: Any, result: types.Type, *parameters: types.Type) -> None:
    """Let kernels call `function` with these types; scalars are converted to them."""

    class Template(AbstractTemplate):
        key = function

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == len(parameters) and all(map(_fits, args, parameters)):
                converted = (
                    given if isinstance(given, types.Array) else wanted
                    for given, wanted in zip(args, parameters, strict=True)
                )
                return signature(result, *converted)  # type: ignore[no-untyped-call]
            return None

    infer_global(function, types.Function(Template))  # type: ignore[no-untyped-call]


def _fits(given: types.Type, wanted: types.Type) -> bool:
    if isinstance(wanted, types.Array):
        return isinstance(given, types.Array) and given.dtype == wanted.dtype and given.ndim == 1
    if isinstance(wanted, types.Integer):
        return isinstance(given, types.Integer)
    return given == wanted


def lane_operations(*cases: tuple[types.Type, ...]) -> Callable[[Any], Any]:
    """Let kernels call a function for several results and parameters, see `lane_operation`."""

    def wrap(emit: Any) -> Any:
        for result, *parameters in cases:
            lane_operation(result, *parameters)(emit)
        return emit

    return wrap


def lane_operation(result: types.Type, *parameters: types.Type) -> Callable[[Any], Any]:
    """Let kernels call a function that writes LLVM code, without its builder.

    Args:
        result: What it returns.
        parameters: What it takes behind the builder; of arrays, kernels pass the data.
    """

    def wrap(emit: Any) -> Any:
        def lowered(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            values = [
                context.make_array(kind)(context, builder, value).data
                if isinstance(kind, types.Array)
                else value
                for kind, value in zip(sig.args, args, strict=True)
            ]
            return emit(builder, *values)

        _takes(emit, result, *parameters)
        classes = [types.Array if isinstance(one, types.Array) else one for one in parameters]
        lower_builtin(emit, *classes)(lowered)  # type: ignore[no-untyped-call]
        return emit

    return wrap


def _binary(name: str) -> Any:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _register_operators() -> None:
    on_floats = {"add": "fadd", "iadd": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}
    on_bits = {"add": "add", "sub": "sub", "lshift": "shl", "rshift": "lshr"}
    on_sets = {"and_": "and_", "or_": "or_"}
    by_vector = {
        FLOATS: on_floats, DOUBLES: on_floats, BITS: on_bits | on_sets, MASK: on_sets,
    }  # fmt: skip
    for vector, names in by_vector.items():
        for name, instruction in names.items():
            _register(getattr(operator, name), vector, vector, _binary(instruction))
    for name, sign in {
        "lt": "<",
        "le": "<=",
        "gt": ">",
        "ge": ">=",
        "eq": "==",
        "ne": "!=",
    }.items():
        function = getattr(operator, name)
        compare = "fcmp_unordered" if sign == "!=" else "fcmp_ordered"
        for vector in (FLOATS, DOUBLES):
            _register(function, MASK, vector, partial(_compare, compare, sign))
        _register(function, MASK, BITS, partial(_compare, "icmp_unsigned", sign))


def _compare(kind: str, sign: str, builder: Any, a: Any, b: Any) -> Any:
    return getattr(builder, kind)(sign, a, b)


def _register(function: Any, result: Vector, vector: Vector, emit: Any) -> None:
    def lowered(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)

    _takes(function, result, vector, vector)
    lower_builtin(function, vector, vector)(lowered)  # type: ignore[no-untyped-call]


_register_operators()
