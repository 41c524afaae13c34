"""Routing replay bundles: which expert took which token, captured, checked, kept and read back.

Importing this package loads none of its modules; a name loads its own when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_weights.routing.builders import (
        build_layer_grid_layout,
        build_manifest,
        build_token_complete_event,
    )
    from moe_weights.routing.bundle_checks import (
        validate_layout_semantics,
        validate_manifest_semantics,
        validate_run_bundle_semantics,
    )
    from moe_weights.routing.bundle_reader import (
        RunBundleReader,
        load_run_bundle,
        open_run_bundle,
        validate_run_bundle,
    )
    from moe_weights.routing.bundle_writer import write_run_bundle
    from moe_weights.routing.derivation import derive_bundle_artifacts
    from moe_weights.routing.event_checks import validate_raw_event_semantics
    from moe_weights.routing.inspect import summarize_bundle
    from moe_weights.routing.issues import (
        BundleError,
        BundleExistsError,
        Issue,
        MissingFileError,
        SemanticIssue,
        VectorError,
    )
    from moe_weights.routing.layer_trace import (
        MoELayerCaptureInput,
        PyTorchMoELayerCaptureInput,
        build_moe_layer_trace,
    )
    from moe_weights.routing.load_counts import LayerCounts, count_events
    from moe_weights.routing.load_statistics import DeadRule, to_expert_table, to_layer_table
    from moe_weights.routing.olmoe import build_olmoe_layer_inputs, record_olmoe_generated_token
    from moe_weights.routing.recorder import PyTorchRunBundleRecorder
    from moe_weights.routing.routed_layers import (
        GroupLimit,
        RoutedLayerInput,
        build_routed_layer_trace,
        build_routed_token_event,
    )
    from moe_weights.routing.schema_check import (
        load_schema,
        validate_artifact_schema,
        validate_run_bundle_schema,
    )
    from moe_weights.routing.sidecar import write_selections_parquet
    from moe_weights.routing.working_bundle import (
        WorkingBundle,
        create_working_bundle,
        resume_working_bundle,
    )
    from moe_weights.routing.working_folder import discard_working_bundle

_HOMES = {
    "builders": ("build_layer_grid_layout", "build_manifest", "build_token_complete_event"),
    "bundle_checks": (
        "validate_layout_semantics",
        "validate_manifest_semantics",
        "validate_run_bundle_semantics",
    ),
    "bundle_reader": (
        "RunBundleReader",
        "load_run_bundle",
        "open_run_bundle",
        "validate_run_bundle",
    ),
    "bundle_writer": ("write_run_bundle",),
    "derivation": ("derive_bundle_artifacts",),
    "event_checks": ("validate_raw_event_semantics",),
    "inspect": ("summarize_bundle",),
    "issues": (
        "BundleError",
        "BundleExistsError",
        "Issue",
        "MissingFileError",
        "SemanticIssue",
        "VectorError",
    ),
    "layer_trace": (
        "MoELayerCaptureInput",
        "PyTorchMoELayerCaptureInput",
        "build_moe_layer_trace",
    ),
    "load_counts": ("LayerCounts", "count_events"),
    "load_statistics": ("DeadRule", "to_expert_table", "to_layer_table"),
    "olmoe": ("build_olmoe_layer_inputs", "record_olmoe_generated_token"),
    "recorder": ("PyTorchRunBundleRecorder",),
    "routed_layers": (
        "GroupLimit",
        "RoutedLayerInput",
        "build_routed_layer_trace",
        "build_routed_token_event",
    ),
    "schema_check": ("load_schema", "validate_artifact_schema", "validate_run_bundle_schema"),
    "sidecar": ("write_selections_parquet",),
    "working_bundle": ("WorkingBundle", "create_working_bundle", "resume_working_bundle"),
    "working_folder": ("discard_working_bundle",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BundleError",
    "BundleExistsError",
    "DeadRule",
    "GroupLimit",
    "Issue",
    "LayerCounts",
    "MissingFileError",
    "MoELayerCaptureInput",
    "PyTorchMoELayerCaptureInput",
    "PyTorchRunBundleRecorder",
    "RoutedLayerInput",
    "RunBundleReader",
    "SemanticIssue",
    "VectorError",
    "WorkingBundle",
    "build_layer_grid_layout",
    "build_manifest",
    "build_moe_layer_trace",
    "build_olmoe_layer_inputs",
    "build_routed_layer_trace",
    "build_routed_token_event",
    "build_token_complete_event",
    "count_events",
    "create_working_bundle",
    "derive_bundle_artifacts",
    "discard_working_bundle",
    "load_run_bundle",
    "load_schema",
    "open_run_bundle",
    "record_olmoe_generated_token",
    "resume_working_bundle",
    "summarize_bundle",
    "to_expert_table",
    "to_layer_table",
    "validate_artifact_schema",
    "validate_layout_semantics",
    "validate_manifest_semantics",
    "validate_raw_event_semantics",
    "validate_run_bundle",
    "validate_run_bundle_schema",
    "validate_run_bundle_semantics",
    "write_run_bundle",
    "write_selections_parquet",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    """Return the public names, also those not loaded yet."""
    return sorted([*globals(), *__all__])
