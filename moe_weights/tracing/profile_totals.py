"""What did a whole run cost, summed over its spans?

Wall-clock durations appear here and nowhere else in what is summarised for reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSummary:
    """Costs of one trace.

    Attributes:
        trace_id: The trace.
        n_profiled_spans: Spans with a profile.
        total_duration_s: Sum over them, seconds; None without any.
        token_count: Largest of a span.
        batch_size: Largest of a span.
        queue_depth: Largest of a span.
        peak_memory_bytes: Largest of a span, bytes.
        input_bytes: Sum; None when no span counted them.
        output_bytes: Sum; None when no span counted them.
        host_device_copies: Sum.
        sync_points: Sum.
        tokens_per_second: token_count / total_duration_s; None when either is missing or zero, or
            the quotient is no finite number.
    """

    trace_id: str
    n_profiled_spans: int
    total_duration_s: float | None
    token_count: int | None
    batch_size: int | None
    queue_depth: int | None
    peak_memory_bytes: int | None
    input_bytes: int | None
    output_bytes: int | None
    host_device_copies: int
    sync_points: int
    tokens_per_second: float | None

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


def profile_summary(trace: Trace) -> ProfileSummary:
    """Sum the profiles of a trace.

    One run is no evidence about performance; see `profile_sweep`.
    """
    profiles = [span.profile for span in trace.spans if span.profile is not None]
    total = sum(profile.duration_s for profile in profiles) if profiles else None
    tokens = _largest(profile.token_count for profile in profiles)
    return ProfileSummary(
        trace_id=trace.trace_id,
        n_profiled_spans=len(profiles),
        total_duration_s=total,
        token_count=tokens,
        batch_size=_largest(profile.batch_size for profile in profiles),
        queue_depth=_largest(profile.queue_depth for profile in profiles),
        peak_memory_bytes=_largest(profile.memory_bytes for profile in profiles),
        input_bytes=_sum(profile.input_bytes for profile in profiles),
        output_bytes=_sum(profile.output_bytes for profile in profiles),
        host_device_copies=sum(profile.host_device_copies for profile in profiles),
        sync_points=sum(profile.sync_points for profile in profiles),
        tokens_per_second=_rate(tokens, total),
    )


def _rate(tokens: int | None, total_s: float | None) -> float | None:
    if not tokens or not total_s:
        return None
    rate = tokens / total_s
    return rate if math.isfinite(rate) else None


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
