"""Traces of model runs, and comparisons of two of them.

Importing this package loads none of its modules; a name loads its own when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_weights.tracing.capability import RuntimeCapability, declared_capability
    from moe_weights.tracing.capture_files import load_captures, write_captures
    from moe_weights.tracing.capture_set import CaptureSet, capture_model
    from moe_weights.tracing.captures import HookCapture
    from moe_weights.tracing.claims import (
        AccessLevel,
        ClaimPolicy,
        ClaimStrength,
        access_level_of_capability,
        access_level_of_trace,
        can_claim,
        cannot_claim,
        strongest_claim,
    )
    from moe_weights.tracing.comparison import (
        MissingField,
        StageComparison,
        compare_captures,
        cosine_similarity,
    )
    from moe_weights.tracing.documents import DocumentError, DocumentProblem
    from moe_weights.tracing.engine import LoadedModel, ModelEngine, TraceModelError
    from moe_weights.tracing.engines import open_engine
    from moe_weights.tracing.evidence import (
        claim_summary,
        evidence_refs,
        missing_evidence,
        report_summary,
    )
    from moe_weights.tracing.executor import RuntimeTraceResult, trace_model
    from moe_weights.tracing.hooks import InferenceHook, MockInferenceHook, ReplayHook
    from moe_weights.tracing.profile_totals import ProfileSummary, profile_summary
    from moe_weights.tracing.report_text import format_trace
    from moe_weights.tracing.request import Intervention, TraceRequest
    from moe_weights.tracing.run_comparison import TraceResult, run_trace
    from moe_weights.tracing.stage_profile import StageProfile
    from moe_weights.tracing.sweep_points import ProfileSweep, profile_sweep
    from moe_weights.tracing.toy_engine import ToyEngine
    from moe_weights.tracing.trace import Trace, TraceArtifact, TraceSpan
    from moe_weights.tracing.trace_files import load_trace, write_trace
    from moe_weights.tracing.vocabulary import (
        STAGES,
        DeviceKind,
        DeviceRef,
        HookPoint,
        SupportLevel,
        TraceArtifactKind,
    )

_HOMES = {
    "capability": ("RuntimeCapability", "declared_capability"),
    "capture_files": ("load_captures", "write_captures"),
    "capture_set": ("CaptureSet", "capture_model"),
    "captures": ("HookCapture",),
    "claims": (
        "AccessLevel",
        "ClaimPolicy",
        "ClaimStrength",
        "access_level_of_capability",
        "access_level_of_trace",
        "can_claim",
        "cannot_claim",
        "strongest_claim",
    ),
    "comparison": ("MissingField", "StageComparison", "compare_captures", "cosine_similarity"),
    "documents": ("DocumentError", "DocumentProblem"),
    "engine": ("LoadedModel", "ModelEngine", "TraceModelError"),
    "evidence": ("claim_summary", "evidence_refs", "missing_evidence", "report_summary"),
    "executor": ("RuntimeTraceResult", "trace_model"),
    "hooks": ("InferenceHook", "MockInferenceHook", "ReplayHook"),
    "engines": ("open_engine",),
    "profile_totals": ("ProfileSummary", "profile_summary"),
    "sweep_points": ("ProfileSweep", "profile_sweep"),
    "report_text": ("format_trace",),
    "request": ("Intervention", "TraceRequest"),
    "run_comparison": ("TraceResult", "run_trace"),
    "stage_profile": ("StageProfile",),
    "toy_engine": ("ToyEngine",),
    "trace": ("Trace", "TraceArtifact", "TraceSpan"),
    "trace_files": ("load_trace", "write_trace"),
    "vocabulary": (
        "STAGES",
        "DeviceKind",
        "DeviceRef",
        "HookPoint",
        "SupportLevel",
        "TraceArtifactKind",
    ),
}
__all__ = [
    "STAGES",
    "AccessLevel",
    "CaptureSet",
    "ClaimPolicy",
    "ClaimStrength",
    "DeviceKind",
    "DeviceRef",
    "DocumentError",
    "DocumentProblem",
    "HookCapture",
    "HookPoint",
    "InferenceHook",
    "Intervention",
    "LoadedModel",
    "MissingField",
    "MockInferenceHook",
    "ModelEngine",
    "ProfileSummary",
    "ProfileSweep",
    "ReplayHook",
    "RuntimeCapability",
    "RuntimeTraceResult",
    "StageComparison",
    "StageProfile",
    "SupportLevel",
    "ToyEngine",
    "Trace",
    "TraceArtifact",
    "TraceArtifactKind",
    "TraceModelError",
    "TraceRequest",
    "TraceResult",
    "TraceSpan",
    "access_level_of_capability",
    "access_level_of_trace",
    "can_claim",
    "cannot_claim",
    "capture_model",
    "claim_summary",
    "compare_captures",
    "cosine_similarity",
    "declared_capability",
    "evidence_refs",
    "format_trace",
    "load_captures",
    "load_trace",
    "missing_evidence",
    "open_engine",
    "profile_summary",
    "profile_sweep",
    "report_summary",
    "run_trace",
    "strongest_claim",
    "trace_model",
    "write_captures",
    "write_trace",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, also those not loaded yet."""
    return sorted([*globals(), *__all__])
