"""What is put into a trace while a run goes on?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.array_summary import summarise_array
from moe_weights.tracing.captures import Array
from moe_weights.tracing.stage_profile import StageProfile
from moe_weights.tracing.trace import TraceArtifact, TraceSpan
from moe_weights.tracing.vocabulary import DeviceRef, TraceArtifactKind


class TraceDraft:
    """Spans, artifacts and arrays of a trace that is not finished."""

    def __init__(self, device: DeviceRef) -> None:
        """Start empty.

        Args:
            device: Where the spans run.
        """
        self.device = device
        self.arrays: dict[str, Array] = {}
        self.spans: list[TraceSpan] = []
        self.artifacts: list[TraceArtifact] = []
        self.observe_s = 0.0

    def next_span_id(self, name: str) -> str:
        """Return the id that the next span will have when it is of this name."""
        return f"span.{len(self.spans)}.{name.replace(' ', '_')}"

    def add_array(
        self,
        artifact_id: str,
        kind: TraceArtifactKind,
        array: Array,
        span_id: str,
        metadata: Mapping[str, JsonValue],
    ) -> str:
        """Add an array and the artifact that describes it; return the artifact's id."""
        started = time.perf_counter()
        summary = summarise_array(array).to_dict()
        self.observe_s += time.perf_counter() - started
        self.arrays[artifact_id] = array
        self.artifacts.append(
            TraceArtifact(
                artifact_id=artifact_id,
                kind=kind,
                producer_span_id=span_id,
                shape=array.shape,
                metadata={**metadata, "dtype": str(array.dtype), "summary": summary},
            )
        )
        return artifact_id

    def add_span(
        self,
        name: str,
        duration_s: float | None,
        *,
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        metadata: Mapping[str, JsonValue] | None = None,
        **counts: int | None,
    ) -> None:
        """Add a span; without a duration it has no profile.

        Args:
            name: Stage.
            duration_s: Wall time, seconds.
            inputs: Ids of the artifacts that it consumed.
            outputs: Ids of those that it produced.
            metadata: Notes.
            counts: Whole-number fields of `StageProfile`; None leaves one out.
        """
        profile = None
        if duration_s is not None:
            known = {key: count for key, count in counts.items() if count is not None}
            profile = StageProfile(
                name=name,
                duration_s=duration_s,
                device=self.device,
                **known,  # type: ignore[arg-type] # names of whole-number fields
            )
        self.spans.append(
            TraceSpan(
                span_id=self.next_span_id(name),
                name=name,
                profile=profile,
                input_artifact_ids=tuple(inputs),
                output_artifact_ids=tuple(outputs),
                metadata=metadata or {},
            )
        )
