"""Which evidence does a trace give to a report, and which is missing?

Texts here are stable: shapes and counters, never tensors, never wall-clock durations.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.tracing.capability import RuntimeCapability
from moe_weights.tracing.claims import (
    access_level_of_trace,
    can_claim,
    cannot_claim,
    strongest_claim,
)
from moe_weights.tracing.trace import Trace
from moe_weights.tracing.vocabulary import SupportLevel, TraceArtifactKind

# (suffix of the reference, kind, what a report calls it)
_SOURCES = (
    ("tokens", TraceArtifactKind.TOKENS, "tokens"),
    ("logits", TraceArtifactKind.LOGITS, "logits"),
    ("logprobs", TraceArtifactKind.LOGPROBS, "logprobs"),
    ("activations", TraceArtifactKind.ACTIVATION, "activations"),
    ("weights", TraceArtifactKind.WEIGHT_SNAPSHOT, "weights"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceRef:
    """A piece of evidence that a report can cite.

    Attributes:
        ref_id: `<prefix>.<what>`.
        kind: `run_report` for declarations, `trace` for the trace, else the artifact kind.
        description: One stable sentence.
    """

    ref_id: str
    kind: str
    description: str

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {"id": self.ref_id, "kind": self.kind, "description": self.description}


def evidence_refs(
    trace: Trace, capability: RuntimeCapability, prefix: str = "runtime"
) -> tuple[EvidenceRef, ...]:
    """Return what a report may cite, in a fixed order."""
    refs = [
        EvidenceRef(
            ref_id=f"{prefix}.capabilities",
            kind="run_report",
            description=f"Declared capabilities of the {capability.name} backend.",
        ),
        EvidenceRef(
            ref_id=f"{prefix}.trace",
            kind="trace",
            description=(
                f"Trace of {len(trace.spans)} spans and {len(trace.artifacts)} artifacts."
            ),
        ),
    ]
    for suffix, kind, name in _SOURCES:
        found = trace.artifacts_by_kind(kind)
        if found:
            shapes = [list(artifact.shape) for artifact in found if artifact.shape is not None]
            refs.append(
                EvidenceRef(
                    ref_id=f"{prefix}.{suffix}",
                    kind=str(kind),
                    description=f"Runtime {name} with shapes {shapes}.",
                )
            )
    return tuple(refs)


def missing_evidence(trace: Trace, capability: RuntimeCapability) -> tuple[str, ...]:
    """Return what the trace does not show, one sentence each; partial support is told too."""
    texts = []
    for _suffix, kind, name in _SOURCES:
        level = capability.support_level_for_artifact(kind)
        if not trace.artifacts_by_kind(kind):
            reason = "" if level.supports else f" ({capability.name} declares them unsupported)"
            texts.append(f"Runtime {name} not collected{reason}")
        if level is SupportLevel.PARTIAL:
            texts.append(f"Runtime {name} are only partially supported by {capability.name}")
    return tuple(texts)


def claim_summary(
    trace: Trace, capability: RuntimeCapability, prefix: str = "runtime"
) -> dict[str, JsonValue]:
    """Return what may be claimed from one trace, with its evidence and its gaps.

    Stable text: equal runs give equal summaries, whatever the clock said.
    """
    level = access_level_of_trace(trace)
    return {
        "access_level": str(level),
        "strongest_claim": str(strongest_claim(level)),
        "can_claim": list(can_claim(level)),
        "cannot_claim": list(cannot_claim(level)),
        "evidence": [ref.to_dict() for ref in evidence_refs(trace, capability, prefix)],
        "missing": list(missing_evidence(trace, capability)),
    }


def report_summary(trace: Trace) -> dict[str, JsonValue]:
    """Return shapes and counters of a trace for a report.

    Neither tensors nor durations: those are in the side file and in `profile_summary`.
    """
    profiles = [span.profile for span in trace.spans if span.profile is not None]
    return {
        "trace_id": trace.trace_id,
        "device": str(trace.device.kind),
        "spans": [span.name for span in trace.spans],
        "artifacts": [
            {
                "id": artifact.artifact_id,
                "kind": str(artifact.kind),
                "shape": None if artifact.shape is None else list(artifact.shape),
            }
            for artifact in trace.artifacts
        ],
        "host_device_copies": sum(profile.host_device_copies for profile in profiles),
        "sync_points": sum(profile.sync_points for profile in profiles),
    }
