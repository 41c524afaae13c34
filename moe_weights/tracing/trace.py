"""What happened in a run: spans, the artifacts between them, and nothing heavier than a summary.

A trace never holds tensor data: arrays lie in a side file, see `trace_files`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.field_checks import (
    require_count,
    require_distinct,
    require_metadata,
    require_text,
)
from moe_weights.tracing.stage_profile import StageProfile
from moe_weights.tracing.vocabulary import DeviceRef, TraceArtifactKind, parse_word


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceArtifact:
    """A value that a span produced or consumed, described and not contained.

    Attributes:
        artifact_id: Unique in its trace.
        kind: What it is.
        producer_span_id: Span that made it; None when it was given from outside.
        shape: Axis lengths, elements; None when it has none.
        metadata: Notes, JSON values; at most 256 numbers in a list.

    Raises:
        InvalidDataError: a rule is broken; the message names the field.
    """

    artifact_id: str
    kind: TraceArtifactKind
    producer_span_id: str | None = None
    shape: tuple[int, ...] | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_text(self.artifact_id, "artifact.id")
        object.__setattr__(self, "kind", parse_word(TraceArtifactKind, self.kind, "artifact.kind"))
        if self.producer_span_id is not None:
            require_text(self.producer_span_id, "artifact.producer_span_id")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
            for length in self.shape:
                require_count(length, "artifact.shape")
        require_metadata(self.metadata, "artifact.metadata")

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        document: dict[str, JsonValue] = {
            "id": self.artifact_id,
            "kind": str(self.kind),
            "metadata": dict(self.metadata),
        }
        if self.producer_span_id is not None:
            document["producer_span_id"] = self.producer_span_id
        if self.shape is not None:
            document["shape"] = list(self.shape)
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSpan:
    """One stage of a run.

    Attributes:
        span_id: Unique in its trace, for example `span.2.forward`.
        name: Stage, for example `forward`.
        profile: What it cost; None for a stage whose cost other spans carry.
        input_artifact_ids: What it consumed.
        output_artifact_ids: What it produced.
        metadata: Notes, JSON values.

    Raises:
        InvalidDataError: a rule is broken; the message names the field.
    """

    span_id: str
    name: str
    profile: StageProfile | None = None
    input_artifact_ids: tuple[str, ...] = ()
    output_artifact_ids: tuple[str, ...] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_text(self.span_id, "span.id")
        require_text(self.name, "span.name")
        object.__setattr__(self, "input_artifact_ids", tuple(self.input_artifact_ids))
        object.__setattr__(self, "output_artifact_ids", tuple(self.output_artifact_ids))
        require_distinct(self.input_artifact_ids, f"span {self.span_id}: input_artifacts")
        require_distinct(self.output_artifact_ids, f"span {self.span_id}: output_artifacts")
        require_metadata(self.metadata, "span.metadata")

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        document: dict[str, JsonValue] = {
            "id": self.span_id,
            "name": self.name,
            "input_artifacts": list(self.input_artifact_ids),
            "output_artifacts": list(self.output_artifact_ids),
            "metadata": dict(self.metadata),
        }
        if self.profile is not None:
            document["profile"] = self.profile.to_dict()
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The record of one run.

    Attributes:
        trace_id: Id of the request that it answers.
        device: Where the model ran.
        spans: In the order in which they ran.
        artifacts: In the order in which they were made.
        metadata: Notes, JSON values.

    Raises:
        InvalidDataError: ids repeat, or spans and artifacts refer to what is not there.
    """

    trace_id: str
    device: DeviceRef
    spans: tuple[TraceSpan, ...] = ()
    artifacts: tuple[TraceArtifact, ...] = ()
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_text(self.trace_id, "id")
        object.__setattr__(self, "spans", tuple(self.spans))
        object.__setattr__(self, "artifacts", tuple(self.artifacts))
        require_metadata(self.metadata, "metadata")
        require_distinct((span.span_id for span in self.spans), "spans")
        require_distinct((artifact.artifact_id for artifact in self.artifacts), "artifacts")
        span_ids = {span.span_id for span in self.spans}
        producers = {artifact.artifact_id: artifact.producer_span_id for artifact in self.artifacts}
        for artifact_id, producer in producers.items():
            if producer is not None and producer not in span_ids:
                raise InvalidDataError(
                    f'artifact "{artifact_id}": its producer "{producer}" is no span of the trace'
                )
        for span in self.spans:
            for artifact_id in (*span.input_artifact_ids, *span.output_artifact_ids):
                if artifact_id not in producers:
                    raise InvalidDataError(
                        f'span "{span.span_id}": "{artifact_id}" is no artifact of the trace'
                    )
            for artifact_id in span.output_artifact_ids:
                if producers[artifact_id] not in {None, span.span_id}:
                    raise InvalidDataError(
                        f'span "{span.span_id}": its output "{artifact_id}" names '
                        f'"{producers[artifact_id]}" as its producer'
                    )

    def artifacts_by_kind(self, kind: TraceArtifactKind | str) -> tuple[TraceArtifact, ...]:
        """Return the artifacts of one kind, in order.

        Raises:
            InvalidDataError: there is no such kind.
        """
        wanted = parse_word(TraceArtifactKind, kind, "kind")
        return tuple(artifact for artifact in self.artifacts if artifact.kind is wanted)

    @property
    def artifact_kinds(self) -> tuple[TraceArtifactKind, ...]:
        """Kinds that occur, each once, in the order of `TraceArtifactKind`."""
        present = {artifact.kind for artifact in self.artifacts}
        return tuple(kind for kind in TraceArtifactKind if kind in present)

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "id": self.trace_id,
            "device": dict(self.device.to_dict()),
            "spans": [span.to_dict() for span in self.spans],
            "artifacts": [artifact.to_dict() for artifact in self.artifacts],
            "metadata": dict(self.metadata),
        }
