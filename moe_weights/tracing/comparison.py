"""Do two captures of the same place agree?

1. A field that only one side has is no comparison; `missing_fields` lists it.
2. Other shapes diverge, and nothing is broadcast. A value that is not finite, on either side, too.
3. Otherwise the largest absolute difference (in float64) decides, when it is above the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing.array_summary import float64_blocks
from moe_weights.tracing.captures import CAPTURE_FIELDS, Array, HookCapture
from moe_weights.tracing.field_checks import require_number
from moe_weights.tracing.vocabulary import HookPoint

DEFAULT_THRESHOLD = 1e-5
# Relative thresholds for runs whose kernels add up in another order: eight units in the last place
# of the dtype that the model computes in. Unit roundoffs: IEEE 754 binary32 and binary16, and
# bfloat16 with its 8 significant bits.
DTYPE_THRESHOLDS = {"float32": 8 * 2.0**-23, "float16": 8 * 2.0**-10, "bfloat16": 8 * 2.0**-7}

Reason = Literal["shape_mismatch", "non_finite", "overflow", "above_threshold"]


@dataclass(frozen=True, slots=True)
class StageComparison:
    """One field of one place, compared.

    Attributes:
        hook_point: Stage.
        layer: Decoder layer.
        step: Decode step; None outside `decode_step`.
        max_abs_diff: Largest absolute difference; infinite when there is no number to give.
        mean_abs_diff: Mean absolute difference; likewise.
        cosine_similarity: Of the flattened arrays; 0 when either has no length.
        field_name: Which array.
        diverged: Whether the threshold was exceeded, or the arrays cannot agree.
        threshold: Threshold that decided.
        max_rel_diff: max_abs_diff over the baseline's largest magnitude; 0 when both are 0.
        measure: Whether the threshold was held against the absolute or the relative difference.
        reason: Why it diverged; None when it did not.
        zero_norm: Either array is zero everywhere, so its cosine says nothing.
        n_non_finite: NaN and infinite values on both sides.
    """

    hook_point: HookPoint
    layer: int
    step: int | None = None
    max_abs_diff: float = 0.0
    mean_abs_diff: float = 0.0
    cosine_similarity: float = 1.0
    field_name: str = "hidden_states"
    diverged: bool = False
    threshold: float = DEFAULT_THRESHOLD
    max_rel_diff: float = 0.0
    measure: Literal["absolute", "relative"] = "absolute"
    reason: Reason | None = None
    zero_norm: bool = False
    n_non_finite: int = 0

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form; a number that is not finite is null, `reason` says why."""
        document: dict[str, JsonValue] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                value = None
            document[name] = str(value) if isinstance(value, HookPoint) else value
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingField:
    """A field that only one side captured.

    Attributes:
        hook_point: Stage.
        layer: Decoder layer.
        step: Decode step; None outside `decode_step`.
        field_name: Which array.
        missing_in: The side that lacks it.
    """

    hook_point: HookPoint
    layer: int
    step: int | None
    field_name: str
    missing_in: Literal["baseline", "target"]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that nothing, or everything, would exceed.

    Raises:
        UsageError: it is negative or not finite.
    """
    try:
        require_number(threshold, "threshold", minimum=0)
    except InvalidDataError as error:
        raise UsageError(str(error)) from error


def compare_captures(
    baseline: HookCapture,
    target: HookCapture,
    threshold: float = DEFAULT_THRESHOLD,
    *,
    relative: bool = False,
) -> list[StageComparison]:
    """Compare the fields that both captures have, in the order of `CAPTURE_FIELDS`.

    Args:
        baseline: What is trusted.
        target: What is asked about, of the same stage, layer and step.
        threshold: Strict upper bound of agreement; dimensionless when relative, else in units of
            the field.
        relative: Hold the threshold against `max_rel_diff`.

    Raises:
        InvalidDataError: the captures are of different places, or hold no real numbers.
        UsageError: the threshold is negative or not finite.
    """
    check_threshold(threshold)
    if _place(baseline) != _place(target):
        raise InvalidDataError(
            f"captures of different places: {_place(baseline)} and {_place(target)}"
        )
    left, right = baseline.arrays, target.arrays
    return [
        _compare(name, left[name], right[name], baseline, threshold, relative=relative)
        for name in CAPTURE_FIELDS
        if name in left and name in right
    ]


def missing_fields(baseline: HookCapture | None, target: HookCapture | None) -> list[MissingField]:
    """Return the fields that only one of two captures has; None is a capture without any."""
    left = {} if baseline is None else baseline.arrays
    right = {} if target is None else target.arrays
    place = baseline or target
    return [
        MissingField(
            hook_point=place.hook_point,
            layer=place.layer,
            step=place.step,
            field_name=name,
            missing_in="target" if name in left else "baseline",
        )
        for name in CAPTURE_FIELDS
        if place is not None and (name in left) != (name in right)
    ]


def cosine_similarity(left: Array, right: Array) -> float:
    """Return the cosine of the angle between two flattened arrays of one size.

    Returns:
        Between -1 and 1; 0.0 when either array is zero everywhere or has no elements.
    """
    return _cosine(left, right, _largest(left), _largest(right))


def _compare(
    name: str,
    left: Array,
    right: Array,
    place: HookCapture,
    threshold: float,
    *,
    relative: bool,
) -> StageComparison:
    measure: Literal["absolute", "relative"] = "relative" if relative else "absolute"

    def to_comparison(
        largest: float, mean: float, cosine: float, rel: float, reason: Reason | None, **flags: int
    ) -> StageComparison:
        return StageComparison(
            place.hook_point,
            place.layer,
            place.step,
            largest,
            mean,
            cosine,
            name,
            reason is not None,
            threshold,
            rel,
            measure,
            reason,
            bool(flags.get("zero_norm", 0)),
            flags.get("n_non_finite", 0),
        )

    if left.shape != right.shape:
        return to_comparison(math.inf, math.inf, 0.0, math.inf, "shape_mismatch")
    n_non_finite = _n_non_finite(left) + _n_non_finite(right)
    if n_non_finite:
        return to_comparison(
            math.inf, math.inf, 0.0, math.inf, "non_finite", n_non_finite=n_non_finite
        )
    if left.size == 0:
        return to_comparison(0.0, 0.0, 1.0, 0.0, None)
    largest, mean = _differences(left, right)
    left_scale, right_scale = _largest(left), _largest(right)
    cosine = _cosine(left, right, left_scale, right_scale)
    rel = largest / left_scale if left_scale else (math.inf if largest else 0.0)
    reason: Reason | None = None
    if not math.isfinite(largest):
        reason = "overflow"
    elif (rel if relative else largest) > threshold:
        reason = "above_threshold"
    zero_norm = left_scale == 0 or right_scale == 0
    return to_comparison(largest, mean, cosine, rel, reason, zero_norm=zero_norm)


def _differences(left: Array, right: Array) -> tuple[float, float]:
    largest, total = 0.0, 0.0
    with np.errstate(over="ignore"):
        for left_block, right_block in zip(
            float64_blocks(left), float64_blocks(right), strict=True
        ):
            differences = np.abs(left_block - right_block)
            largest = max(largest, float(differences.max()))
            total += float(differences.sum())
    return largest, total / left.size


def _cosine(left: Array, right: Array, left_scale: float, right_scale: float) -> float:
    if left_scale == 0 or right_scale == 0:
        return 0.0
    dot, left_square, right_square = 0.0, 0.0, 0.0
    for left_block, right_block in zip(float64_blocks(left), float64_blocks(right), strict=True):
        # Scaled first: squares of very large or very small values leave the float64 range.
        scaled_left, scaled_right = left_block / left_scale, right_block / right_scale
        dot += float(np.dot(scaled_left, scaled_right))
        left_square += float(np.dot(scaled_left, scaled_left))
        right_square += float(np.dot(scaled_right, scaled_right))
    cosine = dot / (math.sqrt(left_square) * math.sqrt(right_square))
    return min(1.0, max(-1.0, cosine))


def _largest(array: Array) -> float:
    return max((float(np.abs(block).max()) for block in float64_blocks(array)), default=0.0)


def _n_non_finite(array: Array) -> int:
    return sum(
        block.size - int(np.count_nonzero(np.isfinite(block))) for block in float64_blocks(array)
    )


def _place(capture: HookCapture) -> tuple[str, int, int | None]:
    return (str(capture.hook_point), capture.layer, capture.step)


def _plain(value: object) -> JsonValue:
    return value if value is None or isinstance(value, int) else str(value)
