"""Does the installed MLX quantise as the native kernels do, bit for bit?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.raw_array import view_raw
from moe_weights.quantize.check_matrices import check_matrices
from moe_weights.quantize.error import ErrorSums
from moe_weights.quantize.native_backend import NativeBackend
from moe_weights.quantize.round_trip import QuantBackend, RoundTrip, SchemeSpec

_DTYPE_CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCheck:
    """What came of one scheme in one dtype.

    Attributes:
        scheme: Its name.
        dtype: Name of the dtype that was quantised.
        difference: What differs first; "" when nothing does.
    """

    scheme: str
    dtype: str
    difference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What came of all of them.

    Attributes:
        pairs: One per scheme and dtype.
        seconds: How long it took.
    """

    pairs: tuple[PairCheck, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return {"pairs": [asdict(pair) for pair in self.pairs], "seconds": self.seconds}


def check_native(
    mlx_backend: QuantBackend, schemes: Sequence[SchemeSpec], dtypes: Sequence[str]
) -> SelfCheck:
    """Compare native kernels with MLX on matrices that are hard to follow on.

    Args:
        mlx_backend: The installed MLX on the device of the run.
        schemes: Those in use.
        dtypes: Names of the dtypes in use: "bfloat16", "float16", "float32".
    """
    start = time.perf_counter()
    native = NativeBackend()
    pairs = tuple(
        PairCheck(
            scheme=scheme.name,
            dtype=dtype,
            difference=_first_difference(mlx_backend, native, scheme, dtype),
        )
        for scheme in schemes
        for dtype in dtypes
    )
    return SelfCheck(pairs=pairs, seconds=time.perf_counter() - start)


def _first_difference(
    mlx_backend: QuantBackend, native: NativeBackend, scheme: SchemeSpec, dtype: str
) -> str:
    stored = view_raw(b"", _DTYPE_CODES[dtype]).dtype
    for name, matrix in check_matrices(scheme, stored):
        theirs, ours = _try(mlx_backend, matrix, scheme), _try(native, matrix, scheme)
        if isinstance(theirs, str) or isinstance(ours, str):
            if theirs != ours:
                return f"{name}: MLX {_outcome(theirs)}, native {_outcome(ours)}"
            return ""  # refused alike, whatever the matrix
        difference = describe_difference(theirs, ours)
        difference = difference or _difference_of_sums(matrix, theirs, native, scheme)
        if difference:
            return f"{name}: {difference}"
    return ""


def _difference_of_sums(
    matrix: NDArray[Any], theirs: RoundTrip, native: NativeBackend, scheme: SchemeSpec
) -> str:
    """Compare the sums of errors as runs make them, without keeping what came back."""
    expected, found = ErrorSums(scheme, matrix.dtype), ErrorSums(scheme, matrix.dtype)
    expected.add_restored(matrix, theirs)
    native.add_errors(matrix, scheme, found)
    if np.array_equal(expected.places, found.places, equal_nan=True):
        return ""
    return "the sums of errors differ"


def _try(backend: QuantBackend, matrix: NDArray[Any], scheme: SchemeSpec) -> RoundTrip | str:
    try:
        return backend.round_trip(matrix, scheme)
    except Exception as error:  # whatever MLX raises is its answer
        return f"{type(error).__name__}: {error}"


def _outcome(found: RoundTrip | str) -> str:
    return f"fails with {found}" if isinstance(found, str) else "succeeds"


def describe_difference(theirs: RoundTrip, ours: RoundTrip) -> str:
    """Say where two round trips of a matrix differ first; "" where every bit is the same.

    A NaN equals any other NaN: its payload says nothing.

    Args:
        theirs: What MLX gives.
        ours: What the native kernels give.
    """
    for name in ("codes", "scale_codes", "scales", "biases", "values"):
        their, our = getattr(theirs, name), getattr(ours, name)
        if their is None or our is None:
            if their is not our:
                return f"{name} are given by one of them alone"
            continue
        if their.shape != our.shape:
            return f"{name} have shape {their.shape} in MLX, {our.shape} in native"
        differs = np.argwhere(_as_comparable(their) != _as_comparable(our))
        if len(differs):
            place = tuple(differs[0].tolist())
            return (
                f"{name}[{place[0]}, {place[1]}] is {their[place]} in MLX, {our[place]} in native"
            )
    return ""


def _as_comparable(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint8:
        return array
    floats = np.where(np.isnan(array), np.nan, array).astype(np.float64)
    return floats.view(np.uint64)
