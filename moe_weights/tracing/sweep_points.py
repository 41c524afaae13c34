"""How do costs change along one controlled axis?

Comparable traces are grouped by the axis value. Nothing is fitted: a sweep has the measured points
and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.field_checks import require_distinct, require_text
from moe_weights.tracing.profile_totals import ProfileSummary, profile_summary
from moe_weights.tracing.trace import Trace

SWEEP_AXES = ("token_count", "batch_size", "queue_depth")
# Fewer points cannot tell a curve from noise; more than this would still be the reader's decision.
MIN_AXIS_VALUES_FOR_A_FIT = 4
MIN_SAMPLES_FOR_A_FIT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispersion:
    """Samples of one number.

    Attributes:
        samples: In the order of the traces.
        mean: Arithmetic mean.
        minimum: Smallest.
        maximum: Largest.
        sd: Standard deviation with n - 1; None for one sample.
    """

    samples: tuple[float, ...]
    mean: float
    minimum: float
    maximum: float
    sd: float | None

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "samples": list(self.samples),
            "mean": self.mean,
            "min": self.minimum,
            "max": self.maximum,
            "sd": self.sd,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """The traces at one value of the axis.

    Attributes:
        axis_value: Value of the axis.
        trace_ids: Ids, in the order given.
        duration_s: Total durations, seconds; None when no trace was profiled.
        tokens_per_second: Rates; None when no trace has one.
        max_memory_bytes: Largest peak, bytes.
        host_device_copies: Sum over the traces.
        sync_points: Sum over the traces.
    """

    axis_value: int
    trace_ids: tuple[str, ...]
    duration_s: Dispersion | None
    tokens_per_second: Dispersion | None
    max_memory_bytes: int | None
    host_device_copies: int
    sync_points: int

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "axis_value": self.axis_value,
            "trace_ids": list(self.trace_ids),
            "sample_count": len(self.trace_ids),
            "duration_s": None if self.duration_s is None else self.duration_s.to_dict(),
            "tokens_per_second": (
                None if self.tokens_per_second is None else self.tokens_per_second.to_dict()
            ),
            "max_memory_bytes": self.max_memory_bytes,
            "host_device_copies": self.host_device_copies,
            "sync_points": self.sync_points,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSweep:
    """Measured points along one axis; no parameters of any law.

    Attributes:
        sweep_id: Name of the sweep.
        axis: What was varied.
        artifact_kinds: Kinds of artifacts that the traces hold.
        points: Sorted by axis value.
        metadata: Says that no fit was computed, and why.
    """

    sweep_id: str
    axis: str
    artifact_kinds: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    metadata: dict[str, JsonValue]

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "sweep_id": self.sweep_id,
            "axis": self.axis,
            "artifact_kinds": list(self.artifact_kinds),
            "points": [point.to_dict() for point in self.points],
            "metadata": dict(self.metadata),
        }


def profile_sweep(
    traces: Sequence[Trace],
    sweep_id: str = "profile_sweep",
    axis: str = "token_count",
    *,
    require_stable_artifacts: bool = True,
) -> ProfileSweep:
    """Group comparable traces by one axis.

    Args:
        traces: At least one; ids differ.
        sweep_id: Name of the sweep.
        axis: token_count, batch_size or queue_depth.
        require_stable_artifacts: Refuse traces that hold different kinds of artifacts, because
            they did different work.

    Raises:
        InvalidDataError: there are no traces, the axis is unknown, a trace lacks a value on it,
            ids repeat, or artifacts differ or are missing.
    """
    require_text(sweep_id, "sweep_id")
    if axis not in SWEEP_AXES:
        raise InvalidDataError(f"axis: {axis!r} is unknown; use one of {', '.join(SWEEP_AXES)}")
    if not traces:
        raise InvalidDataError("traces: there are none; a sweep needs at least one trace")
    require_distinct((trace.trace_id for trace in traces), "traces")
    kinds = _artifact_kinds(traces, require_stable_artifacts=require_stable_artifacts)
    groups: dict[int, list[ProfileSummary]] = {}
    for trace in traces:
        summary = profile_summary(trace)
        value: int | None = getattr(summary, axis)
        if value is None:
            raise InvalidDataError(
                f'trace "{trace.trace_id}": no span has a {axis}; the sweep\'s axis needs one'
            )
        groups.setdefault(value, []).append(summary)
    points = tuple(_to_point(value, groups[value]) for value in sorted(groups))
    return ProfileSweep(
        sweep_id=sweep_id,
        axis=axis,
        artifact_kinds=kinds,
        points=points,
        metadata={"fit": "not_computed", "fit_reason": _fit_reason(points)},
    )


def _artifact_kinds(traces: Sequence[Trace], *, require_stable_artifacts: bool) -> tuple[str, ...]:
    first = traces[0]
    kinds = {str(kind) for trace in traces for kind in trace.artifact_kinds}
    if not kinds:
        raise InvalidDataError("traces: none holds an artifact, so nothing shows that they compare")
    if require_stable_artifacts:
        expected = [str(kind) for kind in first.artifact_kinds]
        for trace in traces:
            found = [str(kind) for kind in trace.artifact_kinds]
            if found != expected:
                raise InvalidDataError(
                    f'trace "{trace.trace_id}": holds {found}, but "{first.trace_id}" holds '
                    f"{expected}; ask for the same artifacts or pass "
                    "require_stable_artifacts=False"
                )
    return tuple(sorted(kinds))


def _to_point(value: int, summaries: Sequence[ProfileSummary]) -> SweepPoint:
    peaks = [
        summary.peak_memory_bytes for summary in summaries if summary.peak_memory_bytes is not None
    ]
    return SweepPoint(
        axis_value=value,
        trace_ids=tuple(summary.trace_id for summary in summaries),
        duration_s=_dispersion([summary.total_duration_s for summary in summaries]),
        tokens_per_second=_dispersion([summary.tokens_per_second for summary in summaries]),
        max_memory_bytes=max(peaks, default=None),
        host_device_copies=sum(summary.host_device_copies for summary in summaries),
        sync_points=sum(summary.sync_points for summary in summaries),
    )


def _dispersion(values: Sequence[float | None]) -> Dispersion | None:
    samples = tuple(value for value in values if value is not None)
    if not samples:
        return None
    n_samples = len(samples)
    mean = math.fsum(samples) / n_samples
    squares = math.fsum((sample - mean) ** 2 for sample in samples)
    return Dispersion(
        samples=samples,
        mean=mean,
        minimum=min(samples),
        maximum=max(samples),
        sd=math.sqrt(squares / (n_samples - 1)) if n_samples > 1 else None,
    )


def _fit_reason(points: Sequence[SweepPoint]) -> str:
    fewest = min(len(point.trace_ids) for point in points)
    return (
        f"{len(points)} axis values with at least {fewest} samples each; this tool reports "
        f"measured points only, and fewer than {MIN_AXIS_VALUES_FOR_A_FIT} values with "
        f"{MIN_SAMPLES_FOR_A_FIT} samples each support no fit at all"
    )
